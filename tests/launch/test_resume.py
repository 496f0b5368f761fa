"""distill resume with changes: shown, and accepted or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.commands.train import limit_time
from tests.launch.conftest import Command
from trainers.engine.stopping import STOP
from trainers.io.jsonl import read
from trainers.recipe.strict_yaml import load_yaml

LAST = f"checkpoints/{16:012d}"


def test_more_images_need_no_leave(distill: Command, student: Path) -> None:
    result = distill("resume", student, "images=32", "log_every=32", "evaluation.every=0", "keep=1")
    assert result.code == 0, result.err
    lines = result.err.splitlines()
    assert sorted(lines[:4]) == [
        "changed since the checkpoint: evaluation.every: 8 -> 0",
        "changed since the checkpoint: images: 16 -> 32",
        "changed since the checkpoint: keep: 3 -> 1",
        "changed since the checkpoint: log_every: 16 -> 32",
    ]
    assert lines[4] == f"resumed '{student}' at 16 images"
    assert load_yaml(student / "run.yaml")["images"] == 32
    assert [record["images"] for record in read(student / "log.jsonl")] == [16, 32]
    assert [path.name for path in sorted((student / "checkpoints").iterdir())] == [f"{32:012d}"]
    again = distill("resume", student)
    hint = f"`distill resume {student} images=N` trains on until N images"
    commands = [f"`distill {name} {student}`" for name in ("report", "evaluate", "sample")]
    then = f"next {', '.join(commands)} or `distill export {student}`"
    assert (again.code, again.err) == (0, f"'{student}' is finished at 32 images; {hint}\ntiny: done; {then}\n")


def test_fewer_images_than_are_done_are_one_line(distill: Command, student: Path) -> None:
    for more in ((), ("--processes", "2", "--oversubscribe")):
        refused = distill("resume", student, "images=8", *more)
        wrong = "distill: images: 8 is below the 16 that 'tiny' has trained on; give 16 or more\n"
        assert (refused.code, refused.err) == (2, wrong)


def test_what_changes_training_needs_leave_for_each_key(distill: Command, student: Path) -> None:
    before = (student / "run.yaml").read_text()
    changes = ["images=32", "objective.alpha=1.0", "generator.lr=0.002"]
    wanted = "generator.lr: 0.001 -> 0.002: this would change what is trained; --allow generator.lr accepts it"
    refused = distill("resume", student, *changes, "--allow", "objective")
    assert refused.code == 2 and refused.err == f"distill: {wanted}\n"
    refused = distill("resume", student, *changes)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert refused.err.endswith("--allow objective.alpha --allow generator.lr accepts it\n")
    assert (student / "run.yaml").read_text() == before
    done = distill("resume", student, *changes, "--allow", "objective", "--allow", "generator.lr")
    assert done.code == 0, done.err
    assert "changed since the checkpoint: objective.alpha: 1.2 -> 1.0" in done.err
    saved = json.loads((student / f"checkpoints/{32:012d}/state.json").read_text())["recipe"]
    assert saved == load_yaml(student / "run.yaml") and saved["objective"]["alpha"] == 1.0


def test_a_run_yaml_that_was_edited_is_a_change_too(distill: Command, student: Path) -> None:
    file = student / "run.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 1"))
    refused = distill("resume", student)
    assert refused.code == 2
    assert refused.err == ("distill: seed: 0 -> 1: this would change what is trained; --allow seed accepts it\n")


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ("generator.name=sgd", "generator.name: sgd cannot go on where another optimizer has saved"),
        (
            "generator.lora={rank: 2}",
            "generator.safetensors' lacks denoiser.network.unet.conv_in.lora_A.default.weight",
        ),
        ("nonsense=1", "unknown key 'nonsense'"),
    ],
)
def test_what_cannot_go_on_is_one_line(change: str, wrong: str, distill: Command, student: Path) -> None:
    before = (student / "run.yaml").read_text()
    result = distill("resume", student, "images=32", change, "--allow", "generator")
    assert result.code == 2 and wrong in result.err.splitlines()[-1] and "Traceback" not in result.err
    assert (student / "run.yaml").read_text() == before


def test_the_newest_that_is_valid_is_taken(distill: Command, student: Path) -> None:
    with (student / LAST / "manifest.json").open("r+b") as stream:
        stream.seek(40)
        byte = stream.read(1)
        stream.seek(40)
        stream.write(bytes([byte[0] ^ 1]))
    result = distill("resume", student)
    assert result.code == 0
    assert result.err.splitlines()[0].startswith(f"skipped checkpoint '{student / LAST}': ")
    assert result.err.splitlines()[1] == f"resumed '{student}' at 8 images"


@pytest.mark.parametrize("given", ["1:2", "90", "3:50:0", "x"])
def test_a_time_limit_that_is_none(given: str, distill: Command, student: Path) -> None:
    result = distill("resume", student, "--time-limit", given)
    assert result.code == 2
    assert result.err == (
        f"distill: --time-limit: must be [days-]hours:minutes:seconds, such as 3:50:00, got '{given}'\n"
    )


def test_time_limits_and_the_end_of_a_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(STOP, "limit", limits.append)
    monkeypatch.setattr("time.time", lambda: 1000.0)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1600")
    limit_time("1-02:03:04")
    assert limits == [93784, 600]


def test_a_run_stops_before_its_time_limit(distill: Command, student: Path) -> None:
    """A minute is what a save may take at least, so nothing is trained in less."""
    result = distill("resume", student, "images=1000000", "--time-limit", "0:00:59")
    assert result.code == 75
    assert result.err.splitlines()[-1] == (
        f"distill: stopped by the time limit at 16 images, which are saved: `distill resume {student}` goes on"
    )
