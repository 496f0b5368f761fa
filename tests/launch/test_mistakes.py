"""A mistake is one line on stderr (what, what was given, what is allowed), exit code 2, and nothing trained."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.errors import UserError
from distill.installed import install_command
from distill.objectives import OBJECTIVES
from distill.sampling import sample
from tests.launch.conftest import Command
from tests.tiny import distill as distill_process
from tests.tiny import tiny_denoiser
from trainers.checkpoints import checkpoint

Write = Callable[..., Path]


def mistake(result: Any) -> str:
    """The one line, without its beginning."""
    assert result.code == 2, result
    assert result.out == ""
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("distill: "), result.err
    return str(lines[0].removeprefix("distill: "))


def untouched(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def test_a_recipe_for_the_other_command(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    assert mistake(distill("train", "digits_teacher")) == "digits_teacher: this recipe is for `distill teacher`"
    file = recipe_file()
    assert mistake(distill("teacher", file)) == f"{file}: this recipe is for `distill train`"


def test_no_teacher(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    file = recipe_file(teacher="../nowhere")
    expected = "teacher: no folder '../nowhere'; `distill teacher` trains one, `distill import` fetches one"
    assert mistake(distill("train", file, "--folder", tmp_path / "run")) == expected
    assert untouched(tmp_path / "run")


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def to_pickle(file: Path) -> None:
    """Sound weights, in a format that may run code when read."""
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (WEIGHTS, shorten, "teacher: cannot read '{}/unet' (UNet2DModel): "),
        (WEIGHTS, Path.unlink, "teacher: cannot read '{}/unet': it holds no .safetensors file"),
        (WEIGHTS, to_pickle, "teacher: cannot read '{}/unet': it holds no .safetensors file"),
        ("unet/config.json", shorten, "teacher: '{}/unet/config.json' is damaged: it is no JSON: "),
        ("denoiser.json", shorten, "teacher: '{}/denoiser.json' is damaged: it is no JSON: "),
        ("denoiser.json", Path.unlink, "teacher: '{}/denoiser.json' is missing; it states path and prediction kind"),
        (
            "denoiser.json",
            lambda f: f.write_text(f.read_text().replace('"edm"', '"vq"', 1)),
            "teacher: '{}/denoiser.json' is damaged: key 'path': name must be one of 'edm', 'vp', ",
        ),
    ],
)
def test_a_damaged_teacher(
    file: str, damage: Any, message: str, distill: Command, recipe_file: Write, teachers: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(teachers / "edm", copy)
    damage(copy / file)
    line = mistake(distill("train", recipe_file(teacher=str(copy)), "--folder", tmp_path / "run"))
    assert line.startswith(message.format(copy))
    assert untouched(tmp_path / "run")


def test_a_teacher_of_other_data_or_for_another_objective(
    distill: Command, recipe_file: Write, teachers: Path, tmp_path: Path
) -> None:
    edm = teachers / "edm"
    data = {"name": "data_free", "shape": [3, 8, 8], "classes": 10}
    line = mistake(distill("train", recipe_file(data=data)))
    assert line == f"data: data_free has shape (3, 8, 8), the teacher '{edm}' shape (1, 8, 8)"
    line = mistake(distill("train", recipe_file(data=data | {"shape": [1, 8, 8], "classes": 3})))
    assert line == f"data: data_free has classes 3, the teacher '{edm}' classes 10"
    objective = {"name": "sid", "times": {"name": "uniform_steps"}}
    line = mistake(distill("train", recipe_file(objective=objective)))
    assert line == "times: uniform_steps needs a discrete_vp path, the teacher's is EDM()"


NEEDY = """
from __future__ import annotations
from dataclasses import dataclass
from distill.objectives.sid import SiD

@dataclass(frozen=True, kw_only=True)
class Needy(SiD):
    needs = frozenset({"real"})
