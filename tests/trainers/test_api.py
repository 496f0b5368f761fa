"""The library's door and the commands do the same, to the bit; objects in place of names, and several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import trainers
from distill.errors import UserError
from distill.objectives.sid import SiD
from distill.teachers import load_denoiser
from launch.options import resolve_recipe, resolve_teacher_recipe
from tests.launch.conftest import Command, distill
from tests.tiny import launch, recipe, teacher_recipe
from trainers import api
from trainers.checkpoints import checkpoint
from trainers.data import Digits
from trainers.engine.session import Session
from trainers.engine.stopping import Stopped
from trainers.recipe.load import resolve
from trainers.recipe.run import Run
from trainers.recipe.shipped import shipped_recipes
from trainers.recipe.teacher_run import TeacherRun

__all__ = ["distill"]

SHORT: dict[str, Any] = {"images": 16, "log_every": 8, "checkpoint_every": 8, "samples_every": 16}
SHORT |= {"evaluation": {"every": 16, "samples": 64}}


def weights(run: Path, images: int) -> dict[str, Any]:
    """Size and SHA-256 of every file of a checkpoint but state.json."""
    manifest = json.loads((run / f"checkpoints/{images:012d}/manifest.json").read_text())
    del manifest["state.json"]
    assert "ema.safetensors" in manifest or "ema-00000-of-00002.safetensors" in manifest
    return dict(manifest)


def state(run: Path, images: int) -> Any:
    return json.loads((run / f"checkpoints/{images:012d}/state.json").read_text())


def report(run: Path) -> Any:
    return json.loads((run / "evaluation.json").read_text())


def exported(folder: Path) -> dict[str, bytes]:
    """The tensors and configs of an export; its card and its check hold no weights."""
    files = [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def settings(teachers: Path) -> dict[str, Any]:
    return recipe(teachers / "edm", **SHORT)


def test_python_gives_the_bits_of_the_commands(distill: Command, settings: dict[str, Any], tmp_path: Path) -> None:
    """Train, sample, evaluate, export and resume, once by each way."""
    typed, called, file = tmp_path / "typed", tmp_path / "called", tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert distill("train", file, "objective.alpha=1.0", "--folder", typed).code == 0
    trained = trainers.train(file, called, objective={"alpha": 1.0})
    assert (typed / "run.yaml").read_text() == (called / "run.yaml").read_text()
    assert state(typed, 16) == state(called, 16) and weights(typed, 16) == weights(called, 16)
    assert (trained.images, trained.run.name) == (16, "tiny")

    assert distill("sample", typed, "--count", 7, "--label", 3, "--seed", 5, "--columns", 4).code == 0
    for result in (trained, trainers.load(called)):
        grid = trainers.grid(result.sample(7, label=3, seed=5), 4)
        assert np.array_equal(np.array(grid), np.array(Image.open(typed / "sample.png")))
    assert distill("sample", typed, "--teacher", "--count", 2).code == 0
    grid = trainers.grid(trained.sample(2, teacher=True), 10)
    assert np.array_equal(np.array(grid), np.array(Image.open(typed / "sample.png")))

    assert distill("evaluate", typed, "--samples", 50).code == 0
    assert trained.evaluate(50) == report(typed) == report(called)
    for format, name in (("diffusers", "export"), ("safetensors", "export-safetensors")):
        assert distill("export", typed, "--format", format).code == 0
        assert trained.export(format=format) < 1e-4
        assert exported(typed / name) == exported(called / name) != {}

    changes = {"images": 32, "generator": {"lr": 2e-3}}
    with pytest.raises(UserError, match=r"^generator.lr: 0.001 -> 0.002: this would change what is trained; --allow"):
        trainers.resume(called, **changes)
    assert distill("resume", typed, "images=32", "generator.lr=2e-3", "--allow", "generator.lr").code == 0
    trained = trainers.resume(called, allow=["generator.lr"], **changes)
    assert state(typed, 32) == state(called, 32) and weights(typed, 32) == weights(called, 32)
    assert (typed / "run.yaml").read_text() == (called / "run.yaml").read_text()
    assert trained.images == 32


def test_a_teacher_by_both_ways(distill: Command, tmp_path: Path) -> None:
    """Its result is what a distillation takes, from either."""
    settings, file = teacher_recipe(**SHORT), tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert distill("teacher", file, "--folder", tmp_path / "typed").code == 0
    trained = trainers.train(settings, tmp_path / "called")
    assert weights(tmp_path / "typed", 16) == weights(tmp_path / "called", 16)
    assert exported(tmp_path / "typed/teacher") == exported(tmp_path / "called/teacher") != {}
    assert trained.teacher is None and torch.equal(trained.sample(4), trainers.load(tmp_path / "typed").sample(4))
    with pytest.raises(UserError, match=r"trains a teacher: its teacher/ is a diffusers folder already"):
        trained.export()


def test_a_recipe_is_a_name_a_file_or_a_mapping(settings: dict[str, Any], tmp_path: Path) -> None:
    """An objective may be an instance, whose values run.yaml holds."""
    trainers.train(settings, tmp_path / "mapping", objective={"name": "sid", "alpha": 1.0})
    trainers.train(settings, tmp_path / "instance", objective=SiD(alpha=1.0))
    assert (tmp_path / "mapping/run.yaml").read_text() == (tmp_path / "instance/run.yaml").read_text()
    assert weights(tmp_path / "mapping", 16) == weights(tmp_path / "instance", 16)
    with pytest.raises(UserError, match=r"^recipe: no file and no shipped recipe 'digit_sid'; shipped: digits_sid, "):
        trainers.train("digit_sid", tmp_path / "other")
    with pytest.raises(UserError, match=r"^arguments: unknown key 'imges' \(did you mean 'images'\?\)"):
        trainers.train(settings, tmp_path / "other", imges=8)
    assert not (tmp_path / "other").exists()


def test_a_mapping_for_the_optimizer_changes_a_teachers_recipe(settings: dict[str, Any], tmp_path: Path) -> None:
    """The key `optimizer` of a teacher's recipe has the name of an argument; a distillation has no such key."""
    trained = trainers.train(teacher_recipe(**SHORT), tmp_path / "teacher", optimizer={"lr": 5e-4})
    assert isinstance(trained.run, TeacherRun) and trained.run.optimizer.lr == 5e-4 and trained.run.objects == ()
    with pytest.raises(UserError, match=r"^recipe: unknown key 'optimizer'"):
        trainers.train(settings, tmp_path / "other", optimizer={"lr": 5e-4})


