"""Checkpoints whose hashes are right and whose content is wrong: they are skipped, and the older one is taken."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import trainers
from distill.errors import UserError
from tests.tiny import fit_run, once, recipe
from trainers.checkpoints import checkpoint
from trainers.io.atomic import sha256

OLD, NEW = f"{8:012d}", f"{16:012d}"


@pytest.fixture(scope="session")
def trained(shared: Path, teachers: Path) -> Path:
    """A run with checkpoints at 0, 8 and 16 images."""
    settings = recipe(teachers / "edm", images=16, checkpoint_every=8, samples_every=16)
    return once(shared, "content", lambda folder: fit_run(settings, folder))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def seal(folder: Path) -> None:
    """Write the manifest anew, as whoever changed the files would."""
    files = [file for file in folder.iterdir() if file.name != "manifest.json"]
    facts = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}
    (folder / "manifest.json").write_text(json.dumps(facts))


def resume(run: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Train on, and return what was said before training began."""
    capfd.readouterr()
    assert trainers.resume(run, images=24).images == 24
    return " ".join(capfd.readouterr().err.split())


def first_moment(name: str = "exp_avg") -> Callable[[dict[str, Tensor]], str]:
    return lambda tensors: next(key for key in tensors if key.endswith(f"|{name}") and tensors[key].ndim > 1)


TENSORS: dict[str, tuple[str, Callable[[dict[str, Tensor]], str], Callable[[Tensor], Tensor], str]] = {
    "moments of one element": (
        "generator.optimizer",
        first_moment(),
        lambda _: torch.zeros(1),
        "{name} is [1], the run's is {shape}",
    ),
    "moments that are not finite": (
        "fake.optimizer",
        first_moment("exp_avg_sq"),
        lambda value: torch.full_like(value, float("nan")),
        "{name} is not finite",
    ),
    "weights that are not finite": (
        "generator",
        lambda tensors: max(tensors),
        lambda value: torch.full_like(value, float("inf")),
        "{name} is not finite",
    ),
    "an average that is not finite": (
        "ema",
        lambda tensors: min(tensors),
        lambda value: value * float("nan"),
        "{name} is not finite",
    ),
    "whole numbers for weights": (
        "fake",
        lambda tensors: max(tensors),
        lambda value: torch.zeros(value.shape, dtype=torch.int8),
        "{name} is of torch.int8, the network's is of torch.float32",
    ),
    "a weight of another shape": (
        "generator",
        lambda tensors: max(tensors, key=lambda name: tensors[name].ndim),
        lambda value: value[:1].contiguous(),
        "{name} is [1, ",
    ),
}


