"""The decoding of picture files, and their conversion to 8-bit pixels."""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

# The most pixels of a picture, and the most bytes of its file. Both are checked before it is decoded.
MAX_PIXELS = 2**27
MAX_FILE_BYTES = 2**29
SIDEWAYS = (5, 6, 7, 8)  # the orientations in EXIF data whose height is the stored width
BACKGROUND = (255, 255, 255)
"""The colour (white) behind pictures with transparent parts."""

# Pillow would run Ghostscript for EPS and needs Windows for WMF. Of the others it reads the header alone.
REFUSED_FORMATS = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}


class Damaged(Exception):
    """A picture that cannot be read. The message says why, and goes after the picture's name."""


@cache
def picture_endings() -> frozenset[str]:
    """Return the endings of the files that count as pictures, such as `.png`: those that Pillow can decode."""
    from PIL import Image

    formats = picture_formats()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


@cache
def picture_formats() -> tuple[str, ...]:
    """Return the names of the formats that are decoded."""
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.OPEN if name not in REFUSED_FORMATS)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings, which name no file. What matters of them is an error here.

    The filters belong to the process: open it in one thread, around the others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_file(file: Path) -> bytes:
    """Return the content of a picture's file.

    Raises:
        Damaged: It is missing, too large, or no regular file.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            raise Damaged("is no regular file")
        check_bytes(status.st_size)
        return file.read_bytes()
    except FileNotFoundError:
        raise Damaged("is a broken link" if file.is_symlink() else "is missing") from None
    except OSError as error:
        raise Damaged(f"cannot be read ({os.strerror(error.errno) if error.errno else error})") from error


def check_bytes(count: int) -> None:
    """Raise Damaged when a picture's file has more than MAX_FILE_BYTES bytes."""
    if count > MAX_FILE_BYTES:
        raise Damaged(f"has {count:,} bytes; at most {MAX_FILE_BYTES:,} are read")


def open_picture(data: bytes) -> Any:
    """Return a PIL.Image.Image whose header is read, and whose pixels are not.

    Args:
        data: The content of the picture's file.

    Raises:
        Damaged: It is empty, too large, or no picture.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise Damaged("is empty (0 bytes)")
    try:
        picture = Image.open(io.BytesIO(data), formats=picture_formats())
    except UnidentifiedImageError:
        raise Damaged(f"is no picture that Pillow reads (it begins with {data[:8]!r})") from None
    except Image.DecompressionBombError:
        raise Damaged(f"has too many pixels; at most {MAX_PIXELS:,} are decoded") from None
    except Exception as error:  # a damaged file can raise anything
        raise Damaged(_damage(error)) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise Damaged(f"has {picture.width:,} x {picture.height:,} pixels; at most {MAX_PIXELS:,} are decoded")
    return picture


def decode_picture(picture: Any) -> Any:
    """Decode a picture from `open_picture` in full, and return it.

    Raises:
        Damaged: It is truncated or damaged, lacks its palette, or its values have no known range.
    """
    try:
        picture.load()
    except Exception as error:  # a damaged file can raise anything
        raise Damaged(_damage(error)) from error
    if picture.mode in ("P", "PA") and picture.palette is None:  # Pillow loses that of a picture inside an ICNS file
        raise Damaged("has no palette")
    check_range(picture)
    return picture


def _damage(error: Exception) -> str:
    return f"is damaged ({' '.join(str(error).split())[:150] or type(error).__name__})"


def check_range(picture: Any) -> None:
    """Raise Damaged when the values of a picture of more than 8 bits have no known range."""
    if not is_deep(picture):
        return
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if picture.mode == "F":
        if not (low >= 0 and high <= 1):  # false for NaN too
            raise Damaged(f"holds floats from {low:g} to {high:g}; they must lie in [0, 1]")
    elif low < 0 or high > 65535:
        raise Damaged(f"holds integers from {low:,} to {high:,}; pictures of 16 bits hold 0 to 65,535")
    elif 0 < high <= 255:  # scaled by 65,535 it would be black
        raise Damaged(f"holds integers from {low} to {high} in 16 or 32 bits; save it with 8 bits")


def changes_in_conversion(picture: Any) -> bool:
    """Return whether `to_8_bits` changes a picture, and not Pillow's own conversion alone."""
    return is_deep(picture) or picture.mode == "LAB" or is_transparent(picture)


def is_deep(picture: Any) -> bool:
    """Return whether the channels of a picture have more than 8 bits."""
    return picture.mode == "F" or str(picture.mode).startswith("I")


def is_transparent(picture: Any) -> bool:
    """Return whether a part of a picture is transparent."""
    if not picture.has_transparency_data or is_deep(picture):
        return False
    return bool(picture.convert("RGBA").getchannel("A").getextrema()[0] < 255)


def upright(picture: Any) -> Any:
    """Return a picture as it was seen, by the orientation in its EXIF data."""
    from PIL import ImageOps

    return picture if orientation(picture) is None else ImageOps.exif_transpose(picture)


def upright_size(picture: Any) -> tuple[int, int]:
    """Return height and width of a picture as it was seen. It need not be decoded."""
    width, height = picture.size
    return (width, height) if orientation(picture) in SIDEWAYS else (height, width)


def orientation(picture: Any) -> int | None:
    """Return the orientation in the EXIF data of a picture, from 1 to 8. None where there is none."""
    from PIL import ExifTags

    try:
        return cast(int | None, picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF data say nothing, and the pixels are good
        return None


def to_8_bits(picture: Any) -> Any:
    """Return a picture that Pillow converts to RGB and L without loss of range.

    Integers of 16 bits are scaled by 65,535 and floats by 1. Transparent parts show BACKGROUND. Others stay as they
    are.
    """
    from PIL import Image, ImageCms

    if is_deep(picture):
        largest = 1.0 if picture.mode == "F" else 65535.0
        return Image.fromarray(np.rint(np.asarray(picture).astype(np.float64) * (255 / largest)).astype(np.uint8))
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    if is_transparent(picture):
        behind = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
        return Image.alpha_composite(behind, picture.convert("RGBA")).convert("RGB")
    return picture


def to_pixels(picture: Any, mode: str, size: tuple[int, int], resize: str = "lanczos") -> Tensor:
    """Return a picture, upright, cropped in the middle and resized, as uint8 [C, H, W].

    Args:
        picture: A PIL.Image.Image, decoded.
        mode: RGB or L.
        size: Height and width.
        resize: The method: `lanczos`, of the middle, or `adm` (`halve`), of the whole before it is cropped.
    """
    from PIL import Image

    picture, (height, width) = to_8_bits(upright(picture)).convert(mode), size
    if resize == "adm":
        picture = halve(picture, size)
    scale = min(picture.width / width, picture.height / height)
    crop = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (picture.width - crop[0]) // 2, (picture.height - crop[1]) // 2
    middle = picture.crop((left, top, left + crop[0], top + crop[1]))
    if crop != (width, height):
        middle = middle.resize((width, height), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(middle))
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1)


def halve(picture: Any, size: tuple[int, int]) -> Any:
    """Return a picture resized as ADM does (arXiv:2105.05233), so that it covers `size` and has one side of it.

    Means of 2 x 2 pixels halve it while both of its sides are at least twice those of `size`. Bicubic interpolation
    does the rest. EDM2's ImageNet at 512 pixels is made so (`center-crop-dhariwal`).

    Args:
        picture: A PIL.Image.Image.
        size: Height and width.
    """
    from PIL import Image

    height, width = size
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    sides = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    return picture.resize(sides, Image.Resampling.BICUBIC)