def test_a_folder_that_holds_a_run_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    trainers.train(settings, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "run").rglob("*"))}
    for processes in (1, 2):
        with pytest.raises(UserError) as refused:
            trainers.train(settings, tmp_path / "run", processes)
        (line,) = str(refused.value).splitlines()
        assert line.startswith(f"'{tmp_path / 'run'}' holds a run already: ")
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "run").rglob("*"))} == before


class Seen(trainers.Hook):
    """Notes the images at which it is called."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.images: list[int] = []

    def __call__(self, session: Session) -> None:
        self.images.append(session.state.images)


def adamw(name: str, parameters: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
    """An optimizer that no recipe names, with another rate for each player."""
    return torch.optim.NAdam([value for _, value in parameters], lr=1e-3 if name == "generator" else 2e-3)


@pytest.fixture
def objects(teachers: Path) -> Callable[[], dict[str, Any]]:
    """Make a teacher, data, a hook and an optimizer's factory, which are no names, as a new program does."""

    def make() -> dict[str, Any]:
        data = replace(Digits().load(), name="mine")
        return {"teacher": load_denoiser(teachers / "null"), "data": data, "hooks": [Seen(8)], "optimizer": adamw}

    return make


def test_objects_in_place_of_names(
    objects: Callable[[], dict[str, Any]], settings: dict[str, Any], distill: Command, tmp_path: Path
) -> None:
    """run.yaml lists them; a resume needs them again, and with them goes on to the same bits."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trainers.train(settings, whole, **(given := objects()), images=32)
    assert given["hooks"][0].images == [8, 16, 24, 32]
    trained = trainers.train(settings, cut, **objects())
    listed = yaml.safe_load((cut / "run.yaml").read_text())
    assert sorted(listed["objects"]) == ["data", "hooks", "optimizer", "teacher"]
    assert listed["teacher"] == "object" and listed["data"] == {"name": "object", "title": "mine"}

    first = trained.sample(4)
    assert trained.teacher is not None and trained.teacher.network.null_label == 10
    assert trained.evaluate(20)["protocol"] == "pca48(mine, 1797 real)"
    with pytest.raises(UserError, match=r"a teacher that its caller gave as an object; load it in Python, with"):
        trainers.load(cut)
    assert torch.equal(trainers.load(cut, teacher=objects()["teacher"]).sample(4), first)

    refused = distill("resume", cut, "images=32")
    assert refused.code == 2 and refused.err.count("\n") == 1, refused.err
    wanted = "data=..., hooks=..., optimizer=..., teacher=..."
    assert refused.err == (
        "distill: 'tiny' was started from Python with objects of its own; resume it there with"
        f" trainers.resume(folder, {wanted})\n"
    )
    with pytest.raises(UserError, match=r"trainers.resume\(folder, hooks=..., optimizer=...\)$"):
        some = objects()
        trainers.resume(cut, teacher=some["teacher"], data=some["data"], images=32)
    with pytest.raises(UserError, match=r"was trained from another teacher"):
        trainers.resume(cut, **{**objects(), "teacher": other_teacher(objects)}, images=32)
    assert checkpoint.folders(cut / "checkpoints")[0].name == f"{16:012d}"

    trainers.resume(cut, **(given := objects()), images=32)
    assert given["hooks"][0].images == [24, 32]
    longer = [{"images": 16, "changed": {"images": {"old": 16, "new": 32}}}]
    assert state(cut, 32) == state(whole, 32) | {"changes": longer} and weights(cut, 32) == weights(whole, 32)


def other_teacher(objects: Callable[[], dict[str, Any]]) -> Any:
    """The teacher with one weight changed."""
    teacher = objects()["teacher"]
    with torch.no_grad():
        next(teacher.parameters()).add_(1e-3)
    return teacher


def test_a_teacher_as_an_object_gives_the_bits_of_its_folder(
    teachers: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The caller's own object stays as it was."""
    teacher = load_denoiser(teachers / "edm")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    trainers.train(settings, tmp_path / "object", teacher=teacher)
    trainers.train(settings, tmp_path / "folder")
    assert weights(tmp_path / "object", 16) == weights(tmp_path / "folder", 16)
    after = teacher.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


