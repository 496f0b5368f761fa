"""A generator as a folder, in one of the formats. It counts only after it was read back and gave the same samples."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distill.conditions import Condition, ConditionLike
from distill.errors import UserError, one_line
from distill.export.card import CardFacts, render
from distill.export.format import BATCH, Format, Source, float32, inputs
from distill.export.to_diffusers import diffusers_format
from distill.export.to_graph import onnx_format, torch_export_format
from distill.export.to_lora import lora_format
from distill.export.to_safetensors import safetensors_format
from distill.generator import Generator

CHECK = "export_check.json"
TOLERANCE = 1e-4
SEED = 0
FORMATS: dict[str, Callable[[Generator, Condition, Path | None], Format]] = {
    "diffusers": diffusers_format,
    "safetensors": safetensors_format,
    "lora": lora_format,
    "onnx": onnx_format,
    "torch-export": torch_export_format,
}
"""Name -> (generator, conditions [8, ...] like those it takes, its teacher's folder) -> its format; raises UserError
where it has none."""


def export_generator(
    generator: Generator,
    folder: Path,
    card: CardFacts,
    format: str = "diffusers",
    cond: ConditionLike = None,
    teacher: Path | None = None,
    hub: str | None = None,
) -> float:
    """Write `generator` to `folder`, weights in float32, with a README.md that says how to load it.

    Returns the largest difference between the samples of the folder, read back, and the generator's, in float32 on the
    CPU, from equal noise and the condition `cond` ([8, ...]; made up where None). What a pipeline has beside its
    network comes from the folder `teacher`; adapters are merged, but for the format "lora". The README names the model
    `hub` of the Hugging Face hub in place of the folder, where given. Raises UserError, leaving `folder` as it was,
    when the difference exceeds 1e-4, when the format has no place for this generator, and when `folder` holds something
    else than an export, which it would replace.
    """
    folder = Path(folder).resolve()
    check_format(format)
    _refuse_foreign(folder)
    generator = float32(generator)
    form = FORMATS[format](generator, Condition.of(cond) or generator.denoiser.network.example(BATCH), teacher)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(folder) as work:
        staged = work / folder.name
        try:
            form.write(staged)
            difference = largest_difference(generator, form, staged)
        except UserError:
            raise
        except Exception as error:  # writers and readers are other libraries, with exceptions of their own
            raise UserError(f"export: {format}: {type(error).__name__}: {one_line(error)}") from error
        if not difference <= TOLERANCE:  # nor when it is not a number
            raise UserError(
                f"export: the samples of the {format} export differ from the generator's by {difference:.3g}, more than"
                f" {TOLERANCE:g}; '{folder}' was not written"
            )
        source = Source(hub, hub=True) if hub else Source(folder.name)
        (staged / "README.md").write_text(render(card, source, generator, form), "utf-8")
        check: dict[str, Any] = {"format": format, "largest_difference": difference, "tolerance": TOLERANCE}
        check |= {"batches": form.batches, "seed": SEED}
        (staged / CHECK).write_text(json.dumps(check, indent=2) + "\n")
        _replace(folder, staged, work / "old")
    return difference


def check_format(format: str) -> None:
    """Raise UserError for a name that is none of FORMATS."""
    if format not in FORMATS:
        raise UserError(f"--format: must be one of {', '.join(FORMATS)}, got {format!r}")


@torch.no_grad()
def largest_difference(generator: Generator, form: Format, folder: Path) -> float:
    """Between what `folder` gives, read back, and what `generator` makes, in units of the largest of it, or of 1 where
    that is less, as with images; NaN where there is one."""
    read, found = form.read(folder), []
    for batch in form.batches:
        given = inputs(generator, form.cond, batch, SEED)
        ours = form.shown(generator(given.noise, given.cond))
        found.append((read(given) - ours).abs().max() / ours.abs().max().clamp(min=1))
    return float(torch.stack(found).max())


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / CHECK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export: '{folder}' exists and is not an export (it has no {CHECK}); name another folder")


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, always the same: what a kill leaves in it goes with the next export."""
    work = folder.with_name(f".{folder.name}-staging")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _replace(folder: Path, staged: Path, old: Path) -> None:
    """Put `staged` at `folder`, moving what is there to `old`; an interruption puts it back."""
    try:
        if folder.exists():
            os.rename(folder, old)
        os.rename(staged, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
