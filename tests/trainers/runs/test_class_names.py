"""The names of classes go from the data to grids, samples, teachers, exports and cards, and do no harm there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import trainers
from distill.errors import UserError
from distill.records import parse_record
from distill.teachers import load_denoiser
from launch.commands.sample import sample
from tests.tiny import recipe, tiny_denoiser
from tests.tiny import teacher_recipe as teacher_run
from trainers.checkpoints.formats import Digest
from trainers.data import Images
from trainers.data.encode import DatasetEncoder
from trainers.data.labels import captions, class_number, to_labels
from trainers.io.images import grid

EVIL = "<img onerror=x>`\n# Title\n```\n\x1b[31m\u202e|"
NAMES = ("8", EVIL, "car")  # in their order


def write_pictures(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(24):
        file = folder / NAMES[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A teacher of three classes, and a distillation of it."""
    folder = tmp_path_factory.mktemp("class_names")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        write_pictures(folder / "pictures")
        data = {"name": "images", "path": str(folder / "pictures"), "resolution": 8, "mode": "L"}
        common: dict[str, Any] = {"data": data, "images": 8, "samples_every": 8}
        trainers.train(teacher_run(**common), folder / "teacher")
        settings = recipe(folder / "teacher/teacher", **common, entry={"nsr": 2.5, "scale": 2.0})
        trainers.train(settings, folder / "student")
        yield folder


def test_names_stay_with_encoded_data_and_the_teacher(runs: Path) -> None:
    source = Images(str(runs / "pictures"), resolution=8, mode="L").load()
    teacher = load_denoiser(runs / "teacher/teacher")
    assert source.class_names == teacher.network.class_names == NAMES
    encoder = DatasetEncoder(str(runs / "cache"), torch.device("cpu"))
    assert encoder.encode(source, teacher, real=True).class_names == NAMES
    with_null = tiny_denoiser(null=10, num_class_embeds=11)  # the null condition has no name
    assert with_null.network.classes == 10 and with_null.network.class_names is None


def test_grids_have_captions(runs: Path) -> None:
    for run in ("teacher", "student"):
        (file,) = (runs / run / "samples").iterdir()
        assert Image.open(file).size == (660, 6 * 66 + 20)  # one line, since all rows have the same classes
    images = torch.zeros(5, 1, 8, 8)
    plain = np.array(grid(images, 2))
    captioned = np.array(grid(images, 2, captions=["a", "b", "a", "b", "a"]))
    assert captioned.shape == (plain.shape[0] + 20, plain.shape[1]) and (captioned[20:] == plain).all()
    assert (captioned[:20] < 128).sum() > 10
    each = np.array(grid(images, 2, captions=["a", "b", "c", "d", "c"]))
    assert each.shape == (plain.shape[0] + 40, plain.shape[1])
    assert (
        (each[20:86] == plain[:66]).all()
        and (each[106:172] == plain[66:132]).all()
        and (each[172:] == plain[132:]).all()
    )
    wide = np.array(grid(images[:2], 2, captions=["m" * 500, "b"]).crop((60, 0, 66, 20)))
    assert (wide > 250).all()  # a long name ends inside its own column
    assert grid(torch.zeros(2, 3, 8, 8), 2, captions=["a", "b"]).mode == "RGB"


def test_a_sample_takes_a_name(runs: Path) -> None:
    trained = trainers.load(runs / "student")
    assert torch.equal(trained.sample(4, label="car"), trained.sample(4, label=2))
    assert torch.equal(trained.sample(4, label="8"), trained.sample(4, label=0))
    assert not torch.equal(trained.sample(4, label="car"), trained.sample(4, label=1))
    assert torch.equal(
        trainers.load(runs / "teacher").sample(2, label=EVIL), trainers.load(runs / "teacher").sample(2, 1)
    )
    with pytest.raises(UserError) as caught:
        trained.sample(1, label="cat")
    assert str(caught.value) == (
        "label: 'cat' is not a class; allowed: 0 to 2, or a name: 8, <img onerror=x>`?# Title?```??[31m?|, car"
    )


