"""Files have the permissions that the umask says, no more and no less."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distill.metrics import Classifier
from distill.saved_files import copy_file, save_tensors, set_permissions, tensor_bytes
from distill.teachers import save_denoiser
from distill.tiny.networks import network
from tests.tiny import ROOT, tiny_denoiser


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask of this process."""
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def modes(folder: Path) -> set[int]:
    """Return the permissions of all files below a folder."""
    found = {stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*") if file.is_file()}
    assert found
    return found


def test_tensors_have_the_permissions_of_the_umask(umask: int, tmp_path: Path) -> None:
    save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {"b": "c"})
    assert modes(tmp_path) == {0o666 & ~umask}
    assert os.umask(umask) == umask


def test_a_link_and_what_it_points_to_stay(umask: int, tmp_path: Path) -> None:
    (tmp_path / "other").touch(0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "other")
    set_permissions(tmp_path / "folder")
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o600 & ~umask


def test_teachers_and_classifiers_are_readable(umask: int, tmp_path: Path) -> None:
    Classifier((1, 8, 8), 10, width=16).save(tmp_path / "classifier")
    save_denoiser(tiny_denoiser(), tmp_path / "unet")
    save_denoiser(network("edm"), tmp_path / "edm")
    assert modes(tmp_path) == {0o666 & ~umask}


def calls(file: Path) -> set[str]:
    """Return the names of the functions and methods that a file calls."""
    called = [node.func for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
    return {
        function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "") for function in called
    }


def test_the_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16)}
    save_tensors(tensors, tmp_path / "file")
    assert tensor_bytes(tensors) == (tmp_path / "file").read_bytes()
    assert tensor_bytes({"b": tensors["b"].mT}) == tensor_bytes({"b": tensors["b"].mT.contiguous()})


def test_nothing_else_writes_safetensors() -> None:
    """A new writer of tensors has to go through the one helper, and `save_pretrained` is followed by it."""
    for package in ("distill", "trainers", "launch"):
        for file in (ROOT / package).rglob("*.py"):
            called = calls(file)
            # `save_tensors` leaves a file of a random name at a kill, which only a staging folder takes away with it.
            assert not {"save_tensors", "atomic_file"} <= called or "atomic_folder" in called, file
            assert "save_file" not in called or file.name == "saved_files.py", file
            if "save_pretrained" in called and "export" not in file.parts:  # of an export, all files are set at the end
                assert "set_permissions" in called, file


def test_a_copy_keeps_holes_and_is_of_a_regular_file(tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    for size in (0, 1, 2**24 + 3):
        source.write_bytes(content := bytes(range(251)) * (size // 251 + 1))
        copy_file(source, copy)
        assert copy.read_bytes() == content
    with source.open("r+b") as stream:
        stream.truncate(2**40)
        stream.seek(2**39)
        stream.write(b"x")
    copy_file(source, copy)
    assert copy.stat().st_size == 2**40 and copy.stat().st_blocks * 512 < 2**26
    with copy.open("rb") as stream:
        stream.seek(2**39 - 1)
        assert stream.read(3) == b"\0x\0"
    for odd in (Path("/dev/full"), tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            copy_file(odd, copy)