"""


def test_real_images_where_there_are_none(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    (tmp_path / "cwd/mine.py").write_text(NEEDY)
    data = {"name": "data_free", "shape": [1, 8, 8], "classes": 10}
    line = mistake(distill("train", recipe_file(data=data, objective="mine.py:Needy"), "--folder", tmp_path / "run"))
    assert line == "objective: Needy needs real images, data: data_free has none"
    for name, cls in OBJECTIVES.items():
        if isinstance(cls.needs, frozenset) and "real" in cls.needs:
            line = mistake(distill("train", recipe_file(data=data, objective=name), "--folder", tmp_path / "run"))
            assert line == f"objective: {cls.__name__} needs real images, data: data_free has none"
    line = mistake(distill("train", recipe_file(data=data, evaluation={"every": 8})))
    assert line.startswith("evaluation: needs real images, data: data_free has none; name evaluation.reference, or set")
    line = mistake(distill("teacher", recipe_file(trains="teacher", data=data), "--folder", tmp_path / "run"))
    assert line == "data: a teacher is trained on real images, data_free has none"
    assert untouched(tmp_path / "run")


def test_data_that_is_not_there(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    data = {"name": "images", "path": str(tmp_path / "none/*.parquet")}
    line = mistake(distill("teacher", recipe_file(trains="teacher", data=data)))
    assert line.startswith(f"data: cannot load '{tmp_path}/none/*.parquet': ")


def test_a_network_that_diffusers_refuses(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    file = recipe_file(trains="teacher", network={"block_out_channels": [8, 8], "down_block_types": ["DownBlock2D"]})
    line = mistake(distill("teacher", file, "--folder", tmp_path / "run"))
    assert line.startswith("unet: diffusers refuses this UNet2DModel config: Must provide the same number of `down_bl")
    assert untouched(tmp_path / "run")


@pytest.mark.parametrize(("processes", "micro"), [(3, 1), (4, 4)])
def test_a_batch_that_does_not_divide(
    processes: int, micro: int, distill: Command, recipe_file: Write, tmp_path: Path
) -> None:
    file = recipe_file(micro_batches=micro)
    line = mistake(distill("train", file, "--processes", processes, "--oversubscribe", "--folder", tmp_path / "run"))
    assert line == f"batch_size: 8 is not divisible by processes x micro_batches = {processes} x {micro}"
    assert untouched(tmp_path / "run")


def test_a_folder_that_holds_a_run(distill: Command, recipe_file: Write, student: Path) -> None:
    before = sorted(student.rglob("*"))
    line = mistake(distill("train", recipe_file(), "--folder", student))
    expected = (
        f"'{student}' holds a run already: `distill resume {student}` continues it, --folder or name= starts another"
    )
    assert line == expected
    assert sorted(student.rglob("*")) == before


@pytest.mark.parametrize("command", ["resume", "sample", "evaluate", "export"])
def test_a_folder_without_a_run(command: str, distill: Command, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert mistake(distill(command, folder)) == f"'{folder}' is not a run folder: it has no run.yaml"


@pytest.mark.parametrize(
    ("command", "stem"), [("resume", "generator"), ("sample", "ema"), ("evaluate", "ema"), ("export", "ema")]
)
def test_a_run_without_a_valid_checkpoint(command: str, stem: str, distill: Command, student: Path) -> None:
    """A resume needs every file of a checkpoint; the other commands read the averaged weights alone."""
    root = student / "checkpoints"
    for folder in checkpoint.folders(root):
        shorten(folder / f"{stem}.safetensors")
    line = mistake(distill(command, student))
    assert line.startswith(f"no valid checkpoint in '{root}'; skipped checkpoint '{root}/000000000016': {stem}.safe")
    assert "skipped checkpoint" in line and "bytes, not" in line
    shutil.rmtree(root)
    assert mistake(distill(command, student)) == f"no valid checkpoint in '{root}'"


def test_a_broken_run_yaml(distill: Command, student: Path) -> None:
    (student / "run.yaml").write_text("name: [")
    assert mistake(distill("resume", student)).startswith(f"{student}/run.yaml: line 1: ")


def test_a_resume_with_another_teacher(distill: Command, student: Path, teachers: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(teachers / "edm", copy)
    description = json.loads((copy / "denoiser.json").read_text())
    (copy / "denoiser.json").write_text(json.dumps({**description, "sigma_data": 0.6}))
    run = student / "run.yaml"
    run.write_text(run.read_text().replace(str(teachers / "edm"), str(copy)))
    newest = student / "checkpoints/000000000016"
    assert distill("resume", student).err == (
        f"distill: '{newest}' was trained from another teacher than the one in run.yaml (its files have changed)\n"
    )


@pytest.mark.parametrize("label", [-1, 10])
def test_a_label_that_is_no_class(label: int, distill: Command, student: Path) -> None:
    line = mistake(distill("sample", student, "--label", label))
    assert line == f"label: {label} is not a class; allowed: 0 to 9"
    assert not (student / "sample.png").exists()


def test_a_teacher_of_a_teacher(distill: Command, teacher_run: Path) -> None:
    assert mistake(distill("sample", teacher_run, "--teacher")) == "teacher: this run is itself a teacher's"
    line = mistake(distill("export", teacher_run))
    assert (
        line
        == f"'{teacher_run}' trains a teacher: its teacher/ is a diffusers folder already; export takes distillations"
    )


@pytest.mark.parametrize("out", ["nowhere/a.png", "a.docx", "a"])
def test_a_picture_that_cannot_be_written(out: str, distill: Command, student: Path) -> None:
    assert mistake(distill("sample", student, "--count", 1, "--out", out)).startswith(f"--out: cannot write '{out}': ")


def test_no_best_yet(distill: Command, student: Path) -> None:
    shutil.rmtree(student / "best")
    line = mistake(distill("sample", student, "--which", "best"))
    assert line == f"'{student}' has no best/ yet: set evaluation.every in the recipe"


def test_a_world_of_another_size(
    distill: Command, recipe_file: Write, student: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A launcher started two, and nobody is waited for."""
    for key, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    expected = "--processes: 1 asked for, but the launcher started 2; leave it out there"
    assert mistake(distill("train", recipe_file(), "--processes", 1, "--folder", tmp_path / "run")) == expected
    resumed = distill("resume", student, "--processes", 1)
    assert resumed.code == 2 and resumed.err.splitlines()[-1] == f"distill: {expected}"
    assert untouched(tmp_path / "run")


