"""A run may start from another run's generator (SiD2A), which it needs no longer once it has started."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.errors import UserError
from distill.teachers import save_denoiser
from tests.tiny import ADAPTERS, build_session, experiment, recipe, teacher_recipe, tiny_denoiser
from tests.trainers.interrupted import assert_same, fit, interrupted
from trainers.checkpoints import checkpoint
from trainers.runs.open import open_run


@pytest.fixture
def sid(teachers: Path, tmp_path: Path) -> Path:
    """A finished run whose best is not its last."""
    folder = tmp_path / "sid"
    fit(recipe(teachers / "edm", images=32, generator={"lr": 1e-2}), folder)
    (folder / "best").mkdir()
    for file in (folder / "checkpoints" / f"{24:012d}").iterdir():
        shutil.copy(file, folder / "best")
    return folder


def same(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    state = module.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[key], tensors[key]) for key in state)


@pytest.mark.parametrize("which", ["", "best"])
def test_generator_and_average_start_there(which: str, teachers: Path, sid: Path) -> None:
    settings = recipe(teachers / "edm", start=str(sid / which))
    source = sid / "best" if which else checkpoint.newest(sid / "checkpoints")[0]
    average = load_file(source / "ema.safetensors")
    session = build_session(settings)
    teacher = build_session(recipe(teachers / "edm")).state.players["generator"].bare
    assert same(session.model, average) and not same(teacher, average)
    assert same(session.state.players["generator"].bare, average)
    assert same(
        session.state.players["fake"].bare, {k.removeprefix("denoiser."): v for k, v in teacher.state_dict().items()}
    )


def test_a_resume_needs_it_no_longer(
    teachers: Path, sid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(teachers / "edm", start=str(sid))
    fit(settings, tmp_path / "whole")
    interrupted(settings, tmp_path / "cut", 40, monkeypatch)
    shutil.rmtree(sid)
    fit(settings, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_a_start_that_cannot_be(teachers: Path, sid: Path, tmp_path: Path) -> None:
    fit(teacher_recipe(images=8), tmp_path / "teacher")
    save_denoiser(tiny_denoiser(norm_num_groups=2, block_out_channels=[4]), tmp_path / "small")
    newest = sid / "checkpoints" / f"{32:012d}"
    spelled = "{{'nsr': {}, 't': None, 'scale': None, 'preset': None}}"
    entry = f"start: the generator of '{{}}' has entry {{}}, this recipe has {spelled}"
    settings = recipe(teachers / "edm", start=str(sid))
    (sid / "best/ema.safetensors").unlink()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"start": "nowhere"}, "start: 'nowhere' is not a run folder: it has no run.yaml"),
        ({"start": str(tmp_path / "teacher")}, entry.format(tmp_path / "teacher", None, 2.5)),
        ({"entry": {"nsr": 1.0}}, entry.format(sid, spelled.format(2.5), 1.0)),
        (
            {"teacher": str(tmp_path / "small")},
            f"start: the generator in '{newest}' is not of the teacher's architecture",
        ),
        ({"start": str(sid / "best")}, f"cannot read '{sid}/best/ema.safetensors': "),
    ]
    for changes, message in cases:
        run = experiment({**settings, **changes})
        with pytest.raises(UserError, match=f"^{re.escape(message)}"):
            open_run(run, 1, weights=False)
        open_run(run, 1, weights=False, fresh=False)  # a resume does not look


@pytest.fixture
def adapted(teachers: Path, tmp_path: Path) -> Path:
    """A finished run of adapters."""
    fit(recipe(teachers / "edm", images=32, generator=ADAPTERS), tmp_path / "adapted")
    return tmp_path / "adapted"


def test_adapters_start_as_such_adapters(
    teachers: Path, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(teachers / "edm", start=str(adapted), generator=ADAPTERS)
    average = load_file(checkpoint.newest(adapted / "checkpoints")[0] / "ema.safetensors")
    session = build_session(settings)
    weights = session.state.players["generator"].bare.state_dict()
    assert len(average) > 20 and all(torch.equal(weights[name], value) for name, value in average.items())
    assert any(bool(value.any()) for name, value in average.items() if "lora_B" in name)
    fit(settings, tmp_path / "whole")
    interrupted(settings, tmp_path / "cut", 40, monkeypatch)
    shutil.rmtree(adapted)
    fit(settings, tmp_path / "cut", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_adapters_start_as_no_others(teachers: Path, adapted: Path, sid: Path) -> None:
    other = {"lr": 1e-2, "lora": {"rank": 3}}
    for teacher, settings, words in (
        ("edm", {"start": str(adapted)}, r"has lora \{'rank': 2, .*\}, this recipe has None$"),
        ("edm", {"start": str(sid), "generator": ADAPTERS}, r"has lora None, this recipe has \{'rank': 2, "),
        (
            "edm",
            {"start": str(adapted), "generator": other},
            r"has lora \{'rank': 2, .*\}, this recipe has \{'rank': 3, ",
        ),
        (
            "dropout",
            {"start": str(adapted), "generator": ADAPTERS},
            r"^start: the adapters of '.*' are of another teac",
        ),
    ):
        with pytest.raises(UserError, match=words):
            build_session(recipe(teachers / teacher, **settings))


def test_a_recipe_without_a_mapping_is_refused(teachers: Path, sid: Path) -> None:
    settings = recipe(teachers / "edm", start=str(sid))
    text = (sid / "run.yaml").read_text()
    (sid / "run.yaml").write_text(f"entry: {text.partition('entry:')[2].partition('generator:')[0]}\ngenerator: abc\n")
    with pytest.raises(UserError, match=rf"^start: generator in '{sid}/run.yaml' must be a mapping, got 'abc'$"):
        open_run(experiment(settings), 1, weights=False)
