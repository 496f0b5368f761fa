"""Hostile data: pictures of every kind, tables of parquet, and zip archives."""

from __future__ import annotations

import json
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile.mutate import VALUES, damaged, damaged_json
from tests.hostile.trees import LIMIT
from tests.hostile.trial import Call, Place
from tests.hostile.valid import picture, png

MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
    "I",
    "F",
    "I;16",
    "I;16B",
    "La",
)
FORMATS = (
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "ICO",
    "PPM",
    "TGA",
    "JPEG2000",
    "PCX",
    "SGI",
    "AVIF",
    "DDS",
    "ICNS",
    "EPS",
    "PDF",
    "IM",
    "MPO",
    "SPIDER",
    "XBM",
)
ENDINGS = (
    "png",
    "jpg",
    "jpeg",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "webp",
    "ppm",
    "tga",
    "jp2",
    "avif",
    "ico",
    "dds",
    "eps",
    "pdf",
    "fli",
    "wmf",
    "psd",
)


def of_a_mode(draw: Random) -> tuple[bytes, str]:
    """Return a picture of a random mode in a random format, and both in words."""
    mode, size, stream = draw.choice(MODES), draw.choice([1, 7, 8, 33]), BytesIO()
    made = picture(draw.randrange(100), size)
    try:
        made = (
            numbers(mode, size, draw)
            if mode in ("I", "F", "I;16", "I;16B")
            else made.convert(draw.choice(["RGB", "L", "RGBA"])).convert(mode)
        )
    except ValueError:
        mode = made.mode
    options: dict[str, Any] = {}
    if mode == "P" and draw.random() < 0.5:
        options["transparency"] = draw.choice([0, 255, bytes(range(256))])
    if draw.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = draw.choice([1, 3, 6, 8, 0, 9, 65535])
        options["exif"] = exif
    if draw.random() < 0.2:
        options |= {"save_all": True, "append_images": [made] * 3}
    shape = draw.choice(FORMATS)
    try:
        with warnings.catch_warnings(action="ignore"):
            made.save(stream, shape, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SystemError, struct.error):
        stream = BytesIO()
        picture(0, size).save(stream, shape := "PNG")
    return stream.getvalue(), f"{mode} as {shape}"


def numbers(mode: str, size: int, draw: Random) -> Image.Image:
    """Return a picture of 16 or 32 bits."""
    if mode == "F":
        values = np.full((size, size), draw.choice([0.5, 1.0, 255.0, -1.0, 1e30, np.nan, np.inf]), np.float32)
        values[0, 0] = 0.25
        return Image.fromarray(values)
    if mode == "I":
        return Image.fromarray(np.full((size, size), draw.choice([0, 255, 65535, -1, 2**31 - 1]), np.int32))
    return Image.fromarray(np.full((size, size), 40_000, "<u2"))


