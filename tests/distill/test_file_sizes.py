"""Files whose header, index or description is out of proportion are refused before they are parsed."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from distill import UserError
from distill.pipeline_folder import load_model, load_stock_pipeline, read_json
from distill.saved_files import (
    MAX_BYTES,
    TooLarge,
    check_header,
    load_tensors,
    open_archive,
    read_bounded,
    save_tensors,
)
from distill.teachers import load_denoiser
from tests.limited import limited
from tests.tiny import tiny_denoiser
from trainers.data.pairs import read_description


def header(claimed: int, content: bytes = b"{}", size: int = 0) -> bytes:
    return struct.pack("<Q", claimed) + content.ljust(size)


def write_many(file: Path, count: int) -> None:
    """A header of many empty tensors, of about 55 bytes each."""
    entry = '"dtype":"U8","shape":[0],"data_offsets":[0,0]'
    content = ("{" + ",".join(f'"{i:x}":{{{entry}}}' for i in range(count)) + "}").encode()
    file.write_bytes(header(len(content), content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(2**40), "its header claims 1,099,511,627,776 bytes, the file has 10"),
        (header(2**64 - 1), "its header claims 18,446,744,073,709,551,615 bytes, the file has 10"),
        (header(0, b""), "it has no header"),
        (header(0, size=100), "it has no header"),
        (header(1, b"{"), "it has no header"),
        (header(3), "its header claims 3 bytes, the file has 10"),
        (header(MAX_BYTES + 1, size=MAX_BYTES + 1), f"its header has {MAX_BYTES + 1:,} bytes, more than {MAX_BYTES:,}"),
    ],
)
def test_a_header_is_bounded(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    for read in (check_header, load_tensors):
        with pytest.raises(TooLarge, match=f"^{message}$"):
            read(file)


@pytest.mark.parametrize("content", [b"", b"\x01", header(2, b"[]")])
def test_other_damage_is_named_by_safetensors(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(SafetensorError):
        load_tensors(file)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(0)}
    save_tensors(tensors, tmp_path / "a.safetensors")
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert set(loaded) == set(tensors) and all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "b.safetensors")


def directory(size: int, large: bool = False, place: int | None = None) -> bytes:
    """A zip file of a directory alone, whose end, in 64 bits if `large`, claims the size and the place of itself."""
    content = bytes(64)
    more = b""
    if large:
        more = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 0)
        more += struct.pack("<4sLQL", b"PK\6\7", 0, len(content) if place is None else place, 1)
    return content + more + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 2**32 - 1 if large else size, 0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (directory(MAX_BYTES + 1), f"its directory has {MAX_BYTES + 1:,} bytes, more than {MAX_BYTES:,}"),
        (directory(2**40, large=True), f"its directory has {2**40:,} bytes, more than {MAX_BYTES:,}"),
        (directory(64, large=True, place=0), "its directory does not lie at its end"),
        (directory(64), "Bad magic number for central directory"),
        (directory(65), "Bad offset for central directory|negative seek value -1"),
        (b"PK\3\4", "it is no zip file, or has more behind its end"),
        (directory(0) + b"x", "it is no zip file, or has more behind its end"),
        (b"", "it is no zip file, or has more behind its end"),
    ],
)
def test_the_directory_of_an_archive_is_bounded(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises((OSError, ValueError), match=f"^({message})"), open_archive(tmp_path / "a.zip"):
        pass


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("unable to mmap 1099511635899 bytes")])
def test_a_file_that_cannot_be_mapped_is_too_large(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole of a terabyte takes no space on the disk."""

    def refuse(*given: object) -> None:
        raise error

    save_tensors({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    monkeypatch.setattr("safetensors.safe_open", refuse)
    with pytest.raises(TooLarge, match=r"^it has \d+ bytes, which this process may not map$"):
        load_tensors(tmp_path / "a.safetensors")


def test_a_large_json_file_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "model_index.json"
    file.write_text(" " * (MAX_BYTES - 2) + "{}")
    assert json.loads(read_bounded(file)) == {}
    with file.open("wb") as stream:
        stream.truncate(2**26)
    with pytest.raises(TooLarge, match=f"^it has more than {MAX_BYTES:,} bytes$"):
        read_bounded(file)
    with pytest.raises(UserError, match=rf"model_index\.json' cannot be read: it has more than {MAX_BYTES:,} bytes$"):
        read_json(file)


def pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(2**26)


@pytest.mark.parametrize("damage", [pipe, sparse])
@pytest.mark.parametrize("name", ["denoiser.json", "network.safetensors"])
def test_a_teacher_with_such_a_file_is_one_line(damage: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    from distill.teachers import save_denoiser
    from tests.distill.teachers.test_edm import SONG, build

    save_denoiser(build(SONG), tmp_path / "teacher")
    (found,) = (tmp_path / "teacher").rglob(name)
    damage(found)
    with pytest.raises(UserError, match=name) as refused:
        load_denoiser(tmp_path / "teacher")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("damage", [pipe, sparse])
def test_pairs_with_such_a_file_are_one_line(damage: Callable[[Path], None], tmp_path: Path) -> None:
    damage(tmp_path / "pairs.json")
    with pytest.raises(
        UserError,
        match=r"^pairs: '.*pairs\.json' cannot be read: it (is no regular file|has more than 16,777,216 bytes)$",
    ):
        read_description(tmp_path)


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"]
)
def test_a_model_of_diffusers_with_such_a_file_is_one_line(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_denoiser().network.unet.save_pretrained(folder)  # type: ignore[union-attr, operator]
    load_model(folder, "UNet2DModel", "unet", ("UNet2DModel",))
    if name.endswith(".json"):
        sparse(folder / name)
    else:
        (folder / name).write_bytes(header(2**40))
    with pytest.raises(UserError, match=r"(its header claims|index\.json is no regular file of at most)"):
        load_model(folder, "UNet2DModel", "unet", ("UNet2DModel",))
    (tmp_path / "pipeline").mkdir()
    folder.rename(tmp_path / "pipeline" / "unet")
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(UserError, match=r"(its header claims|index\.json is no regular file of at most)"):
        load_stock_pipeline(tmp_path / "pipeline")


def test_a_header_takes_little_memory(tmp_path: Path) -> None:
    """The largest header that is read, and one that safetensors itself would read."""
    write_many(tmp_path / "largest.safetensors", 280_000)
    write_many(tmp_path / "larger.safetensors", 1_000_000)
    program = f"""
from pathlib import Path
from safetensors import safe_open
from distill.saved_files import check_header
from tests.limited import limit
limit(1024)
folder = Path({str(tmp_path)!r})
check_header(folder / "largest.safetensors")
with safe_open(folder / "largest.safetensors", "pt") as opened:
    print(len(opened.keys()))
try:
    check_header(folder / "larger.safetensors")
except OSError as error:
    print(error)
"""
    first, second = limited(program, 120).splitlines()
    assert first == "280000" and second.startswith("its header has 55,")
