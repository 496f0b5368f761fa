"""ODE pairs: the teacher's own samples, the same bits however often making them was cut, and drawn by epochs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill import Random, UserError
from distill.guidance import classifier_free
from distill.sampling import sample
from distill.teachers import load_denoiser
from tests.tiny import build_session, experiment, recipe, write_pairs
from trainers.data import Dataset, Digits
from trainers.data.batches import Batches, BatchSizes, inputs
from trainers.data.pairs import PairSet, open_pairs
from trainers.io import atomic
from trainers.runs.distillation import teacher_hash

CPU = torch.device("cpu")


def everything(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def opened(folder: Path, teacher: Path, **changes: Any) -> PairSet:
    form: dict[str, Any] = {"shape": (1, 8, 8), "classes": 10, **changes}
    pairs = open_pairs(folder, **form)
    pairs.check_teacher(teacher_hash(str(teacher)))
    return pairs


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_pair_is_noise_and_what_the_teacher_makes_of_it(teachers: Path) -> None:
    pairs = opened(teachers / "pairs", teachers / "edm")
    assert (pairs.count, [len(shard["noise"]) for shard in pairs.shards]) == (20, [8, 8, 4])
    rows = pairs.rows(torch.tensor([17, 3, 8]))
    noise, cond = inputs(Digits().load(), Random.at(0, torch.tensor([17, 3, 8])).stream("pairs"))
    assert torch.equal(rows["noise"], noise) and torch.equal(rows["label"], cond["labels"])
    target = sample(load_denoiser(teachers / "edm"), noise, cond, evaluations=3)
    assert float((rows["target"] - target).abs().max()) < 1e-4 * float(target.abs().max())
    assert float((target - noise).abs().mean()) > 0.1
    description = json.loads((teachers / "pairs/pairs.json").read_text())
    assert {key: description[key] for key in ("data", "shape", "classes", "evaluations", "seed", "count")} == {
        "data": "digits",
        "shape": [1, 8, 8],
        "classes": 10,
        "evaluations": 3,
        "seed": 0,
        "count": 20,
    }


def test_guided_pairs(teachers: Path, tmp_path: Path) -> None:
    list(write_pairs(teachers / "null", tmp_path / "p", count=4, teacher_cfg=3.0))
    rows = opened(tmp_path / "p", teachers / "null").rows(torch.arange(4))
    teacher = load_denoiser(teachers / "null")
    guided: Any = classifier_free(teacher, 3.0, teacher.null)
    target, plain = (sample(d, rows["noise"], rows["label"], evaluations=3) for d in (guided, teacher))
    assert float((rows["target"] - target).abs().max()) < 1e-4 * float(target.abs().max())
    assert float((target - plain).abs().mean()) > 0.1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(12))
def test_a_kill_at_any_moment_costs_nothing_but_time(
    at: int, teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every write of a file and every renaming into place, of 3 shards and their description."""
    calls = 0

    def kill(call: Callable[..., Any]) -> Callable[..., Any]:
        def killing(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise Killed
            return call(*arguments)

        return killing

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "sync", kill(atomic.sync))
        patch.setattr(atomic.os, "replace", kill(atomic.os.replace))
        with pytest.raises(Killed):
            list(write_pairs(teachers / "edm", tmp_path / "cut"))
    assert list(write_pairs(teachers / "edm", tmp_path / "cut")) == [8, 16, 20]
    assert everything(tmp_path / "cut") == everything(teachers / "pairs")