def png_bomb(
    width: int, height: int, depth: int = 8, colour: int = 0, filled: bool = True, row: bytes | None = None
) -> bytes:
    """Return a PNG of one colour that claims a size, with or without all of its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = row or bytes(1 + (width * depth * (3 if colour == 2 else 1) + 7) // 8)
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(row) for _ in range(min(height, 3000 if filled else 1))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def once(place: Place, name: str, make: Callable[[], bytes]) -> bytes:
    """Return a content that takes seconds to make, from a file that all inputs share."""
    file = place.valid.parent / "bombs" / name
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(make())
    return file.read_bytes()


def odd(draw: Random, place: Place) -> tuple[bytes, str]:
    """Return what is no good picture, in words too."""
    size = draw.choice([60_000, 20_000, 9_000])
    kinds: dict[str, Callable[[], bytes]] = {
        "bomb": lambda: once(place, f"{size}.png", lambda: png_bomb(size, size)),
        "bomb of one bit": lambda: png_bomb(60_000, 60_000, 1),
        "claim": lambda: png_bomb(60_000, 60_000, 8, 2, filled=False),
        "largest claim": lambda: png_bomb(2**31 - 1, 2**31 - 1, filled=False, row=b"0"),
        "flat": lambda: png_bomb(100_000, 1),
        "none by none": lambda: png_bomb(0, 0),
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
        "text chunk": lambda: once(place, "text.png", text_bomb),
        "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/tmp/x) (w) file\n%%EOF\n",
        "GIF of many frames": lambda: (
            b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(768) + b"," * 50
        ),
        "TIFF": lambda: b"II*\0" + struct.pack("<I", draw.choice([8, 2**31, 0])) + draw.randbytes(60),
        "BMP": lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, *[0] * 6),
    }
    name = draw.choice(list(kinds))
    return kinds[name](), name


def text_bomb() -> bytes:
    """Return a PNG with a compressed text of 300 MB."""
    packer = zlib.compressobj(9)
    content = b"Comment\0\0" + b"".join(packer.compress(bytes(2**20)) for _ in range(300)) + packer.flush()
    made = png(0)
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    return made[:33] + chunk + made[33:]


def hostile_bytes(draw: Random, place: Place) -> tuple[bytes, str]:
    """Return the bytes of a picture of any kind, good or bad."""
    kind = draw.choice(["mode"] * 3 + ["odd"] * 2 + ["damaged"] * 2)
    if kind == "odd":
        return odd(draw, place)
    made, what = of_a_mode(draw)
    if kind == "mode":
        return made, what
    made, how = damaged(made, draw)
    return made, f"{what}, {how}"


def images(draw: Random, place: Place) -> Call:
    """Prepare a folder of pictures of which one or all are hostile."""
    folder, found = place.take("pictures"), []
    for number in range(draw.choice([1, 1, 4, 12])):
        content, what = hostile_bytes(draw, place)
        (folder / "abc"[number % 3] / f"{number:02d}x.{draw.choice(ENDINGS)}").write_bytes(content)
        found.append(what)
    return data_call(place, draw, folder, f"pictures: {', '.join(found)}")


def data_call(place: Place, draw: Random, data: Path, what: str, *more: str) -> Call:
    """Return a call of a command that reads pictures."""
    recipe = draw.choice(["student", "teacher", "classifier"])
    changes = [f"data.path={data}", f"data.damaged={draw.choice(['skip', 'refuse'])}", *more]
    changes += draw.choice([[], [], ["data.label_column=null"]]) if recipe != "classifier" else []
    command = {"student": "train"}.get(recipe, recipe)
    limit = [] if recipe == "classifier" else LIMIT
    return Call(
        [command, str(place.valid / f"{recipe}.yaml"), *changes, "--folder", str(place.out / "run"), *limit], [], what
    )


def column(draw: Random, place: Place, count: int) -> tuple[Any, str]:
    """Return a column of a table, of a random type, and the type in words."""
    import pyarrow as pa

    kinds: dict[str, Callable[[], Any]] = {
        "raw bytes": lambda: pa.array([png(n) for n in range(count)]),
        "structs": lambda: pa.array([{"bytes": png(n), "path": None} for n in range(count)]),
        "paths": lambda: pa.array(
            [{"bytes": None, "path": draw.choice(["/etc/passwd", "../x.png", "/dev/zero"])}] * count
        ),
        "odd structs": lambda: pa.array([{"a": n, "b": {"c": [n]}} for n in range(count)]),
        "hostile": lambda: pa.array(
            [{"bytes": hostile_bytes(draw, place)[0], "path": f"{n}.png"} for n in range(count)]
        ),
        "nulls": lambda: pa.nulls(count),
        "some nulls": lambda: pa.array([None if n % 2 else png(n) for n in range(count)]),
        "numbers": lambda: pa.array(range(count)),
        "floats": lambda: pa.array([draw.choice([0.5, 1.0, float("nan"), float("inf"), 1e308]) for _ in range(count)]),
        "large": lambda: pa.array([draw.choice([0, 2**62, -1]) for _ in range(count)]),
        "unsigned": lambda: pa.array([2**64 - 1] * count, pa.uint64()),
        "lists": lambda: pa.array([[n] * n for n in range(count)]),
        "pixels": lambda: pa.array(np.zeros((count, 192), np.uint8).tolist()),
        "words": lambda: pa.array([draw.choice(["", "x", "a\nb", "\0", "é" * 5000]) for _ in range(count)]),
        "decimals": lambda: pa.array(range(count)).cast(pa.decimal128(25, 2)),
        "times": lambda: pa.array(range(count), pa.timestamp("ns")),
        "dictionary": lambda: pa.array([draw.choice("abc") for _ in range(count)]).dictionary_encode(),
        "truth": lambda: pa.array([n % 2 == 0 for n in range(count)]),
        "binary numbers": lambda: pa.array([bytes(4)] * count, pa.binary(4)),
        "mapping": lambda: pa.array([[("a", 1)]] * count, pa.map_(pa.string(), pa.int64())),
        "half": lambda: pa.array(np.zeros(count, np.float16)),
    }
    name = draw.choice(list(kinds))
    return kinds[name](), name


def parquet(draw: Random, place: Place) -> Call:
    """Prepare a table of other columns, or a damaged one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, what = place.given / "table.parquet", "damaged"
    if draw.random() < 0.35:
        content, what = damaged((place.valid / "table.parquet").read_bytes(), draw)
        file.write_bytes(content)
    else:
        count, columns = draw.choice([0, 1, 12, 12, 12]), {}
        table = pq.read_table(place.valid / "table.parquet").slice(0, count)
        columns = {name: table[name] for name in table.column_names}
        chosen = draw.choice(["image", "label", "text"])
        columns[chosen], kind = column(draw, place, count)
        what = f"{chosen}: {kind}, {count} rows"
        metadata = {"huggingface": draw.choice(["{", '{"info": {"features": {"image": {"_type": "X"}}}}', "[" * 5000])}
        made = pa.table(columns)
        if draw.random() < 0.2:
            made, what = made.replace_schema_metadata(metadata), f"{what}, metadata {metadata['huggingface']:.30}"
        pq.write_table(made, file, compression=draw.choice(["snappy", "gzip", "none", "zstd"]))
    if "text" in what or draw.random() < 0.2:
        command = [
            "train",
            str(place.valid / "sd.yaml"),
            f"data={json.dumps({'name': 'prompts', 'path': str(file), 'column': 'text'})}",
        ]
        return Call([*command, "images=8", "--folder", str(place.out / "run"), *LIMIT], [], what)
    return data_call(place, draw, file, what)