@pytest.mark.parametrize("how", TENSORS)
def test_tensors_that_do_not_fit_are_skipped(how: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stem, choose, change, problem = TENSORS[how]
    file = run / "checkpoints" / NEW / f"{stem}.safetensors"
    tensors = load_file(file)
    name = choose(tensors)
    shape = list(tensors[name].shape)
    save_file({**tensors, name: change(tensors[name])}, file)
    seal(file.parent)
    said = resume(run, capfd)
    assert f"skipped checkpoint '{file.parent}': '{file}': {problem.format(name=name, shape=shape)}" in said
    assert f"resumed '{run}' at 8 images" in said


def test_entries_of_no_parameter_are_skipped(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / NEW / "generator.optimizer.safetensors"
    save_file({**load_file(file), "nobody": torch.zeros(1)}, file)
    seal(file.parent)
    assert f"'{file}': nobody is the state of no parameter" in resume(run, capfd)


@pytest.mark.parametrize("kept", ["step", "exp_avg", "nothing"])
def test_a_part_of_an_optimizers_state_is_skipped(kept: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / NEW / "fake.optimizer.safetensors"
    tensors = load_file(file)
    name = min(tensors).partition("|")[0]
    of_one = {key for key in tensors if key.startswith(f"{name}|")} - {f"{name}|{kept}"}
    left = {} if kept == "nothing" else {key: value for key, value in tensors.items() if key not in of_one}
    save_file(left, file)
    seal(file.parent)
    lacking = ", ".join(sorted(of_one))
    problem = "holds no state after 2 updates" if kept == "nothing" else f"lacks {lacking}"
    assert f"skipped checkpoint '{file.parent}': '{file}' {problem}" in resume(run, capfd)


def test_a_parameter_that_was_never_updated_has_no_state(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / NEW / "fake.optimizer.safetensors"
    tensors = load_file(file)
    name = min(tensors).partition("|")[0]
    save_file({key: value for key, value in tensors.items() if not key.startswith(f"{name}|")}, file)
    seal(file.parent)
    assert f"resumed '{run}' at 16 images" in resume(run, capfd)


def test_moments_take_the_precision_of_the_run(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In another one torch's fused optimizers fail in the first update."""
    file = run / "checkpoints" / NEW / "fake.optimizer.safetensors"
    tensors = load_file(file)
    save_file({key: value if key.endswith("|step") else value.half() for key, value in tensors.items()}, file)
    seal(file.parent)
    assert f"resumed '{run}' at 16 images" in resume(run, capfd)
    assert {value.dtype for value in load_file(run / f"checkpoints/{24:012d}" / file.name).values()} == {torch.float32}


def test_sums_of_another_number_of_ranks_are_skipped(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / NEW / "meter.safetensors"
    save_file({"loss": torch.zeros(3, 1, 2, dtype=torch.float64)}, file)
    seal(file.parent)
    assert f"'{file}': loss is [3, 1, 2], torch.float64, no sums of the log" in resume(run, capfd)


@pytest.mark.parametrize("rows", ["[", "[]", '{"a": 1}', '{"a": ["x", 2]}', "[" * 100_000])
def test_damaged_rows_are_skipped(rows: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / NEW / "generator.safetensors"
    save_file(load_file(file), file, {"rows": rows})
    seal(file.parent)
    said = resume(run, capfd)
    assert ("its rows are damaged" in said and "resumed" in said) or rows == "[]"


STATES: dict[str, tuple[Any, str]] = {
    "a list": ([], "state.json is damaged: must be an object, got "),
    "null": (None, "state.json is damaged: must be an object, got "),
    "no format": (lambda state: state.pop("format"), "has checkpoint format None; this version reads 3"),
    "another format": (lambda state: state.update(format=2), "has checkpoint format 2; this version reads 3"),
    "images in words": (lambda state: state.update(images="16"), "key 'images': must be a valid integer"),
    "half an image": (lambda state: state.update(images=16.5), "key 'images': must be a valid integer"),
    "images below 0": (lambda state: state.update(images=-1_000), "key 'images': must be greater than or"),
    "processes in words": (lambda state: state.update(processes="two"), "key 'processes': must be a valid"),
    "no processes": (lambda state: state.update(processes=0), "key 'processes': must be greater than or"),
    "counters of words": (
        lambda state: state["counters"]["fake"].update(skipped="0"),
        "key 'counters.fake.skipped': must be a valid integer",
    ),
    "another counter": (lambda state: state["counters"]["fake"].update(more=1), "state.json counts "),
    "no recipe": (lambda state: state.update(recipe=None), "key 'recipe': must be an object"),
}


@pytest.mark.parametrize("how", STATES)
def test_a_state_that_is_damaged_is_skipped(how: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, problem = STATES[how]
    file = run / "checkpoints" / NEW / "state.json"
    content = json.loads(file.read_text())
    if callable(change):
        change(content)
    else:
        content = change
    file.write_text(json.dumps(content))
    seal(file.parent)
    said = resume(run, capfd)
    assert f"skipped checkpoint '{file.parent}': " in said and problem in said
    assert f"resumed '{run}' at 8 images" in said


@pytest.mark.parametrize("text", ["[" * 200_000, "", '{"format": 3', "\0" * 10, '{"format": 1e999}'])
def test_a_state_that_is_no_json_is_skipped(text: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = run / "checkpoints" / NEW / "state.json"
    file.write_text(text)
    seal(file.parent)
    assert f"skipped checkpoint '{file.parent}': " in resume(run, capfd)


MANIFESTS: dict[str, tuple[Any, str]] = {
    "the state alone": (lambda facts: {"state.json": facts["state.json"]}, "manifest.json lists no "),
    "no average": (
        lambda facts: {name: one for name, one in facts.items() if not name.startswith("ema")},
        "manifest.json lists no ema.safetensors",
    ),
    "a file elsewhere": (
        lambda facts: {**facts, "../../run.yaml": facts["state.json"]},
        "manifest.json is damaged: key '../../run.yaml.[key]'",
    ),
    "a size in words": (
        lambda facts: {**facts, "state.json": {**facts["state.json"], "bytes": "9"}},
        "manifest.json is damaged: key 'state.json.bytes'",
    ),
    "nothing": (lambda facts: {}, "manifest.json lists no file"),
    "a list": (lambda facts: [], "manifest.json is damaged: must be"),
}


@pytest.mark.parametrize("how", MANIFESTS)
def test_a_manifest_that_is_damaged_is_skipped(how: str, run: Path) -> None:
    change, problem = MANIFESTS[how]
    folder = run / "checkpoints" / NEW
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(change(facts)))
    found, skipped = checkpoint.newest(run / "checkpoints")
    assert found.name == OLD and len(skipped) == 1 and problem in skipped[0]


AVERAGES: dict[str, tuple[Callable[[Tensor], Tensor | None], str]] = {
    "an integer for a weight": (lambda value: torch.zeros(value.shape, dtype=torch.int8), "is of torch.int8"),
    "another shape": (lambda value: value[:1].contiguous(), "is [1, "),
    "another name": (lambda _: None, " lacks "),
}


@pytest.mark.parametrize("how", AVERAGES)
def test_an_average_of_another_network_is_skipped(how: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A model is loaded from the next older checkpoint, as where a hash is wrong."""
    change, problem = AVERAGES[how]
    wanted = load_file(run / "checkpoints" / OLD / "ema.safetensors")
    for number in (NEW, OLD, f"{0:012d}"):
        file = run / "checkpoints" / number / "ema.safetensors"
        tensors = load_file(file)
        name = max(tensors, key=lambda name: tensors[name].ndim)
        changed = change(tensors.pop(name))
        save_file(tensors if changed is None else {**tensors, name: changed}, file)
        seal(file.parent)
        if number == NEW:
            capfd.readouterr()
            trained = trainers.load(run)
            said = " ".join(capfd.readouterr().err.split())
            assert said.startswith(f"skipped checkpoint '{file.parent}': '{file}'") and problem in said
            assert trained.images == 8
            assert all(torch.equal(value, wanted[key]) for key, value in trained.model.state_dict().items())
    with pytest.raises(UserError, match=r"^no valid checkpoint in ") as refused:
        trainers.load(run)
    assert "\n" not in str(refused.value) and str(refused.value).count("skipped checkpoint") == 3


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
def test_an_average_that_is_not_finite_is_refused(number: float, run: Path) -> None:
    file = run / "checkpoints" / NEW / "ema.safetensors"
    tensors = load_file(file)
    name = max(tensors, key=lambda name: tensors[name].ndim)
    save_file({**tensors, name: torch.full(tensors[name].shape, number, dtype=torch.float64)}, file)
    seal(file.parent)
    with pytest.raises(UserError, match=f"^'{file}': {name} is not finite$"):
        trainers.load(run)


def test_where_all_are_damaged_nothing_is_trained(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.json").write_text("[]")
        seal(folder)
    with pytest.raises(UserError, match=r"^no valid checkpoint in ") as refused:
        trainers.resume(run, images=24)
    assert "\n" not in str(refused.value) and str(refused.value).count("skipped checkpoint") == 3


def test_the_file_that_cannot_be_read_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "sha256", broken)
    found = checkpoint.flaw(run / "checkpoints" / NEW, need=("ema",))
    assert found in (
        "ema.safetensors cannot be read: Input/output error",
        "state.json cannot be read: Input/output error",
    )
