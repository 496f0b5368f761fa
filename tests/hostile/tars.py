"""Hostile tar archives."""

from __future__ import annotations

import tarfile
from io import BytesIO
from random import Random

from tests.hostile.mutate import damaged
from tests.hostile.pictures import data_call
from tests.hostile.trial import Call, Place
from tests.hostile.valid import png


def tar_shard(draw: Random, place: Place) -> Call:
    """Prepare a tar archive like WebDataset's, with a header that lies, or damaged."""
    file, what = place.given / "shard.tar", draw.choice([*LIES, "name", "damaged"])
    stream, form = BytesIO(), draw.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=stream, mode="w", format=form) as target:
        for number in range(8):
            for name, content in ((f"{number}.png", png(number)), (f"{number}.cls", str(number % 4).encode())):
                entry = tarfile.TarInfo(draw.choice(NAMES) if what == "name" and number == 3 else name)
                entry.size = len(content)
                target.addfile(entry, BytesIO(content))
    content = stream.getvalue()
    if what in LIES:
        at, header = (
            draw.choice([at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]),
            LIES[what],
        )
        lie = bytearray(content[at : at + 512])
        lie[header[0] : header[0] + len(header[1])] = header[1]
        lie[148:156] = b" " * 8  # the checksum counts its own place as spaces
        lie[148:156] = f"{sum(lie):06o}\0 ".encode()
        content = content[:at] + bytes(lie) + content[at + 512 :]
    elif what == "damaged":
        content, what = damaged(content, draw)
    file.write_bytes(content)
    return data_call(place, draw, file, what)


LIES: dict[str, tuple[int, bytes]] = {  # what: (the place in a header, its bytes)
    "negative size": (124, b"\xff" * 12),
    "size of 8 GiB": (124, b"77777777777\0"),
    "size of 2^62": (124, b"\x80\0\0\0\x40" + bytes(7)),
    "long name": (156, b"L"),
    "attributes": (156, b"x"),
    "attributes for all": (156, b"g"),
    "sparse": (156, b"S"),
    "link": (156, b"2"),
    "device": (156, b"3"),
}
NAMES = [
    "../guard/x.png",
    "/etc/x.png",
    "a\nb.png",
    "\x1b[31m.png",
    "a" * 60_000 + ".png",
    ".png",
    "/.png",
    "a/" * 500 + "x.png",
]
READERS = {"tar archives": tar_shard}