def edm_zip(draw: Random, place: Place) -> Call:
    """Prepare a zip archive like those of EDM."""
    file, what = place.given / "edm.zip", draw.choice([*MEMBERS, *["bomb", "damaged", "dataset.json"] * 2])
    if what == "bomb":
        name = draw.choice(["00000/big.png", "00000/big.bmp", "big/dataset.json"])
        file.write_bytes(once(place, f"{name.replace('/', '-')}.zip", lambda: _bombs(place, name)))
        return data_call(place, draw, file, f"bomb {name}")
    valid = (place.valid / "edm.zip").read_bytes()
    if what == "damaged":
        content, what = damaged(valid, draw)
        file.write_bytes(content)
        return data_call(place, draw, file, what)
    with zipfile.ZipFile(BytesIO(valid)) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "dataset.json" and what == "dataset.json":
                content, how = labels(content, draw)
                what = f"dataset.json: {how}"
            target.writestr(name, content)
        if what in MEMBERS:
            with warnings.catch_warnings(action="ignore"):
                MEMBERS[what](target, place, draw)
    if what == "encrypted":
        content = bytearray(file.read_bytes())
        for at in range(len(content) - 10):
            if content[at : at + 4] in (b"PK\x01\x02", b"PK\x03\x04"):
                content[at + (8 if content[at + 2] == 1 else 6)] |= 1
        file.write_bytes(bytes(content))
    return data_call(place, draw, file, what)


def labels(content: bytes, draw: Random) -> tuple[bytes, str]:
    """Return a dataset.json with another label, or other JSON."""
    if draw.random() < 0.5:
        return damaged_json(content, draw)
    listed, value = json.loads(content)["labels"], draw.choice(VALUES)
    listed[draw.randrange(len(listed))][1] = value if value != 10**400 else 2**70
    return json.dumps({"labels": listed}).encode(), f"label {value!r:.60}"


def _link(target: zipfile.ZipFile, place: Place, draw: Random) -> None:
    info = zipfile.ZipInfo("00000/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    target.writestr(info, draw.choice(["/etc/passwd", "../../guard/x.png", "/dev/zero"]))


def _bombs(place: Place, name: str) -> bytes:
    """Return a zip archive with a member of 2 GB of zeros, which packs to 2 MB."""
    stream = BytesIO((place.valid / "edm.zip").read_bytes())
    with (
        zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
        target.open(name, "w") as member,
    ):
        head = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 2**31, 0, 0, 54, 40, 30_000, 30_000, 1, 24, *[0] * 6)
        member.write(head if name.endswith("bmp") else b"")
        for _ in range(127):
            member.write(bytes(2**24))
    return stream.getvalue()


MEMBERS: dict[str, Callable[[zipfile.ZipFile, Place, Random], object]] = {
    "traversal": lambda target, place, draw: target.writestr("../guard/x.png", png(1)),
    "deep traversal": lambda target, place, draw: target.writestr(
        "00000/" + "../" * 12 + f"{place.guard}/x.png", png(1)
    ),
    "absolute": lambda target, place, draw: target.writestr(f"{place.guard}/x.png", png(1)),
    "backslashes": lambda target, place, draw: target.writestr("..\\guard\\x.png", png(1)),
    "link": _link,
    "twice": lambda target, place, draw: [target.writestr("00000/img00000000.png", png(n)) for n in (1, 2)],
    "two descriptions": lambda target, place, draw: target.writestr(
        "dataset.json", draw.choice(["{", '{"labels": []}'])
    ),
    "encrypted": lambda target, place, draw: target.writestr("00000/e.png", png(1)),
    "odd names": lambda target, place, draw: target.writestr(
        draw.choice(["a\nb.png", "\x1b[31m.png", "a" * 60_000 + ".png", " .png", ".png", "/.png"]), png(1)
    ),
    "many": lambda target, place, draw: [target.writestr(f"00001/{n}.png", b"") for n in range(20_000)],
    "zip in zip": lambda target, place, draw: target.writestr("inner.zip", b"PK\5\6" + bytes(18)),
    "folder as file": lambda target, place, draw: target.writestr("00000/img00000000.png/x.png", png(1)),
    "picture": lambda target, place, draw: target.writestr(
        f"00001/x.{draw.choice(ENDINGS)}", hostile_bytes(draw, place)[0]
    ),
    "two labels": lambda target, place, draw: target.writestr("inner/dataset.json", '{"labels": [["x", 1]]}'),
}
READERS = {"images": images, "parquet": parquet, "zip archives": edm_zip}
