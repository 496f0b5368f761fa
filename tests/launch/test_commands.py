"""The commands from a recipe to pictures and numbers, on tiny networks."""

from __future__ import annotations

import io
import json
import re
import sqlite3
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.metrics import Classifier
from distill.teachers import save_denoiser
from launch.commands.evaluate import table
from tests.launch.conftest import Command
from tests.tiny import build_session, write_pairs
from tests.tiny import distill as distill_process
from trainers.checkpoints import checkpoint, saver
from trainers.checkpoints.tensor_files import ShardedTensors
from trainers.data import Dataset, Images
from trainers.io.images import grid
from trainers.io.jsonl import read
from trainers.recipe import strict_yaml
from trainers.recipe.load import build_experiment, resolve
from trainers.recipe.run import Run
from trainers.recipe.shipped import shipped_recipes
from trainers.recipe.strict_yaml import dump, to_yaml
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs.classifier import resolve_classifier, split
from trainers.runs.load import load_trained
from trainers.runs.open import open_run
from trainers.runs.teacher import fresh_denoiser

Write = Callable[..., Path]


def numbers(text: str) -> list[list[float]]:
    """The numbers of the rows of a printed table, percentages as fractions."""
    rows = []
    for row in re.findall(r"^[│|] *(student|teacher|real halves) *(.*)$", text, re.MULTILINE):
        cells = [cell.strip() for cell in row[1].split("│")]
        rows.append([float(c[:-1]) / 100 if c.endswith("%") else float(c) for c in cells if c])
    return rows


def test_from_a_teacher_to_a_table(distill: Command, recipe_file: Write, tmp_path: Path) -> None:
    """teacher, train (on what teacher wrote), resume (nothing left to do), sample, evaluate."""
    teacher, run = tmp_path / "t", tmp_path / "runs" / "s"
    common: dict[str, Any] = {"images": 16, "checkpoint_every": 8, "log_every": 8, "samples_every": 8}
    common["evaluation"] = {"every": 8, "samples": 64}
    made = distill("teacher", recipe_file(trains="teacher", **common), "--folder", teacher)
    assert made.code == 0 and made.err.endswith(f"or a recipe with `teacher: {teacher / 'teacher'}`\n")
    names = {path.name for path in (teacher / "teacher").iterdir()}
    assert names == {"unet", "denoiser.json"}
    file = recipe_file(teacher="../t/teacher", **common)  # relative to the working directory, which is cwd/
    trained_run = distill("train", file, "objective.alpha=1.0", "seed=3", "--folder", run)
    assert trained_run.code == 0
    assert trained_run.err.endswith(
        f"tiny: done; next `distill report {run}`, `distill evaluate {run}`, `distill sample {run}` or"
        f" `distill export {run}`\n"
    )
    resolved = yaml.safe_load((run / "run.yaml").read_text())
    assert resolved["teacher"] == str(teacher / "teacher")
    assert (resolved["objective"]["alpha"], resolved["seed"], resolved["keep"]) == (1.0, 3, 3)
    for folder in (teacher, run):
        assert [record["images"] for record in read(folder / "log.jsonl")] == [8, 16]
        assert [record["images"] for record in read(folder / "metrics.jsonl")] == [8, 16]
        assert [path.name for path in checkpoint.folders(folder / "checkpoints")] == [f"{i:012d}" for i in (16, 8, 0)]
        assert [path.name for path in sorted((folder / "samples").iterdir())] == [f"{i:012d}.png" for i in (8, 16)]
        assert not list(folder.glob("wandb*")) and not list(folder.glob("tensorboard*"))
    again = distill("resume", run)
    assert again.code == 0 and again.err.startswith(f"'{run}' is finished at 16 images; ")
    assert len(read(run / "log.jsonl")) == 2

    sampled = distill("sample", run, "--count", 7, "--columns", 4, "--label", 3, "--seed", 5)
    assert (sampled.code, sampled.out) == (0, f"7 samples: {run}/sample.png\n")
    trained = load_trained(run)
    expected = grid(trained.sample(7, label=3, seed=5), 4)
    assert np.array_equal(np.array(Image.open(run / "sample.png")), np.array(expected))
    assert distill("sample", run, "--teacher", "--count", 2, "--out", "t.png").code == 0
    assert np.array_equal(np.array(Image.open("t.png")), np.array(grid(trained.sample(2, teacher=True), 10)))

    evaluated = distill("evaluate", run, "--samples", 50)
    report = json.loads((run / "evaluation.json").read_text())
    assert evaluated.code == 0 and evaluated.err == ""
    assert report == trained.evaluate(50)
    assert (report["samples"], report["images"], report["protocol"]) == (50, 16, "pca48(digits, 1797 real)")
    student, of_teacher, halves = report["student"], report["teacher"], report["halves"]
    assert report["ratio"] == student["frechet"] / of_teacher["frechet"]
    wanted = [
        [1, student["frechet"], report["ratio"], student["frechet"] / halves, student["label_agreement"]],
        [35, of_teacher["frechet"], 1, of_teacher["frechet"] / halves, of_teacher["label_agreement"]],
        [halves, halves / of_teacher["frechet"], 1],
    ]
    printed = numbers(evaluated.out)
    assert [len(row) for row in printed] == [5, 5, 3]
    for row, right in zip(printed, wanted, strict=True):
        assert row == pytest.approx(right, abs=0.0051)
    assert "pca48(digits, 1797 real)" in evaluated.out and "50 samples" in evaluated.out


