"""distill export: a run's generator in a format that others load."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.errors import UserError
from distill.generator import Generator
from launch.commands.evaluate import WhichOption
from trainers.io.console import plain
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import dump, to_yaml
from trainers.runs.distillation import teacher_hash
from trainers.runs.load import Trained, load_trained

if TYPE_CHECKING:
    from distill.export import CardFacts


def export(
    folder: Annotated[Path, typer.Argument(help="run folder")],
    out: Annotated[
        Path | None, typer.Argument(help="export folder; FOLDER/export, or FOLDER/export-FORMAT, when left out")
    ] = None,
    format: Annotated[str, typer.Option(help="diffusers, safetensors, lora, onnx or torch-export")] = "diffusers",
    which: WhichOption = "last",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="REPO_ID", help="then upload it to the Hugging Face hub as this model")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="the model on the hub is only for you")] = False,
) -> None:
    """Write the averaged generator for others to load, checked against the trainer's own samples."""
    from distill.export import check_format, check_push, push

    check_format(format)
    if push_to_hub is not None:
        check_push(push_to_hub)
    elif private:
        raise UserError("--private: is about a model on the hub; give --push-to-hub REPO_ID too")
    out = out or folder / ("export" if format == "diffusers" else f"export-{format}")
    product = load_trained(folder, which, merged=format != "lora")
    difference = export_product(product, folder, out, format, push_to_hub)
    plain().print(
        f"exported to {out} after {product.images:,} images; largest difference to the trainer's: {difference:.1e}"
    )
    if push_to_hub is not None:
        plain().print(f"pushed to {push(out, push_to_hub, private)}")


def export_product(
    product: Trained, folder: Path, out: Path, format: str = "diffusers", hub: str | None = None
) -> float:
    """Export; returns the largest difference between both sides' samples on the same noise."""
    if not isinstance(product.model, Generator) or not isinstance(product.run, Run):
        raise UserError(
            f"'{folder}' trains a teacher: its teacher/ is a diffusers folder already; export takes distillations"
        )
    from distill.export import export_generator

    if product.images == 0:
        raise UserError(f"'{folder}' has not trained yet: its checkpoint is the teacher's, at 0 images")
    card, teacher = _facts(product, product.run, folder), Path(product.run.teacher)
    return export_generator(product.model, out, card, format, teacher=teacher, hub=hub)


def _facts(product: Trained, run: Run, folder: Path) -> CardFacts:
    from distill.export import CardFacts

    packages = ("distill-onestep", "torch", "diffusers", "accelerate")
    teacher = "/".join(Path(run.teacher).parts[-2:])  # a card goes to others: no path of this machine
    recipe = dump(run) | {"teacher": teacher}
    return CardFacts(
        name=run.name,
        objective=recipe["objective"],
        teacher=teacher,
        teacher_sha256=teacher_hash(run.teacher),
        images=product.images,
        average=product.average,
        metrics=_metrics(folder / "evaluation.json", product),
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
        recipe=to_yaml(recipe),
    )


def _metrics(file: Path, product: Trained) -> dict[str, Any] | None:
    """The numbers of `distill evaluate`, when they are of the exported weights."""
    report = json.loads(file.read_text()) if file.is_file() else None
    if report is None or (report["images"], report["average"]) != (product.images, product.average):
        return None
    metrics = {"protocol": report["protocol"], "samples": report["samples"], "real halves, frechet": report["halves"]}
    for model in ("student", "teacher"):
        metrics |= {f"{model}, {name}": value for name, value in report[model].items()}
    return metrics
