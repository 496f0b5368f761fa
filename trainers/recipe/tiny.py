"""The tiny form of a recipe (`--tiny`), which runs within a minute and without a connection.

Its teacher has the class of the real one, tiny sizes, and random weights. The key `tiny` of a recipe holds the changes
for its tiny form, by dotted key. SHORT holds the changes for every recipe. A value that begins with `tiny:` names
something to make: it is made in the folder `tiny` of the run, and its path becomes the value.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from distill.errors import UserError, options
from distill.random import Random
from distill.saved_files import tensor_bytes
from distill.teachers import load_denoiser
from distill.tiny import TEACHERS, write_aesthetic, write_image_reward
from trainers.data.pairs import DESCRIPTION, columns_of
from trainers.io.atomic import atomic_folder, sha256
from trainers.io.teacher_hash import teacher_hash
from trainers.recipe.strict_yaml import assign

PREFIX = "tiny:"
BATCH, UPDATES = 4, 4
SHORT = {
    "batch_size": BATCH,
    "images": UPDATES * BATCH,
    "log_every": BATCH,
    "samples_every": UPDATES * BATCH,
    "checkpoint_every": UPDATES * BATCH,
    "compile": False,
    "generator.warmup": 0,
    "fake.warmup": 0,
}


def shrink(recipe: dict[str, Any], changes: Any, folder: Path, where: str) -> dict[str, Any]:
    """Return the tiny form of a recipe, and make the teacher and the data that it names.

    Args:
        recipe: The keys of the recipe, which are changed in place.
        changes: The value of its key `tiny`.
        folder: The run folder.
        where: The file of the recipe, for messages.

    Raises:
        UserError: The recipe has no tiny form, or a change of it is wrong.
    """
    if not isinstance(changes, dict):
        raise UserError(f"--tiny: {where} must say what to change, as in tiny: {{teacher: tiny:sd15}}, got {changes!r}")
    recipe["name"] = f"{recipe.get('name')}_tiny"
    recipe["cache"] = str(folder / "tiny" / "cache")
    recipe["micro_batches"] = min(2, recipe.get("micro_batches", 1))
    for dotted, value in {**SHORT, **changes}.items():
        assign(recipe, str(dotted), materialise(value, folder / "tiny"), f"{where}: tiny: {dotted}")
    return recipe


def materialise(value: Any, folder: Path) -> Any:
    """Return `value` in which every string `tiny:NAME` is a path, after NAME was made in `folder`."""
    if isinstance(value, dict):
        return {key: materialise(one, folder) for key, one in value.items()}
    if not isinstance(value, str) or not value.startswith(PREFIX):
        return value
    name, _, inside = value.removeprefix(PREFIX).partition("/")
    if name not in MAKERS:
        known = options((PREFIX + name for name in MAKERS), value)
        raise UserError(f"--tiny: {value!r} is none of {known}")
    made = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):  # one of several processes makes it, and the others wait
        if not made.exists():
            with atomic_folder(made) as staging:
                MAKERS[name](staging)
    return str((made / inside).resolve())


def _pictures() -> Iterator[tuple[Any, str]]:
    """Yield 20 pictures of 16x16 pixels with their captions."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for caption in _prompts().read_text().splitlines()[:20]:
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        yield small.resize((16, 16), Image.Resampling.BICUBIC), caption


def _labelled(folder: Path) -> None:
    """Write the pictures, two in each of 10 classes."""
    for number, (picture, _) in enumerate(_pictures()):
        (place := folder / f"class_{number % 10}").mkdir(exist_ok=True)
        picture.save(place / f"{number:02d}.png")


def _captioned(folder: Path) -> None:
    """Write the pictures, with their captions in the column `text`."""
    with (folder / "metadata.jsonl").open("w") as lines:
        for number, (picture, caption) in enumerate(_pictures()):
            picture.save(folder / f"{number:02d}.png")
            lines.write(json.dumps({"file_name": f"{number:02d}.png", "text": caption}) + "\n")


def _prompts() -> Path:
    return Path(str(files("configs") / "prompts.txt"))


def _sdxl_pairs(folder: Path) -> None:
    """Write random pairs for the tiny SDXL, as if its guidance at 8 had made them."""
    teacher = materialise("tiny:sdxl", folder.parent)
    network, random = load_denoiser(teacher, weights=False).network, Random.at(0, torch.arange(2 * BATCH))
    noise, target = (random.stream(name).normal(*network.shape) for name in ("noise", "target"))
    shard = tensor_bytes({"noise": noise, "target": target, **columns_of(network.example(2 * BATCH))})
    (folder / "pairs-00000.safetensors").write_bytes(shard)
    listed = {"pairs": 2 * BATCH, "bytes": len(shard), "sha256": sha256(folder / "pairs-00000.safetensors")}
    made = {"teacher": teacher_hash(teacher), "evaluations": 1, "teacher_cfg": 8.0, "seed": 0, "data": "random"}
    made |= {"shape": network.shape, "classes": 0, "count": 2 * BATCH, "shards": {"pairs-00000.safetensors": listed}}
    (folder / DESCRIPTION).write_text(json.dumps(made))


MAKERS: dict[str, Callable[[Path], Any]] = {
    **TEACHERS,
    "labelled": _labelled,
    "captioned": _captioned,
    "sdxl_pairs": _sdxl_pairs,
    "prompts": lambda folder: shutil.copy(_prompts(), folder),
    "aesthetic": write_aesthetic,
    "image_reward": write_image_reward,
}
"""{name: a function that fills a folder}."""
