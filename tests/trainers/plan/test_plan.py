"""A plan before anything loads says what a run then allocates and sends."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import allocated_by, living_bytes
from distill import EDM, Denoiser, UserError
from distill.teachers import OwnNet, load_denoiser, save_denoiser
from tests.families import TEACHERS
from tests.families import recipe as family_recipe
from tests.tiny import build_session, distillation, experiment, once, recipe
from trainers.data import Digits
from trainers.engine import adam8bit
from trainers.engine.step import advance
from trainers.plan.remedies import TEACHER_ALONE, cheapest, remedies
from trainers.plan.trace import plan
from trainers.recipe.run import Run, Sharding

CASES: dict[str, dict[str, Any]] = {
    "sid": {},
    "dmd2": {"precision": "bfloat16"},
    "fgm": {name: {"name": "adam8bit"} for name in ("generator", "fake")},
    "sid_lora": {"max_grad_norm": 1.0, "micro_batches": 2},
}


def run_of(teachers: Path, name: str, **changes: Any) -> Run:
    return replace(cast(Run, experiment(distillation(name, teachers, **changes))), log_every=8)


def measured(run: Run) -> int:
    """Bytes at the peak of an update: what lives before it, and what torch's allocator then adds."""
    before = living_bytes()
    images = Digits().load()
    host, session = living_bytes() - before, build_session(run)
    del images

    def last_update() -> None:
        session.state.images = run.images - run.batch_size
        advance(session)

    last_update()  # which makes the optimizers' state
    return living_bytes() - before - host + allocated_by(last_update)


@pytest.mark.parametrize("name", CASES)
def test_the_predicted_peak_is_what_an_update_allocates(
    name: str, teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adam8bit, "SMALLEST", 64)  # the networks are tiny
    run = run_of(teachers, name, **CASES[name])
    found = plan(run, 1)
    assert found.peak.bytes == pytest.approx(measured(run), rel=0.1)
    assert not found.traffic and found.phase.startswith(("generator", "fake"))
    assert {f"{player}{stage}" for player in ("generator", "fake") for stage in ("", ", backward")} < set(found.peaks)


def test_a_plan_tells_what_stays(teachers: Path) -> None:
    """10,609 parameters in float32, of which an optimizer keeps two moments and the average one more."""
    rest = plan(run_of(teachers, "sid"), 2).rest
    weights = 4 * 10_609
    for kind in ("teacher: weights", "generator: weights", "fake: weights", "average"):
        assert rest[kind] == weights
    assert rest["gradient buckets"] == 2 * weights
    for player in ("generator", "fake"):
        assert rest[f"{player}: optimizer"] == pytest.approx(2 * weights, rel=0.01)