@pytest.mark.parametrize("arguments", [[], ["--processes", 2]])
def test_a_world_that_accelerate_does_not_see(
    arguments: list[Any], distill: Command, recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("trainers.engine.world.Accelerator", lambda **settings: SimpleNamespace(num_processes=1))
    line = mistake(distill("train", recipe_file(), *arguments, "--folder", tmp_path / "run"))
    assert line.startswith("WORLD_SIZE: 2 processes announced, but Accelerate sees 1; start through `distill ... --pr")
    assert untouched(tmp_path / "run")


def test_half_of_a_launchers_environment(recipe_file: Write, tmp_path: Path) -> None:
    """In a process of its own, since Accelerate keeps what it saw first."""
    job = distill_process(
        ["train", str(recipe_file()), "--folder", str(tmp_path / "run")], tmp_path / "out.txt", WORLD_SIZE="2"
    )
    assert job.finish() == 2
    (line,) = job.text.splitlines()
    assert line.startswith("distill: WORLD_SIZE: 2 processes announced, but they cannot be joined: ")
    assert untouched(tmp_path / "run")


def test_more_processes_than_gpus(
    distill: Command, recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    line = mistake(distill("train", recipe_file(), "--processes", 2, "--folder", tmp_path / "run"))
    assert line == "--processes: 2 asked for, this machine has 1 GPUs"
    assert untouched(tmp_path / "run")


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard", "trackio"])
@pytest.mark.parametrize("folder", [False, True])
def test_a_tracker_that_is_not_installed(
    tracker: str, folder: bool, distill: Command, recipe_file: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder of that name in the working directory, which wandb's offline runs leave, is not the package."""
    find = importlib.util.find_spec
    spec = ModuleSpec(tracker, None, is_package=True) if folder else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == tracker else find(name, *rest))
    line = mistake(distill("train", recipe_file(tracking=[tracker]), "--folder", tmp_path / "run"))
    assert line == f"tracking: {tracker} is not installed; `{install_command(tracker)}`"
    assert untouched(tmp_path / "run")


def test_a_number_of_evaluations_below_one() -> None:
    for evaluations in (0, -1):
        with pytest.raises(UserError, match=f"^evaluations: must be at least 1, got {evaluations}$"):
            sample(tiny_denoiser(), torch.zeros(1, 1, 8, 8), evaluations=evaluations)


def test_many_losses_that_are_not_finite(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    """The one mistake that shows while training: after the log it ends as every other, with a checkpoint."""
    objective = {"name": "tests.trainers.poison:Poisoned", "samples": [0, 8, 16]}
    file = recipe_file(objective=objective, max_skipped=3, log_every=24, checkpoint_every=1000)
    result = distill("train", file, "--folder", tmp_path / "run")
    _, _, *log, line = result.err.splitlines()  # without the lines that begin a run
    assert result.code == 2 and len(log) == 1 and log[0].startswith("tiny: 24 of 96 images")
    assert line.startswith(
        "distill: generator: 3 updates in a row had a non-finite loss or gradient at 24 images; they"
    )
    assert [int(folder.name) for folder in checkpoint.folders(tmp_path / "run/checkpoints")] == [24, 0]


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train"], ["train", "x", "--proceses", "2"], ["sample", "x", "--count", "no"]]
)
def test_a_command_line_that_does_not_parse(arguments: list[str], distill: Command) -> None:
    result = distill(*arguments)
    assert result.code == 2 and "Usage: distill" in result.err and "Traceback" not in result.err


def test_a_traceback_comes_only_when_asked_for(distill: Command) -> None:
    result = distill("train", "digit_sid", "--debug")
    assert result.code == 2
    assert result.err.startswith("Traceback (most recent call last):") and "find_recipe" in result.err
    assert result.err.splitlines()[-1].startswith("distill: recipe: no file and no shipped recipe 'digit_sid'")


@pytest.mark.parametrize("length", [1_000, 100_000])
def test_a_long_line_loses_its_middle(length: int, distill: Command) -> None:
    result = distill("classifier", "x" * length)
    assert result.code == 1 and result.err.count("\n") == 1 and len(result.err) < 1_550
    assert (" ... " in result.err) == (length > 1_500)
