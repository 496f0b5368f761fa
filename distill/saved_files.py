"""Files that other libraries write, with the permissions that the umask gives to new files.

safetensors writes each file under a private temporary name, and so leaves it readable by its owner alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Args:
        tensors: The tensors by name, each contiguous and with memory of its own.
        file: The file.
        metadata: Texts for the header of the file.

    Raises:
        SafetensorError: The file cannot be written.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), file, metadata)
    set_permissions(file)


def set_permissions(place: Path) -> None:
    """Give a file, or all files in a folder, the permissions that the umask gives to new files."""
    umask = _umask()
    for file in place.rglob("*") if place.is_dir() else (place,):
        if file.is_file() and not file.is_symlink():
            file.chmod(0o666 & ~umask)


def _umask() -> int:
    """Return the umask of this process."""
    try:  # os.umask only reads by setting, and files that another thread makes in between would be open to everyone
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration):
        umask = os.umask(0o077)
        os.umask(umask)
        return umask
