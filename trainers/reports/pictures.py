"""The pictures of a run, small enough for a page."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainers.checkpoints.checkpoint import is_moment
from trainers.data.pixels import Damaged, decode_picture, open_picture, quiet_pillow, read_file

MOST_PICTURES = 60  # pictures of a run in a report at most
ROOM = 6 * 2**20  # bytes of all pictures of a run at most, as a page holds them
SIDE = 1280  # pixels of a picture's longer side at most
WEBP_QUALITY = 85  # of WebP


@dataclass(frozen=True)
class Picture:
    """A picture as a page holds it.

    Attributes:
        images: The images of training at which it was drawn. None for one that was drawn at the end.
        address: A data URL.
        width: In pixels.
        height: In pixels.
    """

    images: int | None
    address: str
    width: int
    height: int


def read_pictures(folder: Path, most: int = MOST_PICTURES) -> tuple[list[Picture], int]:
    """Return pictures of samples/ in the order of their images, and the number of all that are there.

    The first and the last are among them, and the others are at equal distances.

    Args:
        folder: The run folder.
        most: The largest number of pictures.
    """
    files = sample_files(folder)
    chosen, found, room = evenly(files, most), [], ROOM
    for file in chosen:
        picture = read_picture(file, int(file.name[:12]), ROOM // max(1, len(chosen)))
        if picture is not None and len(picture.address) <= room:
            found.append(picture)
            room -= len(picture.address)
    return found, len(files)


def sample_files(folder: Path) -> list[Path]:
    """Return the pictures of samples/ in the order of their images: those of latents too."""
    try:
        names = sorted(file for file in (folder / "samples").iterdir() if file.suffix == ".png")
    except OSError:
        return []
    return [file for file in names if is_moment(file.name[:12])]


def read_picture(file: Path, images: int | None = None, room: int = ROOM) -> Picture | None:
    """Return a picture as a page holds it, or None if it is missing or damaged.

    Args:
        file: The picture.
        images: The images of training at which it was drawn.
        room: The bytes that it may take. A larger one is made smaller until it fits.
    """
    with suppress(Damaged), quiet_pillow():
        picture = decode_picture(open_picture(read_file(file))).convert("RGB")
        width, height = picture.size
        side = min(SIDE, max(width, height))
        while True:
            picture.thumbnail((side, side))
            stream = io.BytesIO()
            picture.save(stream, "WEBP", quality=WEBP_QUALITY)
            text = base64.b64encode(stream.getvalue()).decode()
            if len(text) <= room or side <= 64:
                return Picture(images, f"data:image/webp;base64,{text}", *picture.size)
            side = side * 2 // 3
    return None


def evenly(files: Sequence[Path], most: int) -> list[Path]:
    """Return at most `most` files at equal distances, with the first and the last."""
    if len(files) <= most:
        return list(files)
    return [files[round(at * (len(files) - 1) / (most - 1))] for at in range(most)]
