"""The distance of a teacher's samples to the data, by sampler and number of evaluations.

    python -m benchmarks.samplers runs/digits_teacher/teacher --data digits --out table.md

Every cell has the same noise and the same conditions. A sampler that the teacher's path cannot take is left out, with
the reason below the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator

from distill.errors import UserError
from distill.samplers import SAMPLERS, Sampler
from distill.teachers import load_denoiser
from trainers.data import Data
from trainers.engine.sampler import make_image_sampler, make_sampler
from trainers.evaluation import evaluate, fit_protocol
from trainers.io.atomic import atomic_file
from trainers.recipe.run import Evaluation, Experiment
from trainers.recipe.strict_yaml import build, override

ALL = tuple(SAMPLERS)


def chosen(text: str) -> Sampler:
    """Return the sampler of a name or a YAML mapping, as in a recipe."""
    return build(Sampler, override({}, [f"sampler={text}"])["sampler"], "--sampler")


def table(columns: list[int], rows: dict[str, list[float | None]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown.

    Args:
        columns: The numbers of evaluations.
        rows: The distances by sampler. None for a cell that cannot be.
    """
    yield f"| sampler | {' | '.join(str(count) for count in columns)} |"
    yield "| --- " * (len(columns) + 1) + "|"
    for name, row in rows.items():
        yield f"| {name} | {' | '.join('-' if one is None else f'{one:.3f}' for one in row)} |"


def main(
    teacher: Annotated[Path, typer.Argument(help="The teacher's folder.")],
    data: Annotated[str, typer.Option(help="The data, as in a recipe.")] = "digits",
    sampler: Annotated[
        list[str] | None, typer.Option(help="A sampler as in a recipe. Default: all, each once.")
    ] = None,
    evaluations: Annotated[
        list[int] | None, typer.Option(help="A number of evaluations. Several may be given.")
    ] = None,
    samples: Annotated[int, typer.Option(help="The samples of each cell.", min=2)] = 2000,
    classifier: Annotated[Path | None, typer.Option(help="A classifier whose features are compared.")] = None,
    out: Annotated[Path | None, typer.Option(help="A file to write the table to, beside the output.")] = None,
    seed: Annotated[int, typer.Option(help="The seed of noise and conditions.")] = 0,
    trust_code: Annotated[bool, typer.Option("--trust-code", help="Let the code run that the teacher names.")] = False,
) -> None:
    """Print the table. Each row is printed when it is measured."""
    columns = sorted(evaluations or [5, 10, 20, 35, 70])
    dataset = build(Data, override({}, [f"data={data}"])["data"], "--data").load()  # type: ignore[type-abstract]
    denoiser = load_denoiser(teacher, trust_code=trust_code).requires_grad_(False)
    settings = Evaluation(samples=samples, classifier=None if classifier is None else str(classifier))
    protocol = fit_protocol(dataset, settings)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    denoiser.to(accelerator.device)
    lines = [f"Frechet distance in `{protocol.name}`, {samples:,} samples a cell; real halves: {protocol.halves:.3f}"]
    rows: dict[str, list[float | None]] = {}
    notes: list[str] = []

    def distance(method: Sampler) -> float:
        """Return the distance of samples by a method."""
        method.check(denoiser.path)
        model: Any = denoiser if method.guidance is None else method.guidance.guide(denoiser)
        run = Experiment(name="benchmark", images=1, batch_size=1, sampler=method)
        images = make_image_sampler(make_sampler(model, run), denoiser)
        return float(evaluate(images, dataset, protocol, settings, seed, accelerator, dataset.shape)["frechet"])

    for text in sampler or ALL:
        rows[text] = []
        for count in columns:
            try:
                rows[text].append(distance(replace(chosen(text), evaluations=count)))
            except UserError as error:
                notes.append(f"{text} at {count}: {error}")
                rows[text].append(None)
        print(text, rows[text], flush=True)
    lines += ["", *table(columns, rows), *(f"\n{note}" for note in notes)]
    print("\n".join(lines))
    if out is not None:
        with atomic_file(out) as staging:
            staging.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
