"""Prompts: what the sources give, and what they refuse in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from distill.errors import UserError
from tests.tiny import ROOT, experiment, teacher_recipe
from trainers.data import Data, Images, Prompts
from trainers.data.dataset import UNKNOWN

EMOJI = str(ROOT / "tests" / "golden" / "emoji.parquet")
WORDS = ["a cat", 'two "dogs", running', "NA", "schöne Grüße"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written outside of tmp_path, nothing is asked of the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def refusal(data: Data) -> str:
    with pytest.raises(UserError) as caught:
        data.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table() -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": WORDS, "number": [1, 2, 3, 4]})


def csv(separator: str = ",") -> str:
    quoted = [word if separator == "\t" else '"' + word.replace('"', '""') + '"' for word in WORDS]
    return "".join(
        f"{one}{separator}{two}\n" for one, two in zip(["text", *quoted], ["number", 1, 2, 3, 4], strict=True)
    )


def files() -> dict[str, str]:
    """The same four prompts in every format."""
    rows = [{"text": word, "number": number} for number, word in enumerate(WORDS)]
    table().to_parquet("p.parquet")
    table().save_to_disk("saved")
    Path("many").mkdir()
    table().select([0, 1]).to_parquet("many/0.parquet")
    table().select([2, 3]).to_parquet("many/1.parquet")
    return {
        "text": write("p.txt", "\ufeff" + "\r\n".join(WORDS) + "\r\n\r\n  \n"),
        "csv": write("p.csv", csv()),
        "tsv": write("p.tsv", csv("\t")),
        "jsonl": write("p.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        "json": write("p.json", json.dumps(rows)),
        "parquet": "p.parquet",
        "glob": "many/*.parquet",
        "folder": "many",
        "folder of jsonl": str(Path(write("lines/p.jsonl", Path("p.jsonl").read_text())).parent),
        "saved": "saved",
    }


def test_every_format_holds_the_same_prompts() -> None:
    for path in files().values():
        dataset = Prompts(path).load()
        assert list(dataset.prompts or ()) == WORDS, path
        assert (dataset.name, dataset.count, dataset.shape) == (Path(path).name, 4, UNKNOWN)
        assert (dataset.labels, dataset.read, dataset.classes) == (None, None, 0)


def test_a_column_and_a_limit() -> None:
    path = write("p.csv", "a,b\nx,y\nz,w\n")
    assert list(Prompts(path, column="b").load().prompts or ()) == ["y", "w"]
    assert list(Prompts(path, column="a", limit=1).load().prompts or ()) == ["x"]
    assert Prompts(path, column="a", limit=5).load().count == 2


def test_images_with_their_prompts() -> None:
    dataset = Images(EMOJI, resolution=64, prompt_column="text").load()
    assert dataset.prompts is not None and list(dataset.prompts[:3]) == ["face savoring food", "motor boat", "thread"]
    assert (dataset.count, dataset.shape, dataset.labels) == (12, (3, 64, 64), None)
    assert dataset.images(torch.tensor([4])).shape == (1, 3, 64, 64)


def test_the_content_of_images_is_that_of_their_pixels(tmp_path: Path) -> None:
    def content(resolution: int = 8, path: str = EMOJI) -> str:
        hashing = Images(path, resolution=resolution, prompt_column="text").load().content
        assert hashing is not None
        return hashing()

    copy = tmp_path / "copy.parquet"
    copy.write_bytes(Path(EMOJI).read_bytes())
    assert content() == content(path=str(copy)) != content(16)
    fewer = datasets.load_dataset("parquet", data_files=EMOJI, split="train").select(range(11))
    fewer.to_parquet("fewer.parquet")
    assert content(path="fewer.parquet") != content()
    assert len(content()) == 64


def test_mistakes_are_one_line() -> None:
    columns = write("p.csv", "a,b,c\nx,y,1\n")
    assert refusal(Prompts("none.txt")).startswith("data: cannot load 'none.txt': Unable to find ")
    assert refusal(Prompts(columns, column="d")) == "data.column: no column 'd' in p.csv; it has a, b, c"
    assert refusal(Prompts(columns)) == "data.column: name the column of prompts in p.csv; it has a, b, c"
    assert refusal(Prompts(columns, column="c")) == "data.column: 'c' in p.csv must hold strings; row 0 holds 1"
    gap = write("gap.jsonl", '{"t": "x"}\n{"t": null}\n')
    assert refusal(Prompts(gap)) == "data.column: 't' in gap.jsonl must hold strings; row 1 holds None"
    assert refusal(Prompts(write("blank.txt", " \n\n"))) == "data: 'blank.txt' holds no prompts"
    assert refusal(Prompts(write("empty.txt", ""))).startswith("data: ")
    assert refusal(Prompts(write("head.csv", "a\n"), column="a")).startswith("data: ")
    assert refusal(Prompts(write("p.doc", "x"))) == (
        "data.path: 'p.doc' must end in one of .txt, .csv, .tsv, .json, .jsonl, .parquet, or be a folder or a hub id"
    )
    assert refusal(Prompts(write("bad.json", "{"))).startswith("data: cannot load 'bad.json': ")
    assert refusal(Prompts(columns, column="a", split="test[")).startswith("data: cannot load 'p.csv': ")
    Path("nothing").mkdir()
    assert refusal(Prompts("nothing")).startswith("data: cannot load 'nothing': ")
    assert refusal(Images(EMOJI, prompt_column="txt")) == (
        f"data.prompt_column: no column 'txt' in {EMOJI}; it has image, text, code"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "key 'data': limit: must be positive, got 0"),
        (
            {"colum": "a"},
            "unknown key 'data.colum' (did you mean 'data.column'?); allowed: path, column, split, config, limit",
        ),
        ({"column": 3}, "key 'data.column' must be a string or null, got 3"),
    ],
)
def test_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        experiment(teacher_recipe(data={"name": "prompts", "path": "x", **settings}))
    assert str(caught.value) == f"test: {message}"
