"""Pictures as people hold them: every mode keeps its range, and a damaged file is named before training."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from distill.errors import UserError
from trainers.data import Images, pixels, scan
from trainers.data.pixels import changes_in_conversion, to_8_bits

RAMP = np.linspace(0, 65535, 64).reshape(8, 8)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written outside of tmp_path, nothing is asked of the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def folder(**pictures: Any) -> str:
    """Write pictures, or bytes, into the folder `set`. `a_png` is the file a.png."""
    Path("set").mkdir(exist_ok=True)
    for name, picture in pictures.items():
        file = Path("set") / name.replace("_", ".")
        file.write_bytes(picture) if isinstance(picture, bytes) else picture.save(file)
    return "set"


def load(path: str, **settings: Any) -> Tensor:
    data = Images(path, **{"resolution": 8, "label_column": None, **settings}).load()
    return data.images(torch.arange(data.count))


def refused(path: str = "set", **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        Images(path, **{"resolution": 8, "label_column": None, **settings}).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("a_png", RAMP.astype(np.uint16)),
        ("a_tiff", RAMP.astype(np.uint16)),
        ("b_tiff", RAMP.astype(">u2")),
        ("c_tiff", RAMP.astype(np.int32)),
        ("d_tiff", (RAMP / 65535).astype(np.float32)),
    ],
)
def test_deep_pictures_keep_their_range(name: str, array: Any, mode: str) -> None:
    images = load(folder(**{name: Image.fromarray(array)}), mode=mode)
    assert images.shape[1] == {"L": 1, "RGB": 3}[mode]
    expected = torch.from_numpy(np.rint(RAMP / 257)).float() / 127.5 - 1
    assert torch.equal(images[0], expected.expand_as(images[0]))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((8, 8), 1.5, np.float32), "holds floats from 1.5 to 1.5; they must lie in [0, 1]"),
        (np.full((8, 8), np.nan, np.float32), "holds floats from nan to nan; they must lie in [0, 1]"),
        (np.full((8, 8), -1, np.int32), "holds integers from -1 to -1; pictures of 16 bits hold 0 to 65,535"),
        (
            np.full((8, 8), 70000, np.int32),
            "holds integers from 70,000 to 70,000; pictures of 16 bits hold 0 to 65,535",
        ),
        (np.full((8, 8), 255, np.int32), "holds integers from 255 to 255 in 16 or 32 bits; save it with 8 bits"),
        (np.full((8, 8), 255, np.uint16), "holds integers from 255 to 255 in 16 or 32 bits; save it with 8 bits"),
    ],
)
def test_values_without_a_range_are_refused(array: Any, reason: str) -> None:
    message = refused(folder(a_tiff=Image.fromarray(array)))
    assert message.startswith(f"data: 1 of 1 pictures in 'set' cannot be read: set/a.tiff {reason}")


def rgba(alpha: int) -> Image.Image:
    return Image.new("RGBA", (8, 8), (255, 0, 51, alpha))


def palette(transparent: bool) -> bytes:
    picture, file = Image.new("P", (8, 8), 1), io.BytesIO()
    picture.putpalette([0, 0, 0, 255, 0, 51])
    picture.save(file, "PNG", **({"transparency": 1} if transparent else {}))
    return file.getvalue()


def test_a_palette_that_pillow_loses_is_told() -> None:
    with Image.open(io.BytesIO(palette(False))) as picture:
        message = refused(folder(a_icns=picture))
    assert message.startswith("data: 1 of 1 pictures in 'set' cannot be read: set/a.icns has no palette")


@pytest.mark.parametrize(
    ("name", "picture", "colour"),
    [
        ("opaque_png", rgba(255), (255, 0, 51)),
        ("clear_png", rgba(0), (255, 255, 255)),
        ("half_png", rgba(51), (255, 204, 214)),
        ("grey_png", Image.new("LA", (8, 8), (0, 51)), (204, 204, 204)),
        ("palette_png", palette(False), (255, 0, 51)),
        ("holes_png", palette(True), (255, 255, 255)),
        ("print_tiff", Image.new("CMYK", (8, 8), (0, 255, 204, 0)), (255, 0, 51)),
        ("print_jpg", Image.new("CMYK", (8, 8), (0, 0, 0, 255)), (0, 0, 0)),
        ("bits_png", Image.new("1", (8, 8), 1), (255, 255, 255)),
        ("lab_tiff", Image.new("LAB", (8, 8), (255, 128, 128)), (255, 255, 255)),
        ("a_avif", Image.new("RGB", (8, 8), (255, 255, 255)), (255, 255, 255)),
        ("a_webp", Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (255, 255, 255)),
        ("a_gif", Image.new("L", (8, 8), 51), (51, 51, 51)),
        ("a_PNG", rgba(255), (255, 0, 51)),
    ],
)
def test_every_mode_becomes_its_colour(name: str, picture: Any, colour: tuple[int, int, int]) -> None:
    """Transparent parts show white."""
    images = load(folder(**{name: picture}))
    assert ((images[0].mean((1, 2)) + 1) * 127.5).tolist() == pytest.approx(colour, abs=1)


def test_exif_data_turn_a_picture() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees to the right
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    image = load(folder(a_png=file.getvalue()))[0]
    assert (image[:, :, 4:] == 1).all() and (image[:, :, :4] == -1).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "P", "1", "YCbCr", "CMYK"])
def test_8_bit_pictures_keep_their_bits(kind: str, mode: str) -> None:
    """They become what Pillow's own conversion makes of them, as in earlier versions."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).convert(kind)
    assert not changes_in_conversion(picture) and to_8_bits(picture) is picture