def test_the_table_fits_80_columns() -> None:
    """At the width of a pipe no cell is cut, whatever the numbers."""
    report = {"protocol": "pca48(digits, 1797 real)", "samples": 10_000, "halves": 0.1234}
    report |= {name: {"frechet": 12345.6789, "label_agreement": 0.98765} for name in ("student", "teacher")}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table(report))
    text = console.export_text()
    assert "…" not in text and numbers(text)[0] == pytest.approx([1, 12345.6789, 1, 100046.02, 0.9877], abs=0.01)


def test_the_table_of_features_without_labels() -> None:
    """Published features have no label agreement, and a name in the title is no markup."""
    report = {"protocol": "fid([/x], 12 real)", "samples": 8, "student": {"frechet": 1.25, "recall": 0.5}}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table(report, "runs/[bold]"))
    text = console.export_text()
    assert " ".join(text.split()).startswith("runs/[bold]: Frechet distance in fid([/x], 12 real), 8 samples each")
    assert numbers(text) == [[1, 1.25, 0.5]]


def test_evaluate_of_a_teacher_and_of_the_best(distill: Command, teacher_run: Path, student: Path) -> None:
    assert distill("evaluate", teacher_run, "--samples", 20).code == 0
    report = json.loads((teacher_run / "evaluation.json").read_text())
    assert "student" not in report and "ratio" not in report and report["teacher"]["frechet"] > 0
    best = json.loads((student / "best/metrics.json").read_text())
    assert distill("evaluate", student, "--which", "best").code == 0
    report = json.loads((student / "evaluation.json").read_text())
    assert report["images"] == best["images"]
    assert report["student"]["frechet"] == pytest.approx(best["frechet"], rel=1e-6)
    assert report["student"]["label_agreement"] == best["label_agreement"]


def test_evaluate_and_sample_leave_an_older_checkpoint_unread(distill: Command, student: Path) -> None:
    """They use the newest valid one, as resume does."""
    newest, older, _ = checkpoint.folders(student / "checkpoints")
    (newest / "manifest.json").unlink()
    assert load_trained(student).images == int(older.name) == 8
    resumed = distill("resume", student)
    assert resumed.code == 0
    assert resumed.err.splitlines()[:2] == [
        f"skipped checkpoint '{newest}': manifest.json is missing",
        f"resumed '{student}' at 8 images",
    ]
    assert checkpoint.flaw(newest) is None


def test_the_noise_of_a_picture_is_the_seeds(student: Path) -> None:
    trained = load_trained(student)
    first = trained.sample(20)
    assert torch.equal(first, trained.sample(20))
    assert torch.allclose(first[:5], trained.sample(5), atol=1e-5)  # another batch rounds otherwise
    assert not torch.allclose(first, trained.sample(20, seed=1), atol=0.1)
    alike = trained.sample(20, label=4)
    assert torch.allclose(alike[4::10], first[4::10], atol=1e-5)  # labels run 0 ... 9
    assert not torch.allclose(alike[5], first[5], atol=1e-3)


def test_run_yaml_runs_again(distill: Command, student: Path, tmp_path: Path) -> None:
    """The resolved recipe in the run folder trains the same to the bit."""
    assert distill("train", student / "run.yaml", "--folder", tmp_path / "again").code == 0
    for name in ("manifest.json", "state.json", "generator.safetensors"):
        first, second = (run / "checkpoints" / f"{16:012d}" / name for run in (student, tmp_path / "again"))
        assert first.read_bytes() == second.read_bytes()
    assert (student / "run.yaml").read_text() == (tmp_path / "again/run.yaml").read_text()


# Recipes.


