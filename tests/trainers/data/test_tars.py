"""Tar archives, such as WebDataset's shards: pictures with the labels and words beside them, and headers that lie."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from distill.errors import UserError
from tests.trainers.data.test_folders import greys, labels, picture, refused
from trainers.data import Dataset, Images
from trainers.data.tars import list_tars


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def write_tar(name: str, members: Mapping[str, bytes | str], **changes: Any) -> str:
    """Write an archive. `changes` are attributes of the last member's header."""
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(name, "w") as archive:
        for number, (member, content) in enumerate(members.items()):
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            if number == len(members) - 1:
                for key, value in changes.items():
                    setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(data))
    return name


def sample(key: str, grey: int, label: object, text: str, **more: object) -> dict[str, bytes | str]:
    told = {"caption": text.upper(), **more}
    return {f"{key}.png": picture(grey), f"{key}.cls": str(label), f"{key}.txt": text, f"{key}.json": json.dumps(told)}


def load(path: str, **settings: Any) -> Dataset:
    return Images(path, resolution=8, **settings).load()


@pytest.mark.parametrize("path", ["shards/a-000.tar", "shards/a-*.tar", "shards"])
def test_shards_of_web_dataset(path: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Labels, captions and the keys of .json are columns, whatever the order of members; names may repeat in shards."""
    first = sample("000", 3, 2, "a cat\n") | sample("./001", 1, 0, "a dog")
    write_tar("shards/a-000.tar", dict(reversed([*first.items(), ("001.npy", "left out")])))
    write_tar("shards/a-001.tar", sample("000", 7, 1, "two\nlines"))
    several = path != "shards/a-000.tar"
    data = load(path)
    assert greys(data) == [3, 1, 7][: 2 + several] and labels(data) == [2, 0, 1][: 2 + several]
    assert "001.npy" in capfd.readouterr().err
    prompts = load(path, prompt_column="text").prompts
    assert prompts is not None and list(prompts) == ["a cat", "a dog", "two\nlines"][: 2 + several]
    prompts = load(path, prompt_column="caption").prompts
    assert prompts is not None and list(prompts) == ["A CAT\n", "A DOG", "TWO\nLINES"][: 2 + several]


def test_an_archive_is_read_as_its_folder_is(tmp_path: Path) -> None:
    """Folders are classes, and a picture has the pixels of its file."""
    files = {f"set/{kind}/{number}.png": picture(10 * number) for number in range(3) for kind in ("b", "a")}
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    with tarfile.open("set.tar", "w") as archive:
        archive.add("set", ".")
    folder, tar = load("set"), load("set.tar")
    assert (greys(tar), labels(tar), tar.class_names) == (greys(folder), labels(folder), ("a", "b"))
    assert tar.digest == folder.digest and tar.pixels_hash() == folder.pixels_hash()


def test_shards_are_splits_by_name() -> None:
    for name, grey in (("train-0", 1), ("train-1", 2), ("val-0", 3)):
        write_tar(f"set/{name}.tar", {"0.png": picture(grey), "1.png": picture(grey)})
    assert greys(load("set", label_column=None)) == [1, 1, 2, 2]
    assert greys(load("set", label_column=None, split="val")) == [3, 3]
    assert greys(load("set", label_column=None, split="train[1:3]")) == [1, 2]
    assert refused("set", split="test").startswith("data.split: 'set' has the splits train, val")


def test_a_key_ends_at_its_first_dot() -> None:
    write_tar("a.tar", {"x/1.left.png": picture(1), "x/1.cls": "cat", "y.d/1.png": picture(2), "y.d/1.cls": "bee"})
    data = load("a.tar")
    assert (data.class_names, labels(data)) == (("bee", "cat"), [1, 0])


@pytest.mark.parametrize("archive", [False, True])
def test_captions_beside_pictures(archive: bool) -> None:
    files = {
        "set/a.b.png": picture(1),
        "set/a.b.txt": b"\xef\xbb\xbfone\n",
        "set/c.png": picture(2),
        "set/c.TXT": b"two",
    }
    Path("set").mkdir()
    for name, content in files.items():
        Path(name).write_bytes(content)
    if archive:
        with zipfile.ZipFile("set.zip", "w") as target:
            for name in files:
                target.write(name, name.removeprefix("set/"))
    path = "set.zip" if archive else "set"
    prompts = load(path, prompt_column="text").prompts
    assert prompts is not None and list(prompts) == ["one", "two"]
    assert load(path, label_column=None).count == 2


def test_words_that_are_missing_or_damaged_are_named() -> None:
    write_tar("a.tar", sample("0", 1, 0, "a") | {"1\n.png": picture(2)})
    message = refused("a.tar", label_column=None, prompt_column="text")
    assert message == "data: 1 of 2 pictures in 'a.tar' have no .txt beside them, such as 1?.png"
    write_tar("b.tar", {"0.png": picture(1), "0.txt": b"\xff"})
    assert refused("b.tar", prompt_column="text").startswith("data: cannot read 'b.tar/0.txt': 'utf-8' codec")
    for content in ("[1]", "{", "[" * 100_000):
        write_tar("c.tar", {"0.png": picture(1), "0.json": content})
        assert refused("c.tar").startswith("data: cannot read 'c.tar/0.json': ")


def cut(name: str, size: int) -> str:
    content = Path(name).read_bytes()
    Path(name).write_bytes(content[:size])
    return name


def header(**changes: Any) -> Callable[[], str]:
    """An archive whose last header lies."""

    def write() -> str:
        write_tar("a.tar", {"0.png": picture(1), "1.png": b""})
        entry = tarfile.TarInfo("2.png")
        for key, value in changes.items():
            setattr(entry, key, value)
        content = Path("a.tar").read_bytes().rstrip(b"\0")
        content = content.ljust(-(-len(content) // 512) * 512, b"\0")
        Path("a.tar").write_bytes(content + entry.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
        return "a.tar"

    return write


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (header(size=-5_120), "the header at byte number"),
        (header(size=-512), "the header at byte number"),
        (header(size=2**42), "unexpected end of data"),
        (header(size=2**40, type=tarfile.GNUTYPE_LONGNAME), "a header has 1,099,511,627,776 bytes; at most 16,384 are"),
        (header(size=2**40, type=tarfile.XHDTYPE), "a header has 1,099,511,627,776 bytes; at most 16,384 are read"),
        (lambda: cut(write_tar("a.tar", {"0.png": picture(1), "1.png": picture(2)}), 1_024), "it is cut short"),
        (lambda: cut(write_tar("a.tar", {"0.png": picture(1), "1.png": picture(2)}), 1_600), "unexpected end of data"),
        (lambda: cut(write_tar("a.tar", {"0.png": picture(1)}), 100), "truncated header"),
        (lambda: write_tar("a.tar", {}), "the archive holds no pictures"),
    ],
)
def test_headers_that_lie_are_refused(make: Callable[[], str], reason: str) -> None:
    make()
    message = refused("a.tar", label_column=None)
    assert message.startswith(f"data: cannot load 'a.tar': {reason}")


def test_what_is_no_file_is_left_out_and_nothing_is_extracted(tmp_path: Path) -> None:
    members = {"0.png": picture(1), "../../x.png": picture(2), "/abs.png": picture(3), ".hidden.png": picture(4)}
    write_tar("a.tar", {**members, "link.png": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd")
    tree, _ = list_tars([Path("a.tar")], "a.tar", "train")
    assert tree.names == ["0.png", "abs.png"]
    assert tree.left_out == ["3 hidden files, links and other members that are no files"]
    assert greys(load("a.tar", label_column=None)) == [1, 3]
    assert {file.name for file in tmp_path.iterdir()} == {"a.tar", "cache"}


def test_other_archives_are_refused_with_advice() -> None:
    assert (
        refused("a.tar.gz")
        == "data.path: 'a.tar.gz' is compressed, so that no picture is read alone; make a .tar of it"
    )
    message = refused("no/a-{000..003}.tar")
    assert message == "data: cannot load 'no/a-{000..003}.tar': there is no such archive; write a-*.tar"
    Path("set").mkdir()
    Path("set/a.png").write_bytes(picture(5))
    write_tar("set/old.tar", {"0.png": picture(1)})
    assert greys(load("set", label_column=None)) == [5]  # what a download left beside its content


def test_an_archive_that_changes_is_scanned_anew() -> None:
    write_tar("a.tar", {"0.png": picture(1)})
    assert greys(load("a.tar", label_column=None)) == [1]
    write_tar("a.tar", {"0.png": picture(1)[:40], "1.png": picture(2)})
    message = refused("a.tar", label_column=None)
    assert message.startswith("data: 1 of 2 pictures in 'a.tar' cannot be read: a.tar/0.png is no picture")
    with pytest.raises(UserError, match=r"^data: b.tar/0.png cannot be read \(No such file or directory\)$"):
        data = load(write_tar("b.tar", {"0.png": picture(1)}), label_column=None)
        Path("b.tar").unlink()
        data.images(torch.tensor([0]))
