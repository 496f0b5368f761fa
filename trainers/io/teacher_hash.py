"""The hash that identifies a teacher in checkpoints and pairs, which never hold the teacher itself."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.saved_files import read_bounded
from distill.teachers import DESCRIPTION, denoiser_files
from trainers.io.atomic import sha256

IRRELEVANT = {
    "_diffusers_version",
    "_name_or_path",
    "safety_checker",
    "requires_safety_checker",
    "feature_extractor",
    "image_encoder",
}
"""Entries of configs that change nothing in what a denoiser computes."""


def teacher_hash(folder: str) -> str:
    """Return the SHA-256 over the description and the network in a teacher's folder.

    Configs of diffusers count by their values, without the entries in IRRELEVANT: a folder that a newer diffusers has
    saved again, or without its safety checker, is the same teacher.

    Raises:
        UserError: There is no such folder.
    """
    if not Path(folder).is_dir():
        raise UserError(f"teacher: no folder '{folder}'; if it has moved, add teacher=FOLDER")
    return _hash(folder, _content_hash)


def is_hash_of(stored: str | None, folder: str, current: str) -> bool:
    """Return whether a stored hash is that of a teacher, in today's form or in that of older versions.

    Args:
        stored: The hash in a checkpoint, or in pairs.
        folder: The folder of the teacher, which is read only if the hash is not today's.
        current: The hash of the teacher in today's form.
    """
    return stored == current or (Path(folder).is_dir() and stored == _hash(folder, sha256))


def weights_hash(denoiser: Denoiser) -> str:
    """Return the SHA-256 over the path, the prediction and the weights of a denoiser that has no folder."""
    digest = hashlib.sha256(f"{denoiser.path} {denoiser.prediction} {denoiser.sigma_data}".encode())
    for name, value in denoiser.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash(folder: str, of_file: Callable[[Path], str]) -> str:
    """Return the SHA-256 over the names and the hashes of a teacher's files."""
    root = Path(folder)
    weights = [*root.glob("*.safetensors"), *(root / "unet").rglob("*")]
    files = [root / DESCRIPTION, *sorted(file for file in weights if file.is_file())]
    if not files[0].exists():
        files = denoiser_files(root)
    lines = [f"{file.relative_to(root)} {of_file(file)}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _content_hash(file: Path) -> str:
    """Return the SHA-256 of a file, and of a config of diffusers that of its values."""
    of_bytes = sha256(file)
    if file.suffix != ".json" or file.name == DESCRIPTION:
        return of_bytes
    try:
        content: Any = json.loads(read_bounded(file))
        kept = {key: value for key, value in content.items() if key not in IRRELEVANT}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    except (OSError, ValueError, AttributeError, RecursionError):  # no JSON object, or a large one
        return of_bytes
