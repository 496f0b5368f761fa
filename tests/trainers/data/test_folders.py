"""Folders, archives and tables of pictures: what is a picture, a split, a label, and what is left out."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from distill.errors import UserError
from tests.tiny import teacher_recipe
from trainers.data import Data, Dataset, Images, Prompts
from trainers.recipe.load import resolve


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written outside of tmp_path, nothing is asked of the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def picture(grey: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (grey,) * 3).save(file, "PNG")
    return file.getvalue()


def write(*names: str) -> None:
    """Write pictures whose grey is their number, or files of words."""
    for number, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(picture(number) if name.endswith(".png") else b"words")


def load(path: str, **settings: Any) -> Dataset:
    return Images(path, resolution=8, **settings).load()


def greys(data: Dataset) -> list[int]:
    return ((data.images(torch.arange(data.count))[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def labels(data: Dataset) -> list[int]:
    assert data.labels is not None
    return data.labels.tolist()


def refusal(data: Data) -> str:
    with pytest.raises(UserError) as caught:
        data.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(path: str, **settings: Any) -> str:
    return refusal(Images(path, resolution=8, **settings))


def test_a_name_with_train_in_it_loses_nothing() -> None:
    write(*(f"animals/{kind}/{name}.png" for kind in ("ape", "bee") for name in ("0", "a train at dusk", "test_1")))
    write(*(f"parts/{kind}/{number}.png" for kind in ("ok", "test", "weld") for number in range(3)))
    write("flat/train_0.png", "flat/test-1.png", "flat/val.png")
    data = load("animals")
    assert (data.count, data.class_names, labels(data)) == (6, ("ape", "bee"), [0] * 3 + [1] * 3)
    data = load("parts")
    assert (data.count, data.class_names) == (9, ("ok", "test", "weld"))
    assert load("parts", label_column=None).count == 9 and load("flat", label_column=None).count == 3


def test_folders_that_are_all_splits_are_splits(capsys: pytest.CaptureFixture[str]) -> None:
    write("set/train/ape/0.png", "set/train/bee/1.png", "set/test/ape/2.png", "set/README.md")
    data = load("set")
    assert (greys(data), labels(data)) == ([0, 1], [0, 1])
    assert "left out of 'set': 1 pictures of the split test" in capsys.readouterr().err
    assert greys(load("set", split="test")) == [2]
    write("halves/train/0.png", "halves/val/1.png")  # splits without classes
    assert greys(load("halves", label_column=None)) == [0]
    assert refused("halves").startswith("data.label_column: no column 'label' in halves; it has image")
    assert refused("set", split="val") == "data.split: 'set' has the splits test, train, got 'val'"
    write("flat/0.png", "flat/1.png", "flat/2.png")
    assert greys(load("flat", split="train[1:]", label_column=None)) == [1, 2]
    assert (
        refused("flat", split="test") == "data.split: 'flat' has no folders of splits: 'train' is all of it, got 'test'"
    )
    assert refused("flat", split="train[x").startswith("data.split: 'train[x' is no split: ")


@pytest.mark.parametrize(
    ("first", "second"), [("Train", "Test"), ("TRAIN", "VAL"), ("train", "Test"), ("Train", "dev")]
)
def test_splits_are_known_in_any_case(first: str, second: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(f"set/{first}/ape/0.png", f"set/{first}/bee/1.png", f"set/{second}/ape/2.png")
    assert greys(load("set")) == [0, 1]
    assert f"left out of 'set': 1 pictures of the split {second}" in capsys.readouterr().err
    assert greys(load("set", split=second)) == greys(load("set", split=second.lower())) == [2]


def test_numbered_class_folders_are_in_order() -> None:
    write(*(f"set/{number}/a.png" for number in range(12)))
    data = load("set")
    assert data.class_names == tuple(map(str, range(12)))
    assert dict(zip(labels(data), greys(data), strict=True)) == {number: number for number in range(12)}


def test_classes_are_printed_by_name_and_number(capsys: pytest.CaptureFixture[str]) -> None:
    write("zoo/bee/0.png", "zoo/ape/1.png", "zoo/ape/notes.txt", "zoo/.DS_Store", "zoo/a.heic", "zoo/b.heic")
    load("zoo")
    assert capsys.readouterr().err.splitlines() == [
        "data: 'zoo': 2 pictures in 2 classes (0 ape, 1 bee)",
        "data: left out of 'zoo': 1 hidden files and folders; 2 files of .heic; ape/notes.txt",
    ]


def test_an_empty_class_folder_is_refused() -> None:
    write("zoo/ape/0.png", "zoo/bee/1.png")
    Path("zoo/cat").mkdir()
    assert refused("zoo") == (
        "data.label_column: the class folder cat of 'zoo' is empty; fill or remove it (null trains without labels)"
    )
    assert load("zoo", label_column=None).count == 2
    Path("zoo/cat/.DS_Store").write_bytes(b"")  # a file that nobody sees
    with zipfile.ZipFile("zoo.zip", "w") as packed:
        packed.write("zoo/ape/0.png", "ape/0.png")
        packed.mkdir("__MACOSX")
        packed.mkdir("cat")
    for path in ("zoo", "zoo.zip"):
        assert f"the class folder cat of '{path}' is empty" in refused(path)


def test_what_is_no_picture_is_told() -> None:
    write("set/a.heic", "set/b.heic", "flat/0.png")
    assert refused("set") == "data: cannot load 'set': the folder holds no pictures, but 2 files of .heic"
    assert refused("flat/*.png").startswith("data.path: 'flat/*.png' must end in one of .txt, .csv, ")


def test_linked_folders_are_read_once() -> None:
    write("store/apes/0.png", "zoo/bee/1.png")
    Path("zoo/ape").symlink_to(Path("store/apes").resolve())
    Path("zoo/loop").symlink_to(Path("zoo").resolve())
    Path("zoo/disk").symlink_to("/")
    data = load("zoo")
    assert (greys(data), data.class_names) == ([0, 1], ("ape", "bee"))


def test_pictures_at_different_depths_have_no_class() -> None:
    write("zoo/ape/0.png", "zoo/bee/1.png", "zoo/cover.png")
    assert refused("zoo").startswith(
        "data.label_column: pictures of 'zoo' lie at different depths, such as cover.png and ape/0.png"
    )
    assert load("zoo", label_column=None).count == 3


def edm(labels: Any) -> None:
    write(*(f"set/{number // 2:05d}/img{number:08d}.png" for number in range(6)))
    Path("set/dataset.json").write_text(json.dumps({"labels": labels}))


LISTED = [[f"{number // 2:05d}/img{number:08d}.png", (number + 1) % 2] for number in range(6)]


def test_labels_are_those_of_edms_dataset_json() -> None:
    edm(LISTED)
    with zipfile.ZipFile("set.zip", "w") as packed, zipfile.ZipFile("inner.zip", "w") as inner:
        for file in sorted(Path("set").rglob("*.*")):
            packed.write(file, file.relative_to("set"))
            inner.write(file, file)
    for path in ("set", "set.zip", "inner.zip"):
        data = load(path)
        assert (labels(data), data.classes, greys(data)) == ([1, 0, 1, 0, 1, 0], 2, list(range(6)))
    Path("zips").mkdir()
    Path("set.zip").rename("zips/set.zip")
    assert refused("zips") == (
        "data: cannot load 'zips': the folder holds no pictures; name the archive, as in zips/set.zip"
    )


def test_a_dataset_json_without_all_labels_is_refused() -> None:
    edm(LISTED[:4])
    assert refused("set") == (
        "data.label_column: 'set/dataset.json' has no label for 2 of 6 pictures, such as 00002/img00000004.png"
    )
    edm(None)
    assert refused("set").startswith("data.label_column: no column 'label' in set; it has image")
    edm([[name, [0.5, 0.5]] for name, _ in LISTED])
    assert "row 0 holds [0.5, 0.5]" in refused("set")
    for wrong in ({"a": 1}, 3, [[1, 2]], ["x"]):
        edm(wrong)
        assert refused("set").startswith("data")
    Path("set/dataset.json").write_text("{")
    assert refused("set").startswith("data: cannot read 'set/dataset.json': ")


def test_a_damaged_archive_is_refused() -> None:
    Path("set.zip").write_bytes(b"PK\3\4 no archive")
    assert refused("set.zip").startswith("data: cannot load 'set.zip': ")
    edm(LISTED)
    with zipfile.ZipFile("set.zip", "w") as packed:
        packed.write("set/00000/img00000000.png", "a.png")
    content = Path("set.zip").read_bytes()
    Path("set.zip").write_bytes(content.replace(picture()[20:40], bytes(20)))
    assert "set.zip/a.png is damaged in the archive" in refused("set.zip", label_column=None)


def test_metadata_names_the_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    write("set/a.png", "set/b.png", "set/c.png")
    rows = [{"file_name": "c.png", "text": "see"}, {"file_name": "a.png", "text": "NA"}]
    Path("set/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load("set", prompt_column="text")
    assert (list(data.prompts or ()), greys(data)) == (["see", "NA"], [2, 0])
    assert "left out of 'set': 1 pictures without a line in metadata.jsonl, such as b.png" in capsys.readouterr().err
    Path("set/metadata.jsonl").unlink()
    Path("set/metadata.csv").write_text("file_name,text\nb.png,NA\nd.png,dee\n")
    assert refused("set", prompt_column="text").startswith(
        "data: 1 of 2 pictures in 'set' cannot be read: set/d.png is missing"
    )
    assert list(load("set", prompt_column="text", damaged="skip").prompts or ()) == ["NA"]
    for name in ("../a.png", "/etc/passwd", "file:///etc/passwd"):
        Path("set/metadata.csv").write_text(f"file_name,text\n{name},x\n")
        assert "row 0: file_name must be a path inside the folder" in refused("set", prompt_column="text")
    with zipfile.ZipFile("set.zip", "w") as packed:
        packed.write("set/b.png", "b.png")
        packed.write("set/metadata.csv", "metadata.csv")
    assert refused("set.zip") == "data: cannot load 'set.zip': metadata.csv is not read from an archive; unpack it"
    Path("set/metadata.csv").write_text("name,text\nb.png,x\n")
    assert "has no column 'file_name'; it has name, text" in refused("set", prompt_column="text")


def table(**columns: Any) -> str:
    pq.write_table(pa.table(columns), "t.parquet")
    return "t.parquet"


def test_bytes_and_structs_in_parquet_are_pictures() -> None:
    one, two = picture(1), picture(2)
    for column in (
        [one, two],
        [{"bytes": one, "path": "a"}, {"bytes": two, "path": None}],
        [{"bytes": one}, {"bytes": two}],
    ):
        data = load(table(jpg=column, label=[0, 1]), image_column="jpg")
        assert (greys(data), labels(data)) == ([1, 2], [0, 1])
    kind = datasets.Features(images=datasets.List(datasets.Image()))
    rows = {"images": [[{"bytes": one, "path": None}], [{"bytes": two, "path": None}] * 2]}
    datasets.Dataset.from_dict(rows, features=kind).to_parquet("lists.parquet")
    message = refused("lists.parquet", image_column="images", label_column=None)
    assert message.startswith("data: 1 of 2 pictures in 'lists.parquet' cannot be read: row 1 of lists.parquet holds 2")
    assert greys(load("lists.parquet", image_column="images", label_column=None, damaged="skip")) == [1]
    assert refused(table(image=[{"x": 1}])) == "data.image_column: 'image' in t.parquet holds no images"


def test_a_row_without_a_picture_is_named() -> None:
    path = table(image=[{"bytes": picture(), "path": None}, {"bytes": None, "path": None}, None])
    assert refused(path, label_column=None).startswith(
        "data: 2 of 3 pictures in 't.parquet' cannot be read: row 1 of t.parquet is empty (no picture); row 2 of"
    )
    path = table(image=[{"bytes": None, "path": "http://host/a.png"}])
    assert "is an address (http://host/a.png), which is not fetched" in refused(path, label_column=None)


def test_labels_are_numbers_or_words(capsys: pytest.CaptureFixture[str]) -> None:
    def data(*values: Any) -> Dataset:
        return load(table(image=[picture()] * len(values), label=list(values)))

    assert (labels(data("dog", "cat", "dog")), data("dog", "cat").class_names) == ([1, 0, 1], ("cat", "dog"))
    assert (labels(data("10", "9")), data("10", "9").class_names) == ([1, 0], ("9", "10"))
    assert labels(data(1.0, 0.0)) == [1, 0] and labels(data(True, False)) == [1, 0]
    assert (labels(data(4, 0)), data(4, 0).classes) == ([4, 0], 5)
    assert "2 pictures in 5 classes, without a picture: 1, 2, 3" in capsys.readouterr().err
    for values, row, found in (
        ((0, None), 1, "None"),
        (("a", None), 1, "None"),
        ((-1, 0), 0, "-1"),
        ((0.5, 1.0), 0, "0.5"),
        ((0, 10**9), 1, "1000000000"),
        ((2**62,), 0, str(2**62)),
        ((float("nan"),), 0, "nan"),
    ):
        with pytest.raises(UserError) as caught:
            data(*values)
        assert str(caught.value).startswith(
            "data.label_column: 'label' in t.parquet must hold an integer of at least 0"
        )
        assert str(caught.value).endswith(f"; row {row} holds {found}")


def test_names_of_classes_come_from_the_table() -> None:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog", "owl"]))
    rows = {"image": [Image.new("L", (8, 8))] * 2, "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet("c.parquet")
    data = load("c.parquet")
    assert (labels(data), data.class_names, data.classes) == ([1, 0], ("cat", "dog", "owl"), 3)


def test_files_of_a_table_are_read_whole(capsys: pytest.CaptureFixture[str]) -> None:
    def prompts(path: str, **settings: Any) -> list[str]:
        return list(Prompts(path, **settings).load().prompts or ())

    for name, word in (("cats_train", "a"), ("dogs", "b"), ("x [1]", "c")):
        Path("many").mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": [word]}), f"many/{name}.parquet")
    Path("many/LICENSE.txt").write_text("free")
    assert prompts("many") == ["a", "b", "c"] and prompts("many/x [1].parquet") == ["c"]
    assert "left out of 'many': LICENSE.txt" in capsys.readouterr().err
    for name, word in (("train-00000-of-00001", "a"), ("test-00000-of-00001", "b")):
        Path("clone/data").mkdir(exist_ok=True, parents=True)
        pq.write_table(pa.table({"text": [word]}), f"clone/data/{name}.parquet")
    assert prompts("clone") == ["a"] and prompts("clone", split="test") == ["b"]
    assert refusal(Prompts("clone", split="dev")) == "data.split: 'clone' has the splits test, train, got 'dev'"
    Path("mixed").mkdir()
    Path("mixed/a.csv").write_text("text\na\n")
    Path("mixed/b.jsonl").write_text('{"text": "b"}\n')
    assert refusal(Prompts("mixed")).startswith("data: cannot load 'mixed': it holds .csv and .jsonl; name a glob")


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl"])
def test_captions_in_another_encoding_are_named(name: str) -> None:
    text = {"p.txt": "café\n", "p.csv": "text\ncafé\n", "p.jsonl": '{"text": "café"}\n'}[name]
    Path(name).write_bytes(text.encode("latin-1"))
    where = text.index("é")
    assert refusal(Prompts(name)) == (
        f"data: '{name}' is not in UTF-8 (byte 0xe9 about byte number {where}); save it in UTF-8"
    )
    Path(name).write_bytes(text.encode("utf-16"))
    assert refusal(Prompts(name)) == f"data: '{name}' is in UTF-16; save it in UTF-8"


def test_a_path_from_elsewhere_tells_both_places(capsys: pytest.CaptureFixture[str]) -> None:
    here = Path.cwd()
    assert refused("data/cats").startswith(
        f"data: cannot load 'data/cats': there is no such file or folder in '{here}', nor on the hub: "
    )
    assert "data: 'data/cats' is read from the hub; there is no such folder in" in capsys.readouterr().err
    for path in ("/nowhere/cats", "a/b/c", "../cats", "x y"):
        assert refused(path) == (
            f"data: cannot load '{path}': Unable to find such a file or folder in '{here}', and it is no id of the hub"
            " (NAME or OWNER/NAME)"
        )


def test_paths_of_a_run_are_absolute() -> None:
    here = Path.cwd()
    write("some/cats/0.png")
    pq.write_table(pa.table({"text": ["a"]}), "some/a.parquet")
    for name, path, expected in (
        ("images", "some/cats", f"{here}/some/cats"),
        ("prompts", "some/*.parquet", f"{here}/some/*.parquet"),
        ("images", "owner/name", "owner/name"),
        ("images", "a" * 300, "a" * 300),
    ):
        run = resolve(teacher_recipe(data={"name": name, "path": path}))
        assert isinstance(run.data, Images | Prompts) and run.data.path == expected


@pytest.mark.parametrize("path", ["", " ", "a" * 300, "a/" * 3000, "a\0b", "a\nb", "\udce9"])
def test_what_can_be_no_path_is_refused(path: str) -> None:
    for data in (Images(path), Prompts(path)):
        assert refusal(data).startswith("data.path: must be a path or an id of the hub, got ")


def test_what_is_no_regular_file_is_refused() -> None:
    write("set/a.png")
    for name in ("p.zip", "p.txt", "p.parquet", "set/metadata.jsonl"):
        os.mkfifo(name)
    for path in ("p.zip", "p.txt", "p.parquet", "/dev/zero", "set"):
        assert refused(path).endswith("it is no regular file")
    assert refusal(Prompts("p.txt")) == "data: cannot load 'p.txt': it is no regular file"


def test_odd_names_are_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (b"set/a\nb/1.png", b"set/\xe9/2.png", b"set/[1]*/3.png"):
        os.makedirs(os.path.dirname(name))
        with open(name, "wb") as file:
            file.write(picture())
    data = load("set")
    assert data.count == 3 and data.class_names is not None and data.class_names[0] == "[1]*"
    assert r"data: 'set': 3 pictures in 3 classes (0 [1]*, 1 a?b, 2 \udce9)" in capsys.readouterr().err
    for name in (b"set/a\nb/1.png", b"set/\xe9/2.png"):
        with open(name, "wb") as file:
            file.write(b"<html>")
    message = refused("set")
    assert "set/a?b/1.png is no picture" in message and message.isprintable()


def test_what_is_empty_is_named() -> None:
    for name in ("a.parquet", "a.csv", "a.jsonl", "a.txt"):
        Path(name).touch()
        assert refusal(Prompts(name)) == f"data: cannot load '{name}': it is empty (0 bytes)"
    write("flat/0.png")
    assert refused("flat", split="train[:0]", label_column=None) == "data: 'flat' holds no pictures"