def test_the_command_says_which_class_it_drew(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample(runs / "student", out=tmp_path / "a.png", count=4, columns=4, label="car")
    assert capsys.readouterr().out == f"4 samples of 2 car: {tmp_path / 'a.png'}\n"
    assert Image.open(tmp_path / "a.png").size == (4 * 66, 66 + 20)
    sample(runs / "student", out=tmp_path / "b.png", count=6, columns=3)
    assert Image.open(tmp_path / "b.png").size == (3 * 66, 2 * 66 + 20)


def test_numbers_come_before_names() -> None:
    names = ("2", "1", "7", "x", "x")
    assert [class_number(given, 5, names) for given in ("2", 2, "1", "7", "4")] == [2, 2, 1, 2, 4]
    for given, wrong in (
        (7, "label: 7 is not a class; allowed: 0 to 4, or a name: 2, 1, 7, x"),
        ("x", "label: 'x' is the name of the classes 3, 4; give the number"),
    ):
        with pytest.raises(UserError) as caught:
            class_number(given, 5, names)
        assert str(caught.value) == wrong
    for given, classes, wrong in (
        (10, 10, "10 is not a class; allowed: 0 to 9"),
        ("a", 0, "'a' is not a class; allowed: none"),
    ):
        with pytest.raises(UserError) as caught:
            class_number(given, classes)
        assert str(caught.value) == f"label: {wrong}"
    many = [f"class {number}" for number in range(50)]
    with pytest.raises(UserError, match=r"or a name: class 7, class \d7, class \d7, \.\.\. \(50 in all\)$"):
        class_number("class 7x", 50, many)
    assert captions(torch.tensor([1, 0]), names) == ["1 1", "0 2"] and captions(torch.tensor([1]), None) == []


def test_an_export_knows_the_names(runs: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    trained = trainers.load(runs / "student")
    assert trained.export(tmp_path / "export") < 1e-4
    by_number = {str(number): name for number, name in enumerate(NAMES)}
    assert json.loads((tmp_path / "export/id2label.json").read_text()) == by_number
    assert json.loads((tmp_path / "export/model_index.json").read_text())["id2label"] == by_number
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "export", trust_remote_code=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)

    def draw(*labels: int | str) -> Any:
        return pipe(len(labels), list(labels), generator=torch.Generator().manual_seed(0), output_type="pt").images

    assert torch.equal(draw("car", "8", EVIL, 2), draw(2, 0, 1, 2)) and not torch.equal(draw("car"), draw(0))
    with pytest.raises(
        ValueError, match="class_labels: 'cart' must be the name of one class in id2label, such as 'car'"
    ):
        draw("cart")
    pipe.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/model_index.json").read_text())["id2label"] == by_number


def test_a_card_shows_names_harmlessly(runs: Path, tmp_path: Path) -> None:
    trainers.load(runs / "student").export(tmp_path / "export", format="safetensors")
    assert json.loads((tmp_path / "export/id2label.json").read_text())["1"] == EVIL
    card = (tmp_path / "export/README.md").read_text()
    section = card[card.index("\n## Classes\n") : card.index("\n## Training\n")]
    shown = re.search(r"```json\n(.*?)\n```", section, re.DOTALL)
    assert shown is not None
    assert json.loads(shown[1]) == {"0": "8", "1": "<img onerror=x>`?# Title?```??[31m?|", "2": "car"}
    outside = re.sub(r"^(`{3,4})\w*\n.*?^\1$", "", card, flags=re.DOTALL | re.MULTILINE)
    assert "onerror" not in outside and "\x1b" not in card and "\u202e" not in card
    assert [line for line in card.splitlines() if line.startswith("# ")] == ["# tiny"]


@pytest.mark.parametrize("names", [None, ["a", "caf\udce9"]])
def test_a_name_that_utf8_cannot_write_is_read_again(names: list[str] | None) -> None:
    """The name of a folder in Latin-1 comes with half of a surrogate pair, which no JSON may hold."""
    labels, found = to_labels(["caf\udce9", "a"], names, "set", "label")
    assert labels.tolist() == [1, 0] and found == ("a", "caf\\udce9")
    assert parse_record(json.dumps({"class_names": found}), Digest) == {"class_names": list(found)}