def test_recipes_are_listed_and_printed(distill: Command) -> None:
    listed = distill("recipes")
    assert listed.code == 0
    groups = [group.splitlines() for group in listed.out.split("\n\n")[:-1]]
    assert [title for title, *_ in groups] == [
        "First tries, which train on a CPU:",
        "Papers, with EDM's teachers:",
        "Papers, with EDM2's teachers:",
        "Papers, with pipelines of diffusers:",
        "Their teachers and classifiers:",
    ]
    rows = {line.split()[0]: re.split(r"  +", line.strip()) for _, _, *lines in groups for line in lines}
    assert sorted(rows) == sorted(shipped_recipes()) and sum(len(lines) - 2 for lines in groups) == len(rows)
    assert rows["fashion_sida"] == [
        "fashion_sida",
        "sida",
        "fashion_teacher",
        "images fashion_mnist; after `fashion_sid`",
        "100,000",
    ]
    assert rows["sdxl_di_star"][1:3] == ["rewarded(guided(sim))", "sdxl"]
    assert rows["digits_flow_teacher"] == ["digits_flow_teacher", "(a teacher, path flow)", "digits", "140,000"]
    assert [name for name in rows if name.startswith("imagenet512")] == [line.split()[0] for line in groups[2][2:]]
    for _, head, *lines in groups:  # the numbers end where their head ends
        assert {len(line) for line in lines} == {len(head)} and head.split()[-1] == "images"
    for name, file in shipped_recipes().items():
        printed = distill("recipes", name)
        assert printed.code == 0 and printed.out == file.read_text()


def test_every_recipe_is_shipped_recipes() -> None:
    here = Path(str(files("configs")))
    assert {"digits_teacher", "digits_sid", "digits_flow_teacher"} <= set(shipped_recipes())
    assert len(shipped_recipes()) == len(list(here.rglob("*.yaml")))
    for name, file in shipped_recipes().items():
        assert strict_yaml.load_yaml(file)["name"] == name and file.read_text().startswith("# ")


def few(data: Images) -> Dataset:
    """In place of a data set that would be downloaded: 20 noises of its shape."""
    shape = (1 if data.mode == "L" else 3, data.resolution, data.resolution)
    images = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Dataset(Path(data.path).name, 20, shape, torch.arange(20) % 10, lambda at: images[at])


@pytest.mark.parametrize(
    "name", sorted(name for name, file in shipped_recipes().items() if "tiny" not in strict_yaml.load_yaml(file))
)
def test_every_recipe_builds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its name to a session, on 1, 2 and 8 processes' worth of batch; a distillation on the teacher it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Images, "load", few)
    settings = strict_yaml.load_yaml(shipped_recipes()[name])
    if settings.get("trains") == "classifier":
        assert split(resolve_classifier(name), resolve_classifier(name).data.load())
        return
    run = resolve(name)
    reward = settings.get("objective", {}).get("reward", {})
    for classifier in filter(None, (run.evaluation.classifier, reward.get("classifier"))):
        dataset, source = run.data.load(), Path(classifier)  # what `distill classifier` of a shipped recipe writes
        assert source.parent.name == "runs" and source.name in shipped_recipes()
        Classifier(dataset.shape, dataset.classes, data=dataset.name).save(source)
    if isinstance(run, Run):
        for source in map(Path, filter(None, (run.teacher, settings["objective"].get("weak_teacher")))):
            # It is what `distill teacher` of a shipped recipe writes.
            assert source.name == "teacher" and source.parent.name in shipped_recipes()
            teacher = resolve(source.parent.name)
            assert isinstance(teacher, TeacherRun)
            real = teacher.data.load()
            save_denoiser(fresh_denoiser(teacher, real.shape, real.classes), source)
        if run.start is not None:  # the run folder of another shipped recipe, here at its first moment
            first = resolve(Path(run.start).name)
            Path(run.start).mkdir(parents=True)
            (Path(run.start) / "run.yaml").write_text(to_yaml(dump(first)))
            built = build_session(first)
            saver.Saver(Path(run.start) / "checkpoints", 1, built.accelerator).save_now(built)
        if run.pairs is not None:  # what `distill pairs` writes
            list(write_pairs(Path(run.teacher), Path(run.pairs.folder), 1))
    open_run(run, 1, weights=False)
    for processes in (2, 8):
        run.check_world(processes)
    session = build_session(run)
    assert session.state.images == 0
    assert build_experiment(dump(run), "again") == run


# Trackers.