def test_what_is_whole_is_kept_and_what_is_damaged_made_again(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(teachers / "pairs")
    list(write_pairs(teachers / "edm", tmp_path / "p", count=12))
    first = (tmp_path / "p/pairs-00000.safetensors").stat().st_mtime_ns
    list(write_pairs(teachers / "edm", tmp_path / "p"))  # more of the same
    assert everything(tmp_path / "p") == before
    assert (tmp_path / "p/pairs-00000.safetensors").stat().st_mtime_ns == first
    damaged = bytearray(before["pairs-00001.safetensors"])
    damaged[-1] ^= 1
    (tmp_path / "p/pairs-00001.safetensors").write_bytes(damaged)
    list(write_pairs(teachers / "edm", tmp_path / "p"))
    assert everything(tmp_path / "p") == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "pairs: '{}' is of seed 0, not 1; name another folder"),
        ({"evaluations": 5}, "pairs: '{}' is of evaluations 3, not 5; name another folder"),
        ({"teacher_cfg": 2.0}, "teacher_cfg: the teacher '{}/edm' states no null condition"),
        ({"count": 12}, "pairs: '{}' is of count 20, not 12; name another folder"),
        ({"teacher": "dropout"}, "pairs: '{}' is of teacher "),
        ({"teacher": "nowhere"}, "teacher: no folder "),
        ({"evaluations": 0}, "evaluations: must be at least 1, got 0"),
    ],
)
def test_other_pairs_are_not_mixed_in(changes: dict[str, Any], message: str, teachers: Path) -> None:
    before = everything(teachers / "pairs")
    teacher = changes.pop("teacher", "edm")
    line = refusal(lambda: list(write_pairs(teachers / teacher, teachers / "pairs", **changes)))
    assert line.startswith(message.format(teachers if "/edm" in message else teachers / "pairs"))
    assert everything(teachers / "pairs") == before


def test_a_folder_of_something_else_is_left_alone(teachers: Path) -> None:
    line = refusal(lambda: list(write_pairs(teachers / "edm", teachers / "edm")))
    assert line == f"pairs: '{teachers / 'edm'}' holds something else; name another folder"


def test_pairs_that_do_not_fit_are_refused(teachers: Path, tmp_path: Path) -> None:
    folder, edm = teachers / "pairs", teachers / "edm"
    assert refusal(lambda: opened(folder, teachers / "flow")) == f"pairs: '{folder}' holds pairs of another teacher"
    assert refusal(lambda: opened(folder, edm, shape=(3, 8, 8))) == (
        f"pairs: '{folder}' has shape (1, 8, 8), the teacher (3, 8, 8)"
    )
    assert refusal(lambda: opened(folder, edm, classes=0)) == f"pairs: '{folder}' has classes 10, the teacher 0"
    assert (
        refusal(lambda: opened(edm, edm)) == f"pairs: '{edm}' has no pairs.json; `distill pairs TEACHER {edm}` makes it"
    )
    making = write_pairs(edm, tmp_path / "p")
    next(making)
    making.close()
    assert refusal(lambda: opened(tmp_path / "p", edm)).startswith(f"pairs: '{tmp_path / 'p'}' holds 8 of 20 pairs; ")
    list(write_pairs(edm, tmp_path / "p"))
    shard = tmp_path / "p/pairs-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    assert refusal(lambda: opened(tmp_path / "p", edm)).startswith(f"pairs: '{shard}' has ")
    shard.unlink()
    assert refusal(lambda: opened(tmp_path / "p", edm)).startswith(f"pairs: cannot read '{shard}' (FileNotFoundError)")
    (tmp_path / "p/pairs.json").write_text("{")
    assert refusal(lambda: opened(tmp_path / "p", edm)).startswith(f"pairs: '{tmp_path / 'p/pairs.json'}' is damaged")


