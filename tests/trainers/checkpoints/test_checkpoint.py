"""Checkpoints are whole or seen not to be, and hold what they say."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.errors import UserError
from tests.tiny import ROOT, build_session, recipe
from trainers.checkpoints import checkpoint, saver
from trainers.engine.session import Session

FILES = {
    "ema.safetensors",
    "fake.optimizer.safetensors",
    "fake.safetensors",
    "generator.optimizer.safetensors",
    "generator.safetensors",
    "manifest.json",
    "meter.safetensors",
    "memory.safetensors",
    "state.json",
}


@pytest.fixture(scope="module")
def session(teachers: Path) -> Session:
    """After one update, at 8 images."""
    session = build_session(recipe(teachers / "edm"))
    session.update_players(session)
    session.state.ema.update(0, 8)
    session.state.images = 8
    return session


@pytest.fixture
def root(session: Session, tmp_path: Path) -> Path:
    """Holds the checkpoints 8 and 16."""
    for images in (8, 16):
        save_at(session, tmp_path, images)
    return tmp_path


def save_at(session: Session, root: Path, images: int, keep: int = 3) -> Path:
    session.state.images = images
    saver.Saver(root, keep, session.accelerator).save_now(session)
    return root / f"{images:012d}"


def names(root: Path) -> list[int]:
    return [int(folder.name) for folder in checkpoint.folders(root)]


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def flip(file: Path, position: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(bytes(data))


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda f: shorten(f / "fake.safetensors"), "fake.safetensors has "),
    "longer": (lambda f: (f / "state.json").open("a").write(" "), "state.json has "),
    "a byte": (lambda f: flip(f / "ema.safetensors"), "ema.safetensors is not what was written (SHA-256 differs)"),
    "a header byte": (lambda f: flip(f / "generator.safetensors", 20), "generator.safetensors is not what was"),
    "empty": (lambda f: (f / "meter.safetensors").write_bytes(b""), "meter.safetensors has 0 bytes, not "),
    "missing": (
        lambda f: (f / "generator.optimizer.safetensors").unlink(),
        "generator.optimizer.safetensors is missing",
    ),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "half a manifest": (lambda f: shorten(f / "manifest.json") or shorten(f / "manifest.json"), "manifest.json is dam"),
    "a manifest of less": (
        lambda f: edit(f / "manifest.json", lambda m: {k: v for k, v in m.items() if k != "state.json"}),
        "manifest.json lists no state.json",
    ),
    "an empty manifest": (lambda f: edit(f / "manifest.json", lambda m: {}), "manifest.json lists no file"),
    "a list": (lambda f: edit(f / "manifest.json", list), "manifest.json is damaged: "),
    "no sizes": (lambda f: edit(f / "manifest.json", dict.fromkeys), "manifest.json is damaged: "),
    "no hashes": (
        lambda f: edit(f / "manifest.json", lambda m: {k: {"bytes": v["bytes"]} for k, v in m.items()}),
        "manifest.json is damaged: ",
    ),
    "not text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "manifest.json is damaged: "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_and_skipped_with_its_reason(damage: str, root: Path) -> None:
    hurt, reason = DAMAGES[damage]
    newest, older = checkpoint.folders(root)
    assert checkpoint.flaw(newest) is None
    assert checkpoint.newest(root) == (newest, [])
    hurt(newest)
    wrong = checkpoint.flaw(newest)
    assert wrong is not None and wrong.startswith(reason)
    assert checkpoint.newest(root) == (older, [f"skipped checkpoint '{newest}': {wrong}"])


def test_without_a_valid_checkpoint_it_is_an_error_with_all_reasons(root: Path, tmp_path: Path) -> None:
    newest, older = checkpoint.folders(root)
    flip(newest / "ema.safetensors")
    (older / "manifest.json").unlink()
    with pytest.raises(UserError) as caught:
        checkpoint.newest(root)
    assert str(caught.value) == (
        f"no valid checkpoint in '{root}'; skipped checkpoint '{newest}': ema.safetensors is not what was written"
        f" (SHA-256 differs); skipped checkpoint '{older}': manifest.json is missing"
    )
    for images in (100, 101, 102):
        shutil.copytree(older, root / f"{images:012d}")
    with pytest.raises(UserError, match=rf"{images:012d}': manifest.json is missing; .*; and 2 more$") as caught:
        checkpoint.newest(root)
    assert str(caught.value).count("skipped checkpoint") == 3
    for empty in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"^no valid checkpoint in '{empty}'$"):
            checkpoint.newest(empty)


def test_only_finished_folders_count(root: Path) -> None:
    shutil.copytree(root / f"{16:012d}", root / f".staging-{24:012d}")
    (root / "notes").mkdir()
    (root / "24").write_text("a file")
    assert names(root) == [16, 8]


def test_the_newest_are_kept(session: Session, tmp_path: Path) -> None:
    for images in (8, 16, 24, 100, 1000):
        save_at(session, tmp_path, images, keep=2)
    assert names(tmp_path) == [1000, 100]
    save_at(session, tmp_path, 1008, keep=1)
    assert names(tmp_path) == [1008]


def test_old_ones_go_only_once_the_new_one_is_valid(
    session: Session, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []
    rmtree = shutil.rmtree

    def watched(folder: Path, ignore_errors: bool = False) -> None:
        assert checkpoint.flaw(root / f"{24:012d}") is None
        removed.append(folder)
        rmtree(folder)

    monkeypatch.setattr(saver.shutil, "rmtree", watched)
    save_at(session, root, 24, keep=1)
    assert [int(folder.name) for folder in removed] == [16, 8]


def test_a_new_one_is_kept_beside_a_damaged_later_one(session: Session, root: Path) -> None:
    """A resume skipped 16 and goes on from 8; its next checkpoint may come before 16."""
    flip(root / f"{16:012d}" / "ema.safetensors")
    new = save_at(session, root, 12, keep=1)
    assert checkpoint.newest(root)[0] == new
    assert 8 not in names(root)


def test_a_damaged_one_of_the_same_name_is_replaced(session: Session, root: Path) -> None:
    flip(root / f"{16:012d}" / "ema.safetensors")
    new = save_at(session, root, 16)
    assert checkpoint.newest(root) == (new, [])


class Killed(BaseException):
    """In place of the end of the process."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_that_dies_anywhere_leaves_a_valid_checkpoint(
    session: Session, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every file of the new checkpoint, before and after the rename; the leftover goes with the next save."""
    sync, moments = saver.sync, len(FILES) + 2  # each file, the staging folder, the folder of checkpoints
    for moment in range(moments):
        count = 0

        def dying(path: Path, moment: int = moment) -> None:
            nonlocal count
            count += 1
            if count > moment:
                raise Killed
            sync(path)

        monkeypatch.setattr(saver, "sync", dying)
        with pytest.raises(RuntimeError, match=r"^checkpoint: its thread has died$"):
            save_at(session, root, 24 + moment)
        renamed = moment == moments - 1
        assert int(checkpoint.newest(root)[0].name) == (24 + moment if renamed else 16)
        assert bool(list(root.glob(".staging-*"))) == (not renamed)
    monkeypatch.setattr(saver, "sync", sync)
    save_at(session, root, 100)
    assert not list(root.glob(".*"))
    assert checkpoint.newest(root)[0].name == f"{100:012d}"


def test_the_manifest_is_written_last(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    write = Path.write_text

    def watched(self: Path, *args: Any, **kwargs: Any) -> int:
        if self.name == checkpoint.MANIFEST:
            seen.append({file.name for file in self.parent.iterdir()})
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", watched)
    save_at(session, tmp_path, 8)
    assert seen == [FILES - {"manifest.json"}]


def test_what_a_checkpoint_holds(session: Session, root: Path) -> None:
    """Both players, their optimizers, the average, the meter and counters; of the frozen teacher its hash alone."""
    folder = root / f"{8:012d}"
    assert {file.name for file in folder.iterdir()} == FILES
    assert set(json.loads((folder / "manifest.json").read_text())) == FILES - {"manifest.json"}
    state = checkpoint.read_state(folder)
    assert state["images"] == 8
    assert state["teacher"] == session.teacher_hash and len(state["teacher"]) == 64
    assert set(state["counters"]) == {"generator", "fake"}
    assert session.teacher is not None
    teacher = [parameter for parameter in session.teacher.parameters() if parameter.numel() > 1]
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            alike = [p for p in teacher if p.shape == tensor.shape and torch.equal(p, tensor)]
            assert not alike, f"{file.name}: {name} is the teacher's"


def test_nothing_is_pickled(root: Path) -> None:
    """Files are safetensors or JSON, and no code of ours can write or read anything that runs code."""
    for file in (file for file in root.rglob("*") if file.is_file()):
        if file.suffix == ".json":
            json.loads(file.read_text())
        else:
            assert file.suffix == ".safetensors"
            load_file(file)
    unsafe, safe = {"pickle", "dill", "joblib", "cloudpickle"}, set[ast.expr]()
    for source in [*ROOT.glob("trainers/**/*.py"), *ROOT.glob("distill/**/*.py"), *ROOT.glob("launch/**/*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not unsafe & {name.name for name in node.names} and getattr(node, "module", "") not in unsafe
            # The weights of other people's metrics and rewards are torch's files, of which tensors alone are read.
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in map(ast.unparse, node.keywords), source
                safe.add(node.func)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node not in safe:
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, source


def everything(session: Session) -> dict[str, Tensor]:
    state = session.state
    found = {f"average {key}": value for key, value in state.ema.module.state_dict().items()}
    for name, player in state.players.items():
        found |= {f"{name} {key}": value for key, value in player.bare.state_dict().items()}
        for index, parameter in enumerate(player.parameters):
            found |= {f"{name} {index} {key}": v for key, v in player.optimizer.state[parameter].items()}
    return {key: value.clone() for key, value in found.items()} | state.meter.totals


def test_a_restored_session_is_the_saved_one(session: Session, root: Path, teachers: Path) -> None:
    session.state.players["fake"].set_counters(skipped=3)
    saved = save_at(session, root, 24)
    fresh = build_session(recipe(teachers / "edm"))
    checkpoint.restore(fresh, saved)
    ours, theirs = everything(session), everything(fresh)
    assert ours.keys() == theirs.keys() and len(ours) > 100
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    assert fresh.state.images == 24
    assert fresh.state.players["fake"].counters() == {"skipped": 3, "streak": 0, "longest": 0}
    session.state.players["fake"].set_counters(skipped=0)


def test_another_teacher_is_refused(root: Path, teachers: Path, tmp_path: Path) -> None:
    copy = tmp_path / "teacher"
    shutil.copytree(teachers / "edm", copy)
    other = build_session(recipe(copy))
    checkpoint.restore(other, root / f"{8:012d}")  # the same files in another place are the same teacher
    flip(copy / "unet/diffusion_pytorch_model.safetensors")
    other = build_session(recipe(copy))
    folder = root / f"{8:012d}"
    with pytest.raises(UserError) as caught:
        checkpoint.restore(other, folder)
    assert str(caught.value) == (
        f"'{folder}' was trained from another teacher than the one in run.yaml (its files have changed)"
    )


def test_another_format_is_refused(root: Path) -> None:
    folder = root / f"{8:012d}"
    edit(folder / "state.json", lambda state: {**state, "format": 1})
    with pytest.raises(UserError, match=f"'{folder}' has checkpoint format 1; this version reads 3"):
        checkpoint.read_state(folder)
