"""`distill ema`: averages of other widths out of a run's snapshots, and their use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.teachers import load_denoiser
from tests.launch.conftest import Command
from tests.launch.test_mistakes import mistake
from tests.tiny import fit_run, once, recipe, teacher_recipe
from trainers.checkpoints.posthoc_ema import snapshots
from trainers.runs.load import load_trained

STDS = [0.1, 0.15, 0.2]


@pytest.fixture(scope="session")
def tracked(shared: Path, teachers: Path) -> Path:
    """Run folders of 12 updates, `student` and `teacher`, with a snapshot of three widths after each."""

    def make(folder: Path) -> None:
        changes: dict[str, Any] = {"power_ema": {"stds": STDS, "snapshot_every": 8}, "checkpoint_every": 96}
        for name, settings in (
            ("student", recipe(teachers / "edm", **changes)),
            ("teacher", teacher_recipe(**changes)),
        ):
            fit_run(settings, folder / name)

    return once(shared, "tracked", make)


@pytest.fixture(params=["student", "teacher"])
def run(request: pytest.FixtureRequest, tracked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tracked / request.param, tmp_path / request.param))


@pytest.fixture
def student(tracked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tracked / "student", tmp_path / "student"))


def weights(file: Path) -> Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(file).items())])


def snapshot(run: Path, std: float, images: int = 96) -> Tensor:
    return weights(run / f"power_ema/{images:012d}/{std}.safetensors")


def test_a_width_that_was_tracked_is_that_average(run: Path, distill: Command) -> None:
    result = distill("ema", run, "--std", 0.15)
    assert (result.code, result.out) == (
        0,
        "--which posthoc/0.15: relative width 0.15 after 96 images, of 36 snapshots; 0.00% of its profile is missing\n",
    )
    assert torch.allclose(weights(run / "posthoc/0.15/ema.safetensors"), snapshot(run, 0.15), rtol=1e-6, atol=1e-8)
    assert distill("ema", run, "--std", 0.2, "--images", 48).code == 0
    made = weights(run / "posthoc/0.2@48/ema.safetensors")
    assert torch.allclose(made, snapshot(run, 0.2, 48), rtol=1e-6, atol=1e-8)
    assert not torch.allclose(made, snapshot(run, 0.2, 56), rtol=1e-6, atol=1e-8)
    parts = json.loads((run / "posthoc/0.2@48/posthoc.json").read_text())["snapshots"]
    assert max(part["images"] for part in parts) == 48


def test_a_width_that_was_not_tracked_is_near_the_average_it_would_have_been(run: Path, distill: Command) -> None:
    """Nearer by far than the two widths that it was made of are to each other."""
    direct = snapshot(run, 0.15)
    for file in run.glob("power_ema/*/0.15.safetensors"):
        file.unlink()
    assert distill("ema", run, "--std", 0.15).code == 0
    made = weights(run / "posthoc/0.15/ema.safetensors")
    apart = (snapshot(run, 0.1) - snapshot(run, 0.2)).norm()
    assert (made - direct).norm() < 2e-4 * apart < 5e-4 * (direct - snapshot(run, 0.1)).norm()
    description = json.loads((run / "posthoc/0.15/posthoc.json").read_text())
    assert (description["images"], description["std"]) == (96, 0.15)
    assert description["left"] == pytest.approx(0.0021, rel=0.01)
    parts = description["snapshots"]
    assert [(part["images"], part["std"]) for part in parts] == [(s.images, s.std) for s in snapshots(run)]
    assert len(parts) == 24 and sum(part["coefficient"] for part in parts) == pytest.approx(1)


def test_it_is_sampled_evaluated_and_exported(student: Path, distill: Command) -> None:
    assert distill("ema", student, "--std", 0.12).code == 0
    which = ("--which", "posthoc/0.12")
    trained = load_trained(student, "posthoc/0.12")
    assert (trained.images, trained.average) == (96, "power function of relative width 0.12 (arXiv:2312.02696)")
    assert torch.equal(
        torch.cat([p.flatten() for _, p in sorted(trained.model.state_dict().items())]),
        weights(student / "posthoc/0.12/ema.safetensors"),
    )
    assert distill("sample", student, *which, "--count", 2).code == 0
    assert distill("evaluate", student, "--samples", 20).code == 0
    assert distill("export", student, *which).code == 0
    card = (student / "export/README.md").read_text()
    assert f"The weights are an average over the training: {trained.average}." in card
    assert "None were measured." in card  # evaluation.json is of the same images, but of another average
    assert distill("evaluate", student, *which, "--samples", 20).code == 0
    assert json.loads((student / "evaluation.json").read_text())["average"] == trained.average
    assert distill("export", student, *which).code == 0
    assert "None were measured." not in (student / "export/README.md").read_text()


def test_a_teachers_is_a_teacher(tracked: Path, distill: Command, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tracked / "teacher", tmp_path / "run"))
    assert distill("ema", run, "--std", 0.12).code == 0
    denoiser = load_denoiser(str(run / "posthoc/0.12/teacher"))
    made = load_file(run / "posthoc/0.12/ema.safetensors")
    assert all(torch.equal(made[key], value) for key, value in denoiser.state_dict().items())


def test_what_is_refused(student: Path, finished: Path, distill: Command) -> None:
    def refused(*arguments: object) -> str:
        before = sorted(student.rglob("*"))
        line = mistake(distill("ema", student, *arguments))
        assert sorted(student.rglob("*")) == before
        return line

    assert mistake(distill("ema", finished / "student", "--std", 0.1)) == (
        f"'{finished}/student' has no snapshots: its recipe has no power_ema"
    )
    assert refused("--std", 0.3) == "std: must be above 0 and below 0.2887 (the plain mean), got 0.3"
    assert refused("--std", 0.1, "--images", 50) == "images: no snapshot was taken at 50; the nearest are at 48, 56"
    assert refused("--std", 0.02, "--images", 8) == (
        "std: 0.02 cannot be made of 3 snapshots of widths 0.1, 0.15, 0.2: 58.1% of its profile would be missing,"
        " at most 10% may; snapshots more often, or a nearer width in power_ema.stds, make it"
    )
    file = student / "power_ema" / f"{88:012d}" / "0.1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert mistake(distill("ema", student, "--std", 0.12)).startswith(f"cannot read '{file}': ")
    shutil.rmtree(student / "power_ema")
    assert refused("--std", 0.1) == f"'{student}' has no snapshots yet: the first comes after 8 images"


def test_which_there_is(student: Path, distill: Command) -> None:
    for command in ("sample", "evaluate", "export"):
        line = mistake(distill(command, student, "--which", "posthoc/0.3"))
        assert line == f"which: '{student}' has no 'posthoc/0.3'; allowed: last, best"
    assert distill("ema", student, "--std", 0.2, "--images", 48).code == 0
    line = mistake(distill("sample", student, "--which", "bset"))
    assert line == f"which: '{student}' has no 'bset'; allowed: last, best, posthoc/0.2@48"