def test_wandb_without_a_login_records_offline(recipe_file: Write, tmp_path: Path) -> None:
    """A process of its own with an empty home: no key anywhere. A notice, files in the run folder, one run id."""
    file = recipe_file(images=16, log_every=8, tracking=["wandb", "tensorboard"])
    run = tmp_path / "run"
    home = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "none")}
    job = distill_process(["train", str(file), "--folder", str(run)], tmp_path / "out.txt", cwd=tmp_path, **home)
    assert job.finish() == 0, job.text
    assert "wandb: no login found, recording offline; `wandb sync` uploads it later" in job.text
    (offline,) = (run / "wandb").glob("offline-run-*")
    identity = json.loads((run / "wandb.json").read_text())["id"]
    assert offline.name.endswith(identity) and list(offline.glob(f"run-{identity}.wandb"))
    media = offline / "files" / "media" / "images"
    assert [len(list(media.glob(f"{name}_*.png"))) for name in ("samples", "teacher above student")] == [1, 2]
    (events,) = (
        path for path in (run / "tensorboard").rglob("events.out.tfevents.*") if path.parent.name == "distill-onestep"
    )
    assert scalars(events.parent) == {
        (record["images"], name): pytest.approx(value, rel=1e-5)
        for record in read(run / "log.jsonl")
        for name, value in record.items()
        if name not in ("images", "time")
    } | {
        (record["images"], f"health/{name}"): pytest.approx(value, rel=1e-5)
        for record in read(run / "health.jsonl")
        for name, value in record.items()
        if name not in ("images", "alarms")
    }
    assert not (tmp_path / "wandb").exists()


def test_trackio_continues_through_a_resume(recipe_file: Write, tmp_path: Path) -> None:
    """One run, with each number of the log at its images, and the pictures. Nothing of it leaves the machine."""
    pytest.importorskip("trackio")
    file, run = recipe_file(images=16, log_every=8, tracking=["trackio"]), tmp_path / "run"
    home = {"HOME": str(tmp_path / "home"), "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    for arguments in (["train", str(file), "--folder", str(run)], ["resume", str(run), "images=24"]):
        job = distill_process(arguments, tmp_path / "out.txt", cwd=tmp_path, **home)
        assert job.finish() == 0, job.text
    rows = sqlite3.connect(tmp_path / "trackio" / "distill-onestep.db").execute(
        "SELECT run_name, step, metrics FROM metrics"
    )
    found, pictures, names = {}, set(), set()
    for name, images, line in rows:
        names.add(name)
        for key, value in json.loads(line).items():
            if isinstance(value, dict):
                pictures.add((images, key, Path(value["file_path"]).suffix))
            else:
                found[images, key] = value
    identity = json.loads((run / "trackio.json").read_text())["id"]
    (name,) = names
    assert name.endswith(f"-{identity}")
    assert (
        found.items()
        >= {
            (record["images"], key): pytest.approx(value, rel=1e-5)
            for record in read(run / "log.jsonl")
            for key, value in record.items()
            if key not in ("images", "time", "changes")
        }.items()
    )
    assert {(24, "samples", ".png"), (24, "teacher above student", ".png")} <= pictures


def scalars(folder: Path) -> dict[tuple[int, str], float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    of_the_machine = {"images_per_second", "peak_memory_gib"}
    assert of_the_machine < set(events.Tags()["scalars"])
    names = [name for name in events.Tags()["scalars"] if name not in of_the_machine]
    return {(event.step, name): event.value for name in names for event in events.Scalars(name)}


# Several processes.


def test_two_processes_through_our_own_launcher(recipe_file: Write, tmp_path: Path, distill: Command) -> None:
    """`--processes 2` trains what one process does, in float64 to rounding."""
    settings: dict[str, Any] = {"precision": "float64", "images": 32, "evaluation": {"every": 32, "samples": 33}}
    file = recipe_file(**settings)
    job = distill_process(
        ["train", str(file), "--processes", "2", "--oversubscribe", "--folder", str(tmp_path / "two")],
        tmp_path / "out.txt",
    )
    assert job.finish() == 0, job.text
    assert distill("train", file, "--folder", tmp_path / "one").code == 0
    for name in ("generator", "fake", "ema"):
        one, two = (ShardedTensors(tmp_path / run / f"checkpoints/{32:012d}", name) for run in ("one", "two"))
        assert set(one) == set(two) != set()
        assert all(torch.allclose(one[key], two[key], rtol=1e-9, atol=1e-12) for key in one)
    logs = [read(tmp_path / run / "log.jsonl") for run in ("one", "two")]
    assert [r["images"] for r in logs[0]] == [r["images"] for r in logs[1]] == [16, 32]
    for name in ("generator/sid", "fake/denoising", "generator/grad_norm"):
        assert [r[name] for r in logs[0]] == pytest.approx([r[name] for r in logs[1]], rel=1e-9)
    (left,), (right,) = (read(tmp_path / run / "metrics.jsonl") for run in ("one", "two"))
    assert left["frechet"] == pytest.approx(right["frechet"], rel=1e-6) and right["samples"] == 33
