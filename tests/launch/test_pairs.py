"""`distill pairs`: from a teacher to a run on its pairs, kills included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from distill.teachers import save_denoiser
from tests.launch.conftest import Command
from tests.launch.test_classifier import OWN_DATA
from tests.launch.test_mistakes import mistake
from tests.tiny import launch, tiny_denoiser
from trainers.data import Digits
from trainers.runs import make_pairs

SHORT = ("--count", 20, "--evaluations", 3)
SLOW = """
import sys, time
from trainers.io import atomic
from trainers.runs import make_pairs
sync = atomic.sync
atomic.sync = lambda path: (time.sleep(0.2), sync(path))
make_pairs.PAIRS_A_SHARD = 4
from launch.main import main
main()
"""


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "pairs.json").read_text())


def test_from_a_run_to_a_distillation(
    distill: Command, finished: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The teacher of a run folder, with the run's own data; then a recipe that names the pairs."""
    result = distill("pairs", finished / "teacher", "p", *SHORT)
    assert (result.code, result.out, result.err) == (0, "20 pairs in p\n", "20 of 20 pairs\n")
    again = distill("pairs", finished / "teacher/teacher", "q", *SHORT, "--seed", 1)
    assert again.code == 0
    ours, theirs = described(Path("p")), described(Path("q"))
    assert (ours["data"], ours["seed"], theirs["seed"]) == ("digits", 0, 1) and ours["teacher"] == theirs["teacher"]
    assert ours["shards"] != theirs["shards"]
    file = recipe_file(teacher=str(finished / "teacher/teacher"), images=16, objective="dmd")
    trained = distill("train", file, "pairs.folder=p", "--folder", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert f"folder: {Path('p').resolve()}\n" in (tmp_path / "run/run.yaml").read_text()
    assert "generator/regression" in (tmp_path / "run/log.jsonl").read_text()
    # what a run has made is there without its pairs, which training is not
    shutil.rmtree("p")
    assert distill("sample", tmp_path / "run").code == 0
    line = mistake(distill("resume", tmp_path / "run"))
    assert line.startswith(f"pairs: '{Path('p').resolve()}' has no pairs.json; `distill pairs TEACHER ")


def test_a_teacher_folder_alone(distill: Command, teachers: Path, tmp_path: Path) -> None:
    """It does not say how frequent its labels are; one without labels needs no data."""
    assert mistake(distill("pairs", teachers / "edm", "p", *SHORT)) == (
        f"--data: '{teachers / 'edm'}' does not say how frequent its classes are; name the data"
    )
    assert distill("pairs", teachers / "edm", "p", *SHORT, "--data", "digits").code == 0
    labels = "{name: data_free, shape: [1, 8, 8], classes: 10}"
    assert distill("pairs", teachers / "edm", "q", *SHORT, "--data", labels).code == 0
    save_denoiser(tiny_denoiser(num_class_embeds=None), tmp_path / "free")
    assert distill("pairs", tmp_path / "free", "r", *SHORT).code == 0
    assert [described(Path(name))["data"] for name in "pqr"] == ["digits", "data_free", "data_free"]
    assert (described(Path("r"))["classes"], described(Path("p"))["classes"]) == (0, 10)


def test_mistakes(distill: Command, teachers: Path, tmp_path: Path) -> None:
    other = "{name: data_free, shape: [1, 8, 9], classes: 10}"
    for teacher, data, message in (
        (tmp_path, "digits", f"teacher: '{tmp_path}' holds no teacher: neither denoiser.json nor a folder teacher/"),
        (
            teachers / "edm",
            "digit",
            "--data: must be one of digits, images, prompts, mixture, data_free, object or your own 'module:Class', ",
        ),
        (teachers / "edm", other, "data: data_free has shape (1, 8, 9), the teacher "),
    ):
        assert mistake(distill("pairs", teacher, "p", *SHORT, "--data", data)).startswith(message)
    assert not Path("p").exists()


def test_two_at_once_are_one_and_a_refusal(distill: Command, teachers: Path) -> None:
    arguments = ("pairs", teachers / "edm", "p", *SHORT, "--data", "digits")
    assert distill(*arguments).code == 0
    with FileLock("p/.pairs.lock"):
        assert mistake(distill(*arguments)) == "pairs: 'p' is in use by another process; end it, or name another folder"
    assert distill(*arguments).code == 0


def test_kill_9(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["pairs", str(teachers / "edm"), str(tmp_path / "cut"), "--count", "20", "--evaluations", "3"]
    command = ["-c", SLOW, *arguments, "--data", "digits"]
    job = launch(command, tmp_path / "output.txt")
    assert job.wait_for(lambda: (tmp_path / "cut/pairs.json").is_file()), job.text
    job.kill()
    assert len(described(tmp_path / "cut")["shards"]) < 5
    assert launch(command, tmp_path / "output.txt").finish() == 0
    monkeypatch.setattr(make_pairs, "PAIRS_A_SHARD", 4)
    settings, whole = make_pairs.PairSettings(evaluations=3), tmp_path / "whole"
    list(make_pairs.make_pairs(str(teachers / "edm"), Digits().load(), whole, 20, settings, 250, torch.device("cpu")))
    names = sorted(file.name for file in whole.iterdir())
    assert len(names) == 7 and names == sorted(file.name for file in (tmp_path / "cut").iterdir())
    assert all((tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_the_data_of_the_command_line_are_the_callers_words(distill: Command, teachers: Path) -> None:
    Path("my.py").write_text(OWN_DATA)
    done = distill("pairs", teachers / "edm", "p", "--count", 4, "--evaluations", 3, "--data", "my.py:Mine")
    assert done.code == 0, done.err