def test_moments_of_8_bits(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10,609 parameters 10,108 are in matrices of at least 64, whose rows of 8 to 72 have a scale each."""
    monkeypatch.setattr(adam8bit, "SMALLEST", 64)
    players = {name: {"name": "adam8bit"} for name in ("generator", "fake")}
    for more in ({}, {"sharding": {}}):
        whole, bytes_ = (plan(run_of(teachers, "sid", **kind), 2).rest for kind in (more, {**more, **players}))
        for player in players:
            assert 0.25 < bytes_[f"{player}: optimizer"] / whole[f"{player}: optimizer"] < 0.4


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_offloaded_is_in_host_memory(processes: int, teachers: Path) -> None:
    """Of each network and its average a share, of the players' two moments and gradients too."""
    held, teacher, everything = (
        plan(run_of(teachers, "sid", sharding={"offload": what}), processes) for what in (None, "teacher", "all")
    )
    weights = 4 * 10_609 / processes
    assert held.host == 0 and teacher.host == pytest.approx(weights, rel=0.05)
    assert everything.host == pytest.approx((3 + 1 + 2 * 2 + 1) * weights, rel=0.05)
    for found, kinds in ((teacher, {"teacher"}), (everything, {"teacher", "generator", "fake", "average"})):
        assert not {kind.partition(":")[0] for kind, size in found.peak.kinds.items() if size} & kinds
        assert bool(found.traffic) == (processes > 1)
    assert everything.peak.bytes < teacher.peak.bytes < held.peak.bytes - 0.3 * weights


def test_shards_are_held_by_rows(teachers: Path) -> None:
    """Rows of an odd number are shared out unevenly, one of a few is whole: a quarter and a little on 4."""
    whole, rows = (plan(run_of(teachers, "sid", **kind), 4).rest for kind in ({}, {"sharding": {}}))
    assert "gradient buckets" not in rows
    for kind in ("teacher: weights", "generator: weights", "fake: weights", "average", "fake: optimizer"):
        assert rows[kind] == pytest.approx(whole[kind] / 4, rel=0.05)


def test_no_weights_are_read(teachers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edm"
    shutil.copytree(teachers / "edm", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    run = run_of(teachers, "sid")
    assert plan(replace(run, teacher=str(folder)), 1) == plan(run, 1)


def test_the_cheapest_changes_that_fit(teachers: Path) -> None:
    run = run_of(teachers, "sid")
    now = plan(run, 1)
    changes, better = cheapest(run, 1, lambda one: one.peak.bytes < 0.9 * now.peak.bytes, now)
    assert changes == ["micro_batches=2"] and better is not None and better.peak.bytes < 0.9 * now.peak.bytes
    assert cheapest(run, 1, lambda one: True, now) == ([], now)


def test_the_teacher_is_sharded_before_everything(teachers: Path) -> None:
    """Where that is enough; else it is the first that is taken back."""
    run = run_of(teachers, "sid")
    now, alone, all_three = (plan(replace(run, sharding=how), 8) for how in (None, TEACHER_ALONE, Sharding()))
    assert alone.rest["teacher: weights"] == all_three.rest["teacher: weights"] < now.rest["teacher: weights"] / 6
    assert alone.rest["fake: weights"] == now.rest["fake: weights"]
    for enough, what in ((alone, "sharding={generator: false, fake: false}"), (all_three, "sharding={}")):
        assert cheapest(run, 8, lambda one, most=enough.peak.bytes: one.peak.bytes <= most, now) == ([what], enough)


def test_changes_come_in_the_order_of_their_cost(teachers: Path) -> None:
    run = run_of(teachers, "sid", precision="float32")
    assert [what for what, _ in remedies(run, 2)] == [
        "micro_batches=2",
        "micro_batches=4",
        "sharding={generator: false, fake: false}",
        "sharding={}",
        "precision=bfloat16",
        "backprop=one_by_one",
        "gradient_checkpointing=true",
        "fake.name=adam8bit",
        "generator.name=adam8bit",
        "sharding.offload=teacher",
        "fake.lora.rank=64",
        "generator.lora.rank=64",
        "sharding.offload=all",
    ]
    reused = replace(run, reuse_samples=True, precision="bfloat16", gradient_checkpointing=True)
    assert [what for what, _ in remedies(reused, 2)][:4] == [
        "sharding={generator: false, fake: false}",
        "sharding={}",
        "backprop=one_by_one",
        "fake.name=adam8bit",
    ]
    halved = replace(run, fake=replace(run.fake, name="adamw"), generator=replace(run.generator, name="sgd"))
    assert [what for what, _ in remedies(halved, 2) if "name" in what] == ["fake.name=adamw8bit"]


def test_a_plan_leaves_nothing_behind(teachers: Path) -> None:
    before = torch.UntypedStorage.resize_, torch.nn.Module._apply, torch.nn.parallel.DistributedDataParallel
    plan(run_of(teachers, "sid"), 4)
    assert before == (torch.UntypedStorage.resize_, torch.nn.Module._apply, torch.nn.parallel.DistributedDataParallel)
    assert not torch.distributed.is_initialized()
    with pytest.raises(UserError, match="batch_size: 8 is not divisible by processes x micro_batches = 3 x 1"):
        plan(run_of(teachers, "sid"), 3)


class Own(nn.Module):
    """A network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)  # whose running statistics are sent in each update

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Any:
        return self.layer(x)


class Smaller(Own):
    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Any:
        return self.layer(x)[..., :4]


class Unlabelled(Own):
    def forward(self, x: Tensor, time: Tensor) -> Any:  # type: ignore[override]
        return self.layer(x)


class Branches(Own):
    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Any:
        return self.layer(x) if time.mean() > 0 else x


class NoBuffer(Own):
    def __init__(self) -> None:
        super().__init__()
        self.scales = torch.arange(8.0)

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Any:
        return self.layer(x) * self.scales


@pytest.mark.usefixtures("trusted_code")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Smaller, "gives [2, 1, 8, 4] for x of [2, 1, 8, 8]"),
        (
            Unlabelled,
            "fails when it is called with x of [2, 1, 8, 8], times and labels: TypeError: Unlabelled",
        ),
        (Branches, "a plan calls a class of your own on tensors without values, so it may not read values"),
        (NoBuffer, "its tensors must be parameters or buffers"),
    ],
)
def test_a_class_of_ones_own_is_tried(kind: type[Own], message: str, tmp_path: Path) -> None:
    def planned(kind: type[Own]) -> int:
        save_denoiser(Denoiser(OwnNet(f"{__name__}:{kind.__name__}", {}, (1, 8, 8), 10), EDM(), "edm"), tmp_path)
        return plan(cast(Run, experiment(recipe(tmp_path))), 2).peak.bytes

    assert planned(Own) > 0
    with pytest.raises(UserError) as caught:
        planned(kind)
    text = str(caught.value)
    assert text.startswith(f"teacher: '{tmp_path}': network: {__name__}:{kind.__name__} ")
    assert message in text and "\n" not in text


@pytest.mark.parametrize(("precision", "bytes_each"), [("float32", 4), ("bfloat16", 2)])
def test_text_encoders_that_stay_are_counted(precision: str, bytes_each: int, shared: Path, tmp_path: Path) -> None:
    """SD 3's three encoders, which a run with embeddings in the loop keeps, unless they have a device of their own."""
    folder = once(shared, "teacher_sd3", TEACHERS["sd3"])
    encoder = load_denoiser(folder).network.text_encoder
    pipe = encoder._load()
    parts = [getattr(pipe, name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    size = bytes_each * sum(parameter.numel() for part in parts for parameter in part.parameters())

    def counted(**embeddings: Any) -> tuple[int, int]:
        settings = {"embeddings": {"precision": precision, **embeddings}, "sharding": None}
        made = cast(Run, experiment(family_recipe("sd3", "diff_instruct", folder, tmp_path, **settings)))
        found = plan(made, 1)
        return found.peak.bytes, found.rest.get("text encoders", 0)

    (ahead, none), (beside, found), (elsewhere, _) = counted(), counted(ahead=False), counted(ahead=False, device="cpu")
    assert none == 0 and found == size and beside - ahead == size and elsewhere == ahead
