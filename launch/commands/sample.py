"""distill sample: samples of a run, a teacher or an exported generator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.errors import UserError, require
from launch.options import (
    Cfg,
    CfgInterval,
    CfgRescale,
    Evaluations,
    Moved,
    NegativePrompt,
    SamplerName,
    Which,
    cache_folder,
)

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.runs.draw import Drawable

Model = Annotated[
    str, typer.Argument(help="A run folder, a teacher's folder, a safetensors export, or a pipeline's id on the hub.")
]
Picture = Annotated[
    Path | None, typer.Option(help="The PNG to write. Default: sample.png in a run's folder, else here.")
]
Count = Annotated[int | None, typer.Option(help="The number of samples. Default: 60, or one a prompt.", min=1)]
Label = Annotated[
    str | None, typer.Option(help="One class for all samples, by number or name. Default: classes or prompts in turn.")
]
Prompt = Annotated[list[str] | None, typer.Option(help="A prompt in place of the recipe's; several are taken in turn.")]
OfTeacher = Annotated[
    bool, typer.Option("--teacher", help="Sample the teacher of a run, by the recipe's sampler, instead.")
]
Separate = Annotated[bool, typer.Option("--separate", help="Write one PNG for each sample into OUT. Default: sample.")]
PromptsFile = Annotated[
    Path | None, typer.Option(help="A benchmark's file or folder of prompts. OUT is then a folder: FOLDER/LAYOUT.")
]
LayoutOption = Annotated[str, typer.Option(help="The folders to write for --prompts: plain, geneval or dpg.")]
PerPrompt = Annotated[int | None, typer.Option(help="Samples of each of --prompts. Default: the layout's.", min=1)]
Size = Annotated[str | None, typer.Option(help="Height and width of the images, like 832x1216. Default: the model's.")]
Part = Annotated[str, typer.Option(help="Which part of --prompts to make, such as 2/8. Default: all of them.")]


def sample(
    folder: Model,
    moved: Moved = None,
    out: Picture = None,
    count: Count = None,
    columns: Annotated[int, typer.Option(help="Samples in a row.", min=1)] = 10,
    label: Label = None,
    prompt: Prompt = None,
    seed: Annotated[int, typer.Option(help="The seed of the noise.")] = 0,
    teacher: OfTeacher = False,
    sampler: SamplerName = None,
    evaluations: Evaluations = None,
    cfg: Cfg = None,
    cfg_interval: CfgInterval = None,
    cfg_rescale: CfgRescale = None,
    negative_prompt: NegativePrompt = None,
    separate: Separate = False,
    which: Which = "last",
    prompts: PromptsFile = None,
    layout: LayoutOption = "plain",
    per_prompt: PerPrompt = None,
    part: Part = "1/1",
    size: Size = None,
) -> None:
    """Draw samples of a model into one picture, or into one file for each."""
    from trainers.data.labels import captions
    from trainers.io.console import plain
    from trainers.io.images import LATENTS, has_no_decoder
    from trainers.recipe.strict_yaml import override
    from trainers.runs.bare_model import BareModel, SamplerWords, open_model, set_sampler
    from trainers.runs.draw import draw, drawn_labels

    trained = open_model(folder, which, override({}, moved or []))
    words = SamplerWords(sampler, evaluations, cfg, cfg_interval, cfg_rescale, negative_prompt)
    set_sampler(trained, words, teacher, cache_folder())
    place = Path() if isinstance(trained, BareModel) else trained.folder
    if prompts is not None:
        alone = count is None and label is None and prompt is None and size is None
        require(alone, "--prompts: goes without --count, --label, --prompt and --size")
        return _benchmark(trained, out or place / layout, prompts, layout, per_prompt, part, seed, teacher)
    count = count or len(prompt or range(60))
    labels = drawn_labels(trained, count, label).labels
    names = captions(labels, trained.denoiser.network.class_names)
    images = draw(trained, count, label, seed, teacher, prompt or [], _sides(size))
    out = out or place / ("sample" if separate else "sample.png")
    write(images, out, separate, columns, names)
    if has_no_decoder(trained.model):
        plain(stderr=True).print(LATENTS, style="yellow")
    of = f" of {names[0]}" if label is not None and names else ""
    plain().print(f"{count} samples{of}: {out}")


def _sides(size: str | None) -> tuple[int, int] | None:
    """Return height and width that are given as 832x1216. Raise UserError if they are not."""
    if size is None:
        return None
    if (sides := re.fullmatch("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", size)) is None:
        raise UserError(f"--size: must be like 832x1216, got {size!r}")
    return int(sides[1]), int(sides[2])


def write(images: Tensor, out: Path, separate: bool, columns: int, names: Sequence[str]) -> None:
    """Write images [N, C, *spatial] as one picture, or as one file for each into a folder.

    Args:
        images: The images, in [-1, 1].
        out: The file or the folder.
        separate: Whether each has a file.
        columns: The images in a row of the picture.
        names: The captions.

    Raises:
        UserError: It cannot be written.
    """
    import trainers

    try:
        if separate:
            out.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(images):
                trainers.grid(image[None], 1, least=1, border=0).save(out / f"{number:06d}.png")
        else:
            trainers.grid(images, columns, captions=names).save(out)
    except (OSError, ValueError) as error:  # ValueError: the ending of the file is no format of pictures
        raise UserError(f"--out: cannot write '{out}': {error}") from error


def _benchmark(
    trained: Drawable,
    out: Path,
    prompts: Path,
    layout: str,
    per_prompt: int | None,
    part: str,
    seed: int,
    teacher: bool,
) -> None:
    """Write samples for the prompts of a benchmark."""
    from trainers.io.console import plain, progress
    from trainers.runs.layouts import write_layout

    number, _, parts = part.partition("/")
    valid = number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)
    require(valid, f"--part: must be like 2/8, got {part!r}")
    share = int(number) - 1, int(parts)
    with progress() as say:
        done = write_layout(trained, prompts, out, layout, per_prompt, seed, teacher, share, say)
    of = f"{done.prompts:,} prompts, {done.samples} samples each"
    plain().print(f"{of}: made {done.made:,} pictures, {done.kept:,} were there: {out}")