OWN = """
import sys
from dataclasses import dataclass
import trainers
from distill.objectives.sid import SiD

@dataclass(frozen=True, kw_only=True)
class Mine(SiD):
    pass

recipe, folder = sys.argv[1:]
trainers.train(recipe, folder, objective=Mine(alpha=1.0))
assert trainers.resume(folder, images=24).images == 24
"""


def test_an_objective_of_the_program_itself(settings: dict[str, Any], distill: Command, tmp_path: Path) -> None:
    """No other program can import its class, so that run.yaml lists it too; this program goes on by itself."""
    file, program, run = tmp_path / "recipe.yaml", tmp_path / "program.py", tmp_path / "run"
    file.write_text(yaml.safe_dump(settings))
    program.write_text(OWN)
    job = launch([str(program), str(file), str(run)], tmp_path / "output.txt")
    assert job.finish() == 0, job.text
    assert yaml.safe_load((run / "run.yaml").read_text())["objects"] == ["objective"]
    trainers.train(settings, tmp_path / "sid", objective={"name": "sid", "alpha": 1.0}, images=24)
    assert weights(run, 24) == weights(tmp_path / "sid", 24)
    refused = distill("resume", run, "images=32")
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert refused.err.startswith(f"distill: {run}/run.yaml: key 'objective': cannot import '__main__:Mine': ")


PROGRAM = """
import sys
import trainers
trained = trainers.train(sys.argv[1], sys.argv[2])
assert trained.images == 16
trained.evaluate(20)  # all ranks together
"""


def test_a_recipe_reaches_other_processes_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file would be left behind by a kill. Every shipped recipe arrives as it was."""
    commands: list[list[str]] = []

    def note(command: list[str], **options: Any) -> Any:
        commands.append(command)
        raise Stopped

    monkeypatch.setattr(api.subprocess, "Popen", note)
    for name in (name for name in shipped_recipes() if not name.endswith("_classifier")):
        run = resolve(name)
        with pytest.raises(Stopped):
            trainers.train(run, tmp_path / "run", processes=2)
        arguments = commands[-1][commands[-1].index("launch.main") + 1 :]
        resolved = resolve_recipe if isinstance(run, Run) else resolve_teacher_recipe
        assert resolved("-", arguments[2 : arguments.index("--folder")]) == run
    assert commands and not (tmp_path / "run").exists()


def test_several_processes(objects: Callable[[], dict[str, Any]], settings: dict[str, Any], tmp_path: Path) -> None:
    """Started from Python, and in a program that a launcher started; objects cannot be shared."""
    with pytest.raises(UserError) as refused:
        trainers.train(settings, tmp_path / "run", processes=2, **objects())
    assert str(refused.value) == (
        "processes: 2 processes cannot share the objects teacher, data, hooks, optimizer; start your program with"
        " `accelerate launch --num_processes 2` and leave processes out"
    )
    assert not (tmp_path / "run").exists()

    file, program = tmp_path / "recipe.yaml", tmp_path / "program.py"
    file.write_text(yaml.safe_dump(settings))
    program.write_text(PROGRAM)
    trained = trainers.train(settings, tmp_path / "run", processes=2, oversubscribe=True)
    assert trained.images == 16 and state(tmp_path / "run", 16)["processes"] == 2
    job = launch([str(program), str(file), str(tmp_path / "launched")], tmp_path / "output.txt", world=2)
    assert job.finish() == 0, job.text
    assert weights(tmp_path / "run", 16) == weights(tmp_path / "launched", 16)
    divided = report(tmp_path / "launched")
    alone = trainers.load(tmp_path / "launched").evaluate(20)
    assert divided["protocol"] == alone["protocol"] and alone == report(tmp_path / "launched")
    for name in ("student", "teacher"):
        assert divided[name]["frechet"] == pytest.approx(alone[name]["frechet"], rel=1e-6)

    trained = trainers.resume(tmp_path / "run", images=24, oversubscribe=True)  # on as many processes as before
    assert trained.images == 24 and state(tmp_path / "run", 24)["processes"] == 2
    with pytest.raises(UserError, match=r"^batch_size: 8 is not divisible by processes x micro_batches = 3 x 1$"):
        trainers.train(settings, tmp_path / "three", processes=3, oversubscribe=True)
