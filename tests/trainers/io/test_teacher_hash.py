"""The identity of a teacher: what it computes, and not what a library notes in its configs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UserError
from tests.tiny import fit_run, recipe, write_pairs
from trainers.checkpoints import checkpoint
from trainers.io import teacher_hash as hashes
from trainers.io.atomic import sha256
from trainers.io.teacher_hash import is_hash_of, teacher_hash
from trainers.runs.load import load_trained


def edit(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file. A change to None removes one."""
    kept = {key: value for key, value in json.loads(file.read_text()).items() if key not in changes}
    file.write_text(json.dumps({**kept, **{key: value for key, value in changes.items() if value is not None}}))


def old_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hashes be made as older versions made them, of the bytes of all files."""
    monkeypatch.setattr(hashes, "_content_hash", sha256)


@pytest.fixture
def sd(pipelines: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pipelines("sd15"), tmp_path / "sd15"))


CHANGES: list[tuple[str, dict[str, Any], bool]] = [
    ("model_index.json", {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}, True),
    ("model_index.json", {"safety_checker": [None, None], "feature_extractor": [None, None]}, True),
    ("model_index.json", {"requires_safety_checker": True, "_diffusers_version": "0.1.0"}, True),
    ("unet/config.json", {"_diffusers_version": "0.1.0", "_name_or_path": "/home/me/sd"}, True),
    ("unet/config.json", {"_diffusers_version": None}, True),
    ("scheduler/scheduler_config.json", {"_diffusers_version": "0.1.0"}, True),
    ("scheduler/scheduler_config.json", {"beta_end": 0.02}, False),
    ("unet/config.json", {"norm_eps": 1e-3}, False),
    ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}, False),
]


@pytest.mark.parametrize(("file", "changes", "same"), CHANGES)
def test_metadata_is_no_part_of_a_teacher(file: str, changes: dict[str, Any], same: bool, sd: Path) -> None:
    before = teacher_hash(str(sd))
    edit(sd / file, **changes)
    assert (teacher_hash(str(sd)) == before) == same


def test_a_trained_teacher_may_be_saved_again(teachers: Path, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(teachers / "edm", tmp_path / "edm"))
    before = teacher_hash(str(teacher))
    edit(teacher / "unet" / "config.json", _diffusers_version="9.9.9")
    assert teacher_hash(str(teacher)) == before


def test_a_run_of_an_older_version_goes_on(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint and its pairs hold the old form of the hash. Afterwards the new form is written."""
    teacher = Path(shutil.copytree(teachers / "edm", tmp_path / "edm"))
    settings = recipe(teacher, objective="dmd", pairs={"folder": f"{tmp_path}/pairs", "fraction": 0.5}, images=24)
    with monkeypatch.context() as old:
        old_form(old)
        list(write_pairs(teacher, tmp_path / "pairs"))
        fit_run(settings, tmp_path / "run")
    stored = checkpoint.newest_state(tmp_path / "run" / "checkpoints")
    assert stored is not None and stored["teacher"] != teacher_hash(str(teacher))
    assert is_hash_of(stored["teacher"], str(teacher), teacher_hash(str(teacher)))
    assert load_trained(tmp_path / "run").images == 24
    written = list(write_pairs(teacher, tmp_path / "pairs"))
    assert written == [8, 16, 20]
    fit_run({**settings, "images": 48}, tmp_path / "run", resume=True, allow=["images"])
    stored = checkpoint.newest_state(tmp_path / "run" / "checkpoints")
    assert stored is not None and (stored["images"], stored["teacher"]) == (48, teacher_hash(str(teacher)))
    fit_run(recipe(teacher, start=f"{tmp_path}/run", images=8), tmp_path / "second")


def test_another_teacher_is_still_refused(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Path(shutil.copytree(teachers / "edm", tmp_path / "edm"))
    with monkeypatch.context() as old:
        old_form(old)
        fit_run(recipe(teacher, images=24), tmp_path / "run")
    shutil.rmtree(teacher)
    shutil.copytree(teachers / "dropout", teacher)
    with pytest.raises(UserError, match="another teacher"):
        load_trained(tmp_path / "run")
    with pytest.raises(UserError, match="another teacher"):
        fit_run(recipe(teacher, images=24), tmp_path / "run", resume=True)