def forge(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of the first shard, and list the new size and hash."""
    shard, description = folder / "pairs-00000.safetensors", json.loads((folder / "pairs.json").read_text())
    tensors = load_file(shard)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, shard)
    description["shards"][shard.name] |= {"bytes": shard.stat().st_size, "sha256": atomic.sha256(shard)}
    (folder / "pairs.json").write_text(json.dumps(description))


FORGED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no targets": (lambda t: t.pop("target"), "'target' is of shape None, the teacher's samples (1, 8, 8)"),
    "another shape": (lambda t: t.update(noise=t["noise"][:, :, :4]), "'noise' is of shape (1, 4, 8), the teacher's"),
    "whole numbers": (lambda t: t.update(target=t["target"].to(torch.int8)), "'target' is of torch.int8"),
    "no number": (lambda t: t["target"][3].fill_(float("nan")), "'target' is not finite"),
    "infinity": (lambda t: t["noise"][0].fill_(-float("inf")), "'noise' is not finite"),
    "no labels": (lambda t: t.pop("label"), "it has no column 'label'"),
    "labels in fractions": (lambda t: t.update(label=t["label"].float()), "'label' is no list of labels"),
    "a label too high": (lambda t: t["label"][0].fill_(10), "'label' must be from 0 to 9, goes from "),
    "a label below 0": (lambda t: t["label"][0].fill_(-1), "'label' must be from 0 to 9, goes from -1 to "),
    "another column": (lambda t: t.update(more=torch.ones(8)), "'more' is no column of pairs"),
}


@pytest.mark.parametrize("how", FORGED)
def test_pairs_of_other_content_are_refused(how: str, teachers: Path, tmp_path: Path) -> None:
    folder, edm = teachers / "pairs", teachers / "edm"
    change, message = FORGED[how]
    shutil.copytree(folder, tmp_path / "p")
    forge(tmp_path / "p", change)
    shard = tmp_path / "p" / "pairs-00000.safetensors"
    assert refusal(lambda: opened(tmp_path / "p", edm)).startswith(f"pairs: '{shard}': {message}")


def test_shards_of_other_lengths_are_refused(teachers: Path, tmp_path: Path) -> None:
    folder, edm = teachers / "pairs", teachers / "edm"
    shutil.copytree(folder, tmp_path / "p")
    forge(tmp_path / "p", lambda t: t.update({name: value[:5] for name, value in t.items()}))
    assert refusal(lambda: opened(tmp_path / "p", edm)).startswith(f"'{tmp_path / 'p'}': shard 1 ")


DESCRIPTIONS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a folder elsewhere": (lambda d: d["shards"].update({"../x": d["shards"].popitem()[1]}), "key 'shards.../x.[key]'"),
    "count in words": (lambda d: d.update(count="20"), "key 'count': must be a valid integer, got '20'"),
    "shape in words": (lambda d: d.update(shape=["1", 8, 8]), "key 'shape.0': must be a valid integer, got '1'"),
    "classes below 0": (lambda d: d.update(classes=-1), "key 'classes': must be greater than or equal to 0, got -1"),
    "shards of a list": (lambda d: d.update(shards=[]), "key 'shards': must be an object, got []"),
    "more": (lambda d: d.update(more=1), "key 'more': is no key of this file"),
}


@pytest.mark.parametrize("how", DESCRIPTIONS)
def test_descriptions_are_checked_in_full(how: str, teachers: Path, tmp_path: Path) -> None:
    folder, edm = teachers / "pairs", teachers / "edm"
    change, message = DESCRIPTIONS[how]
    description = json.loads((folder / "pairs.json").read_text())
    change(description)
    (tmp_path / "pairs.json").write_text(json.dumps(description))
    line = f"pairs: '{tmp_path / 'pairs.json'}' is damaged: {message}"
    assert refusal(lambda: opened(tmp_path, edm)).startswith(line)


# Drawing from them


PER_BATCH = 12


def counted(count: int) -> PairSet:
    """Pairs whose noise shows their position, in shards of 7."""
    at = torch.arange(count)
    noise = at.float()[:, None, None, None].expand(-1, 1, 2, 2)
    shards = [{"noise": n, "target": -n, "label": at} for n, at in zip(noise.split(7), at.split(7), strict=True)]
    return PairSet(count, tuple(shards), Path("pairs"), teacher="teacher")


def drawn(pairs: PairSet, first: int, world: int = 1, micro: int = 1, stream: str = "generator") -> Tensor:
    """Positions of the pairs of the global batch of 24 from sample `first`, put together from its parts."""
    dataset = Dataset("labels", 100, (1, 2, 2), torch.arange(100) % 10, None)
    sizes, found = BatchSizes(24, micro, PER_BATCH), []
    for index in range(micro):
        for rank in range(world):
            batch = Batches(dataset, sizes, 0, torch.float32, False, rank, world, CPU, pairs).micro(
                stream, first, index
            )
            assert batch.pairs is not None and batch.pairs.cond.labels is not None and batch.pairs.made is None
            labels = batch.pairs.cond.labels
            assert torch.equal(batch.pairs.target, -batch.pairs.noise)
            assert torch.equal(batch.pairs.noise[:, 0, 0, 0].long(), labels)
            assert len(labels) == PER_BATCH // (world * micro)
            found.append(labels)
    return torch.cat(found)


@pytest.mark.parametrize(("world", "micro"), [(1, 2), (2, 1), (3, 2), (1, 12)])
def test_any_partition_takes_the_same_pairs(world: int, micro: int) -> None:
    pairs = counted(50)
    assert torch.equal(drawn(pairs, 96, world, micro), drawn(pairs, 96))


def test_an_epoch_takes_every_pair_once() -> None:
    pairs = counted(36)
    epochs = torch.stack([torch.cat([drawn(pairs, 24 * (3 * epoch + i)) for i in range(3)]) for epoch in range(3)])
    assert all(torch.equal(epoch.sort().values, torch.arange(36)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_the_generator_alone_gets_pairs() -> None:
    sizes, dataset = BatchSizes(24, pairs=PER_BATCH), Dataset("none", 1, (1, 2, 2), None, None)
    batches = Batches(dataset, sizes, 0, torch.float32, False, 0, 1, CPU, counted(50))
    assert batches.micro("fake", 0, 0).pairs is None
    assert batches.micro("generator", 0, 0).pairs is not None


# In a run


def dmd(teachers: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of DMD; `pairs` changes how it takes them."""
    pairs = {"folder": str(teachers / "pairs"), **changes.pop("pairs", {})}
    return recipe(teachers / "edm", **{"objective": "dmd", "pairs": pairs, **changes})


def test_a_run_opens_its_pairs(teachers: Path) -> None:
    settings = dmd(teachers, pairs={"fraction": 0.5})
    batches = build_session(settings).batches
    assert batches.pairs is not None and (batches.pairs.count, batches.sizes.pairs) == (20, 4)
    other = {**settings, "teacher": str(teachers / "flow")}
    assert refusal(lambda: build_session(other)) == f"pairs: '{teachers / 'pairs'}' holds pairs of another teacher"


def test_mistakes_in_a_recipe(teachers: Path) -> None:
    needed = {key: value for key, value in dmd(teachers).items() if key != "pairs"}
    assert refusal(lambda: experiment(needed)) == (
        "test: pairs: DMD regresses on ODE pairs; name a folder that `distill pairs` wrote"
    )
    experiment({**needed, "objective": {"name": "dmd", "regression": 0}})
    assert refusal(lambda: experiment(dmd(teachers, objective={"name": "dmd", "regression": 0}))) == (
        "test: pairs: DMD has no use for ODE pairs; leave them out"
    )
    assert refusal(lambda: experiment(dmd(teachers, pairs={"fraction": 1.5}))) == (
        "test: key 'pairs': fraction: must be in (0, 1], got 1.5"
    )
    assert refusal(lambda: experiment(dmd(teachers, objective="hipa", reuse_samples=True))) == (
        "test: reuse_samples: HiPA trains no fake to share samples with"
    )
    assert refusal(lambda: experiment(dmd(teachers, fake_updates=0))) == "test: fake_updates: must be positive, got 0"
    thirds = experiment(dmd(teachers, pairs={"fraction": 0.4}))  # 3 of 8
    thirds.check_world(1)
    assert refusal(lambda: thirds.check_world(2)) == (
        "pairs.fraction: 0.4 of batch_size 8 is 3 pairs, which are not divisible by processes x micro_batches = 2 x 1"
    )
    none = experiment(dmd(teachers, pairs={"fraction": 0.1}))
    assert refusal(lambda: none.check_world(1)).startswith("pairs.fraction: 0.1 of batch_size 8 is 0 pairs")
