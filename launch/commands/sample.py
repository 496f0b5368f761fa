"""distill sample: samples of a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from distill.errors import UserError, require
from launch.options import Moved, Which

PromptsFile = Annotated[
    Path | None, typer.Option(help="A benchmark's file or folder of prompts. OUT is then a folder: FOLDER/LAYOUT.")
]
LayoutOption = Annotated[str, typer.Option(help="The folders to write for --prompts: plain, geneval or dpg.")]
PerPrompt = Annotated[int | None, typer.Option(help="Samples of each of --prompts. Default: the layout's.", min=1)]
Part = Annotated[str, typer.Option(help="Which part of --prompts to make, such as 2/8. Default: all of them.")]


def sample(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    moved: Moved = None,
    out: Annotated[Path | None, typer.Option(help="The PNG to write. Default: FOLDER/sample.png.")] = None,
    count: Annotated[
        int | None, typer.Option(help="The number of samples. Default: 60, or one a prompt.", min=1)
    ] = None,
    columns: Annotated[int, typer.Option(help="Samples in a row.", min=1)] = 10,
    label: Annotated[
        str | None,
        typer.Option(help="One class for all samples, by number or name. Default: classes or prompts in turn."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt in place of the recipe's; several are taken in turn.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of the noise.")] = 0,
    teacher: Annotated[bool, typer.Option("--teacher", help="Sample the teacher, at 35 evaluations, instead.")] = False,
    separate: Annotated[
        bool,
        typer.Option("--separate", help="Write one PNG for each sample into OUT. Default: FOLDER/sample."),
    ] = False,
    which: Which = "last",
    prompts: PromptsFile = None,
    layout: LayoutOption = "plain",
    per_prompt: PerPrompt = None,
    part: Part = "1/1",
) -> None:
    """Draw samples of the trained model into one picture, or into one file for each."""
    if prompts is not None:
        require(
            count is None and label is None and prompt is None, "--prompts: goes without --count, --label and --prompt"
        )
        return _benchmark(folder, moved, which, out, prompts, layout, per_prompt, part, seed, teacher)
    import trainers
    from trainers.data.labels import captions
    from trainers.io.console import plain
    from trainers.io.images import LATENTS, has_no_decoder
    from trainers.recipe.strict_yaml import override
    from trainers.runs.draw import drawn_labels
    from trainers.runs.load import load_trained

    trained = load_trained(folder, which, changes=override({}, moved or []))
    count = count or len(prompt or range(60))
    labels = drawn_labels(trained, count, label).labels
    names = captions(labels, trained.denoiser.network.class_names)
    images = trained.sample(count, label, prompt or [], seed, teacher)
    out = out or folder / ("sample" if separate else "sample.png")
    try:
        if separate:
            out.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                trainers.grid(image[None], 1, least=1, border=0).save(out / f"{number:06d}.png")
        else:
            trainers.grid(images, columns, captions=names).save(out)
    except (OSError, ValueError) as error:  # ValueError: the ending of the file is no format of pictures
        raise UserError(f"--out: cannot write '{out}': {error}") from error
    if has_no_decoder(trained.model):
        plain(stderr=True).print(LATENTS, style="yellow")
    of = f" of {names[0]}" if label is not None and names else ""
    plain().print(f"{count} samples{of}: {out}")


def _benchmark(
    folder: Path,
    moved: list[str] | None,
    which: str,
    out: Path | None,
    prompts: Path,
    layout: str,
    per_prompt: int | None,
    part: str,
    seed: int,
    teacher: bool,
) -> None:
    """Write samples for the prompts of a benchmark."""
    from trainers.io.console import plain, progress
    from trainers.recipe.strict_yaml import override
    from trainers.runs.layouts import write_layout
    from trainers.runs.load import load_trained

    number, _, parts = part.partition("/")
    valid = number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)
    require(valid, f"--part: must be like 2/8, got {part!r}")
    trained = load_trained(folder, which, changes=override({}, moved or []))
    out = out or folder / layout
    with progress() as say:
        done = write_layout(
            trained, prompts, out, layout, per_prompt, seed, teacher, (int(number) - 1, int(parts)), say
        )
    of = f"{done.prompts:,} prompts, {done.samples} samples each"
    plain().print(f"{of}: made {done.made:,} pictures, {done.kept:,} were there: {out}")