def png(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header states a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    file, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def test_adms_resizing_halves_by_means_then_interpolates_and_crops() -> None:
    """8 x 10 pixels become 4 x 5 means, of which 4 rows are the middle; 9 x 9 stay, for the bicubic filter."""
    values = np.random.default_rng(0).integers(0, 256, (10, 8), dtype=np.uint8)
    across = np.floor(values.reshape(10, 4, 2).mean(2) + 0.5)  # Pillow rounds after each direction, halves up
    means = np.floor(across.reshape(5, 2, 4).mean(1) + 0.5)
    found = pixels.to_pixels(Image.fromarray(values), "L", (4, 4), "adm")
    assert np.array_equal(found[0], means[:4])
    odd = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 9), dtype=np.uint8))
    expected = np.asarray(odd.resize((5, 5), Image.Resampling.BICUBIC))
    assert np.array_equal(pixels.to_pixels(odd, "L", (5, 5), "adm")[0], expected)
    wide = pixels.to_pixels(Image.fromarray(np.zeros((30, 50), np.uint8)), "RGB", (7, 12), "adm")
    assert wide.shape == (3, 7, 12) and not wide.any()


def test_the_hash_of_pictures_is_kept(tmp_path: Path) -> None:
    """A change of bytes that leaves size and time is seen with `verify` alone; a later time is seen always."""
    file = tmp_path / "pictures" / "0.bmp"
    file.parent.mkdir()

    def hashed(grey: int, later: int = 0, **settings: Any) -> str:
        Image.new("L", (8, 8), grey).save(file)
        os.utime(file, ns=(10**18 + later, 10**18 + later))
        return Images(str(file.parent), 8, "L", label_column=None, **settings).load().pixels_hash()

    first = hashed(7)
    assert hashed(9) == first != hashed(9, verify=True)
    assert hashed(9, later=1) == hashed(9, verify=True) and hashed(7, later=2) == first
    kept = [place for place in Path("cache/distill_scans").glob("*.json") if "sha256" in place.read_text()]
    for place in kept:
        place.write_text('{"sha256": "short"}')
    assert hashed(7, later=2) == first  # one that is damaged does not count


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (jpeg()[:-500], "is damaged (image file is truncated"),
        (jpeg()[:20], "is no picture that Pillow reads"),
        (b"", "is empty (0 bytes)"),
        (b"<!DOCTYPE html><html>", "is no picture that Pillow reads (it begins with b'<!DOCTYP')"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "is no picture that Pillow reads"),
        (png(60_000, 60_000), "has too many pixels; at most 134,217,728 are decoded"),
        (png(12_000, 12_000), "has 12,000 x 12,000 pixels; at most 134,217,728 are decoded"),
        (png(8, 8)[:60], "is damaged ("),
    ],
)
def test_a_damaged_picture_is_named_or_skipped(content: bytes, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    good = {f"{number}_png": Image.new("RGB", (8, 8), (number,) * 3) for number in range(3)}
    path = folder(**good, **{"1b_jpg": content})
    message = refused()
    assert message.startswith(f"data: 1 of 4 pictures in 'set' cannot be read: set/1b.jpg {reason}")
    assert message.endswith(" (data.damaged: skip leaves them out)")
    images = load(path, damaged="skip")
    assert ((images[:, 0, 0, 0] + 1) * 127.5).tolist() == pytest.approx([0, 1, 2])
    assert "data: skipped 1 of 4 pictures in 'set': set/1b.jpg" in capsys.readouterr().err


def test_what_is_no_file_is_named() -> None:
    path = folder(a_png=Image.new("L", (8, 8)))
    os.mkfifo("set/b.png")
    Path("set/c.png").symlink_to("nowhere.png")
    assert refused(path).startswith(
        "data: 2 of 3 pictures in 'set' cannot be read: set/b.png is no regular file; set/c.png is a broken link"
    )


def test_labels_and_prompts_follow_skipped_pictures() -> None:
    for kind in ("ape", "bee"):
        Path("zoo", kind).mkdir(parents=True)
        Image.new("L", (8, 8)).save(f"zoo/{kind}/1.png")
    Path("zoo/ape/0.png").write_bytes(b"")
    data = Images("zoo", resolution=8, damaged="skip").load()
    assert data.labels is not None and data.labels.tolist() == [0, 1] and data.class_names == ("ape", "bee")
    Path("zoo/bee/1.png").write_bytes(b"")  # all pictures of a class
    data = Images("zoo", resolution=8, damaged="skip").load()
    assert (data.count, data.classes) == (1, 2)
    Path("zoo/ape/1.png").write_bytes(b"")
    assert refused("zoo", damaged="skip").startswith("data: 3 of 3 pictures in 'zoo' cannot be read: ")


def test_a_scan_is_kept_until_a_file_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    path, looked = folder(a_png=Image.new("L", (8, 8)), b_png=Image.new("L", (8, 8))), []
    look = scan._look_at
    monkeypatch.setattr(scan, "_look_at", lambda *args: (looked.append(1), look(*args))[1])
    for expected in (2, 2):
        load(path)
        assert len(looked) == expected
    (kept,) = Path("cache/distill_scans").glob("*.json")
    kept.write_text("[[[")  # a damaged result is no result
    load(path)
    assert len(looked) == 4
    folder(b_png=b"no picture")
    assert "set/b.png is no picture" in refused(path)
    assert len(looked) == 6


@pytest.mark.parametrize("zipped", [False, True])
def test_a_scan_is_of_one_place(zipped: bool) -> None:
    """Another folder or archive is looked at, although its names, sizes and times are the same."""
    for place, content in (("one", 0), ("two", 255)):
        data = io.BytesIO()
        Image.fromarray(np.full((8, 8), content, dtype=np.uint8)).save(data, "bmp")
        good = data.getvalue()
        Path(place).mkdir()
        file = Path(place, "a.bmp")
        file.write_bytes(good if place == "one" else b"?" * len(good))
        os.utime(file, (1e9, 1e9))
        if zipped:
            with zipfile.ZipFile(f"{place}.zip", "w") as archive:
                archive.write(file, "a.bmp")
            os.utime(f"{place}.zip", (1e9, 1e9))
    end = ".zip" if zipped else ""
    assert load(f"one{end}").shape == (1, 3, 8, 8)
    assert "is no picture that Pillow reads" in refused(f"two{end}")


def test_damage_after_the_scan_is_named() -> None:
    data = Images(folder(a_png=Image.new("L", (8, 8))), resolution=8, label_column=None).load()
    folder(a_png=b"")
    with pytest.raises(UserError, match=r"^data: set/a.png is empty \(0 bytes\)$"):
        data.images(torch.tensor([0]))


def test_a_read_only_cache_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/proc/nothing"))
    assert len(load(folder(a_png=Image.new("L", (8, 8))))) == 1


def test_the_limits_are_those_of_the_documentation() -> None:
    assert (pixels.MAX_PIXELS, pixels.MAX_FILE_BYTES, pixels.BACKGROUND) == (2**27, 2**29, (255, 255, 255))
