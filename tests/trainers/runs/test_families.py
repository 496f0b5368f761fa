"""Every kind of teacher trains under an objective through the graph and one without, resumes to the bit, and leaves as
a pipeline that a stranger loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.export import FORMATS
from distill.export.format import BATCH, float32, inputs
from distill.generator import Generator
from tests.exports import OURS, snippet, strangers
from tests.families import FLOWS, TEACHERS, recipe
from tests.tiny import once
from tests.trainers.interrupted import assert_same, fit, interrupted, lines
from trainers.runs.load import load_trained

pytestmark = pytest.mark.usefixtures("trusted_code")

CASES = [(name, "fgm" if name.startswith(FLOWS) else "sid") for name in TEACHERS]
CASES += [(name, "diff_instruct") for name in TEACHERS]
WITHOUT_PIPELINE = ("own",)  # it leaves as safetensors: tests/trainers/runs/test_own.py


@pytest.fixture(autouse=True)
def module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers copies each folder's code to one place of the user's home, which parallel tests must not share."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture(scope="session")
def teacher(shared: Path) -> Callable[[str], Path]:
    """The folder of the tiny teacher of a name, written when a test first asks for it."""
    return lambda name: once(shared, f"teacher_{name}", TEACHERS[name])


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_four_updates_and_a_resume(
    name: str, objective: str, teacher: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(name, objective, teacher(name), tmp_path)
    straight = fit(settings, tmp_path / "straight")
    assert straight.state.images == 16 and len(lines(tmp_path / "straight" / "log.jsonl")) == 4
    moved, still = straight.state.players["generator"], list(straight.teacher.parameters())
    assert moved.counters()["skipped"] == 0 and all(bool(weight.isfinite().all()) for weight in moved.parameters)
    assert any(not torch.equal(ours, theirs) for ours, theirs in zip(moved.parameters, still, strict=True))
    interrupted(settings, tmp_path / "resumed", 8, monkeypatch)
    fit(settings, tmp_path / "resumed", resume=True)
    assert_same(tmp_path / "straight", tmp_path / "resumed")


def test_strangers_load_what_was_trained(teacher: Callable[[str], Path], tmp_path: Path) -> None:
    """The trained generator's export, loaded in a process without our packages, gives the trainer's images."""
    cases, generators = {}, {}
    for name in TEACHERS:
        if name in WITHOUT_PIPELINE:
            continue
        work = tmp_path / f"trained_{name}"
        fit(recipe(name, "diff_instruct", teacher(name), work, images=4), run := work / "run")
        product = load_trained(run)
        assert isinstance(product.model, Generator)
        assert product.export(tmp_path / name) < 1e-4
        code = snippet(tmp_path / name)
        if "latents" not in code:
            code = code.replace("num_inference_steps=1", "num_inference_steps=1, output_type='np'")
        cases[name] = tmp_path / name, code
        generators[name] = float32(product.model)
    (tmp_path / "stranger").mkdir()
    for name, drawn in strangers(tmp_path / "stranger", cases, OURS).items():
        generator = generators[name]
        form = FORMATS["diffusers"](generator, generator.denoiser.network.example(BATCH), teacher(name))
        given = inputs(generator, form.cond, batch=len(drawn))
        with torch.no_grad():
            expected = form.shown(generator(given.noise, given.cond))
        if "latents" not in cases[name][1]:
            drawn, expected = 2 * drawn.permute(0, 3, 1, 2) - 1, expected.clamp(-1, 1)
        assert float((drawn - expected).abs().max()) < 1e-4 and float(expected.std()) > 0.01, name
