"""The export of a generator to a folder in one of several formats.

The folder is read back and must give the samples of the generator. Otherwise nothing is written.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from distill.conditions import Condition, ConditionLike
from distill.errors import UserError, naming_final, one_line, require
from distill.export.card import render
from distill.export.facts import CardFacts
from distill.export.format import BATCH, CLASS_NAMES, Format, Source, float32, inputs, names_by_number
from distill.export.to_diffusers import diffusers_format
from distill.export.to_graph import onnx_format, torch_export_format
from distill.export.to_lora import lora_format
from distill.export.to_safetensors import safetensors_format
from distill.generator import Generator
from distill.public_text import public_text, public_value
from distill.records import read_record
from distill.saved_files import set_permissions

CHECK = "export_check.json"
PROMPTS_FILE = "samples/prompts.json"  # the prompts of the pictures in its folder, in the form of the hub's `widget`
LOCK = ".lock"  # inside the staging folder
OLD = "old"  # the earlier export, inside the staging folder, while the new one takes its place
TOLERANCE = 1e-4
VOCABULARIES = {"vocab.json", "tokenizer.json", "merges.json", "added_tokens.json"}
"""Files of tokenizers whose strings are tokens, such as "/", and no paths."""
ORIGINS = {"_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file"}
"""Entries of configs in which diffusers and transformers write the folder that a part was loaded from."""
SEED = 0
FORMATS: dict[str, Callable[[Generator, Condition, Path | None], Format]] = {
    "diffusers": diffusers_format,
    "safetensors": safetensors_format,
    "lora": lora_format,
    "onnx": onnx_format,
    "torch-export": torch_export_format,
}
"""The formats by name.

Each function takes the generator, conditions [8, ...] to compare samples under, and the teacher's folder. It returns
the Format, or raises UserError if this format cannot hold the generator.
"""


def export_generator(
    generator: Generator,
    folder: Path,
    card: CardFacts,
    format: str = "diffusers",
    cond: ConditionLike = None,
    teacher: Path | None = None,
    hub: str | None = None,
) -> float:
    """Write a generator to a folder, with weights in float32 and a README.md that says how to load it.

    The folder is read back, and its samples are compared with the generator's in float32 on the CPU, from the same
    noise and under the same condition. Adapters are merged into the weights, except in the format "lora".

    Args:
        generator: The generator to export.
        folder: The folder to write. An export that it holds is replaced.
        card: The facts about the training for the README.md.
        format: A name in FORMATS.
        cond: Conditions [8, ...] to compare samples under. None takes the network's own example.
        teacher: The teacher's folder, from which a pipeline's other components and configs are copied.
        hub: The id on the Hugging Face hub that the README.md names in place of the folder.

    Returns:
        The largest difference between samples, relative to the largest absolute value of the generator's, or to 1 if
        that is larger.

    Raises:
        UserError: The difference exceeds 1e-4, the format cannot hold this generator, or `folder` holds something
            other than an export. `folder` is then left as it was.
    """
    folder = Path(folder).resolve()
    check_format(format)
    _refuse_foreign(folder)
    generator = float32(generator)
    form = FORMATS[format](generator, Condition.of(cond) or generator.denoiser.network.example(BATCH), teacher)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _staging_folder(folder) as work:
        staged = work / folder.name
        try:
            form.write(staged)
            _make_public(staged)
            difference = largest_difference(generator, form, staged)
        except UserError:
            raise
        except Exception as error:  # other libraries write and read, and raise any type
            raise UserError(f"export: {format}: {type(error).__name__}: {one_line(error)}") from error
        if not difference <= TOLERANCE:  # true for NaN as well
            raise UserError(
                f"export: the samples of the {format} export differ from the generator's by {difference:.3g}, more than"
                f" {TOLERANCE:g}; '{folder}' was not written"
            )
        _write_facts(staged, card, Source(hub, hub=True) if hub else Source(folder.name), generator, form)
        check: dict[str, Any] = {"format": format, "largest_difference": difference, "tolerance": TOLERANCE}
        check |= {"batches": form.batches, "seed": SEED}
        (staged / CHECK).write_text(json.dumps(check, indent=2) + "\n")
        set_permissions(staged)
        _replace(folder, staged, work / OLD)
    return difference


def _write_facts(folder: Path, card: CardFacts, source: Source, generator: Generator, form: Format) -> None:
    """Write the card and its pictures, and the names of the classes if they have names."""
    for picture in card.pictures:
        (folder / picture.name).parent.mkdir(exist_ok=True)
        (folder / picture.name).write_bytes(picture.content)
    if shown := [picture.widget for picture in card.pictures if picture.prompt is not None]:
        (folder / PROMPTS_FILE).write_text(json.dumps(shown, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "README.md").write_text(public_text(render(card, source, generator, form)), "utf-8")
    if (names := names_by_number(generator)) is not None:
        (folder / CLASS_NAMES).write_text(json.dumps(public_value(names, names=False), indent=2) + "\n")


def check_format(format: str) -> None:
    """Raise UserError for a name that is not in FORMATS."""
    require(format in FORMATS, f"--format: must be one of {', '.join(FORMATS)}, got {format!r}")


@torch.no_grad()
def largest_difference(generator: Generator, form: Format, folder: Path) -> float:
    """Return the largest absolute difference between exported and original samples.

    It is relative to max(1, max |original|), and NaN if either side contains NaN.

    Args:
        generator: The original generator.
        form: The format, whose reader draws from the folder at each of its batch sizes.
        folder: The exported folder.
    """
    read, found = form.read(folder), []
    for batch in form.batches:
        given = inputs(generator, form.cond, batch, SEED)
        ours = form.shown(generator(given.noise, given.cond))
        found.append((read(given) - ours).abs().max() / ours.abs().max().clamp(min=1))
    return float(torch.stack(found).max())


def _make_public(folder: Path) -> None:
    """Remove the paths of this machine from the configs in a folder, where diffusers and transformers leave some."""
    for file in folder.rglob("*.json"):
        if file.name in VOCABULARIES or file.name.endswith(".index.json"):
            continue
        config = read_record(file, Any, finite=False)
        if (cleaned := public_value(_without_origin(config), names=False)) != config:
            file.write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _without_origin(value: Any) -> Any:
    """Return plain values without the entries that say where a model was loaded from."""
    if isinstance(value, dict):
        return {key: _without_origin(one) for key, one in value.items() if key not in ORIGINS}
    return [_without_origin(one) for one in value] if isinstance(value, list) else value


def _refuse_foreign(folder: Path) -> None:
    """Raise UserError if `folder` holds something other than an export, which must not be replaced."""
    if folder.exists() and not (folder / CHECK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"export: '{folder}' exists and is not an export (it has no {CHECK}); name another folder")


@contextmanager
def _staging_folder(folder: Path) -> Iterator[Path]:
    """Create a folder beside `folder` to write in, and delete it at the end.

    Its name is always the same, so that the next export cleans up after a killed one. It puts the earlier export back
    if the kill came between the two renames of `_replace`, and deletes everything else.

    Raises:
        UserError: Another process exports to the same folder.
    """
    work = folder.with_name(f".{folder.name}-staging")
    with naming_final(folder, work / folder.name, work):
        work.mkdir(exist_ok=True)
        lock = FileLock(work / LOCK, blocking=False)  # the system releases it when this process ends, even by SIGKILL
        try:
            lock.acquire()
        except Timeout:
            raise UserError(f"export: another process exports to '{folder}' now; name another folder") from None
        try:
            if (work / OLD).exists() and not folder.exists():
                os.rename(work / OLD, folder)
            for left in (work / OLD, work / folder.name):
                shutil.rmtree(left, ignore_errors=True)
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            lock.release()


def _replace(folder: Path, staged: Path, old: Path) -> None:
    """Rename `staged` to `folder`, and a folder that is there to `old`, which is put back at an interruption."""
    try:
        if folder.exists():
            os.rename(folder, old)
        os.rename(staged, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise
