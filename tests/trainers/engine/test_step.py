"""What one training step touches, calls and leaves behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distill.objectives import DMD2, Batch, Denoisers, Objective
from tests.tiny import DISTILLATIONS, DROPOUT, build_session, distillation, recipe, teacher_recipe
from trainers.engine.player import Player
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.recipe.run import Optimizer

OBJECTIVES = {"sid": "edm", "diff_instruct": "edm", "fgm": "flow"}
THROUGH_SCORES = {"sid": True, "diff_instruct": False, "fgm": True}


def session_of(settings: dict[str, Any]) -> Session:
    return build_session(settings)


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) > 0 and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def gradients(module: nn.Module) -> int:
    """How many parameters hold a gradient."""
    return sum(parameter.grad is not None for parameter in module.parameters())


@contextmanager
def before_each_update(monkeypatch: pytest.MonkeyPatch, look: Any) -> Iterator[None]:
    """Call look(player, lr) where a player is about to be stepped."""
    step = Player.step

    def spy(self: Player, norm: Tensor, lr: float) -> None:
        look(self, lr)
        step(self, norm, lr)

    with monkeypatch.context() as patch:
        patch.setattr(Player, "step", spy)
        yield


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("reuse", [False, True])
def test_a_phase_touches_its_own_player_only(
    objective: str, reuse: bool, teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(recipe(teachers / OBJECTIVES[objective], objective=objective, reuse_samples=reuse))
    players, teacher = session.state.players, session.teacher
    assert teacher is not None
    frozen = weights(teacher)
    seen: list[tuple[str, str, bool]] = []
    held = {name: weights(player.bare) for name, player in players.items()}

    def look(player: Player, lr: float) -> None:
        for name, other in players.items():
            assert gradients(other.bare) == (len(other.parameters) if other is player else 0)
            seen.append((player.name, name, same(held[name], weights(other.bare))))
        held.update({name: weights(other.bare) for name, other in players.items()})

    with before_each_update(monkeypatch, look):
        advance(session)
        advance(session)
    first_round = [("fake", "generator", True), ("fake", "fake", True)]
    first_round += [("generator", "generator", True), ("generator", "fake", False)]
    second_round = [("fake", "generator", False), ("fake", "fake", True)]
    second_round += [("generator", "generator", True), ("generator", "fake", False)]
    assert seen == first_round + second_round
    assert same(frozen, weights(teacher)) and gradients(teacher) == 0
    for module in (teacher, *(player.bare for player in players.values())):
        assert gradients(module) == 0
        assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


class Calls:
    """Counts the forwards of the three networks in a step, as (network, has graph), per phase."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.session, self.monkeypatch = session, monkeypatch
        self.phases: list[tuple[str, Counter[tuple[str, bool]]]] = []
        self.counts: Counter[tuple[str, bool]] = Counter()
        players = session.state.players
        assert session.teacher is not None
        networks = {"T": session.teacher, "F": players["fake"].bare, "G": players["generator"].bare}
        for name, module in networks.items():
            module.register_forward_hook(lambda module, inputs, output, name=name: self.count(name, output))

    def count(self, name: str, output: Tensor) -> None:
        self.counts[name, output.requires_grad] += 1

    def look(self, player: Player, lr: float) -> None:
        self.phases.append((player.name, self.counts))
        self.counts = Counter()

    def of_one_step(self) -> list[tuple[str, dict[tuple[str, bool], int]]]:
        with before_each_update(self.monkeypatch, self.look):
            advance(self.session)
        assert not self.counts
        return [(name, dict(counts)) for name, counts in self.phases]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_network_forwards_of_an_iteration(objective: str, teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G 2, F 2, T 1; teacher and fake build a graph in the generator's phase only where the gradient needs it."""
    graph = THROUGH_SCORES[objective]
    fake = {("G", False): 1, ("F", True): 1}
    generator = {("G", True): 1, ("F", graph): 1, ("T", graph): 1}
    settings = recipe(teachers / OBJECTIVES[objective], objective=objective)
    calls = Calls(session_of(settings), monkeypatch).of_one_step()
    assert calls == [("fake", fake), ("generator", generator)]

    calls = Calls(session_of({**settings, "fake_updates": 3}), monkeypatch).of_one_step()
    assert calls == [("fake", fake)] * 3 + [("generator", generator)]

    calls = Calls(session_of({**settings, "micro_batches": 2}), monkeypatch).of_one_step()
    assert calls == [("fake", dict.fromkeys(fake, 2)), ("generator", dict.fromkeys(generator, 2))]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_reused_samples_save_a_forward(objective: str, teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = THROUGH_SCORES[objective]
    settings = recipe(teachers / OBJECTIVES[objective], objective=objective, reuse_samples=True)
    last = ("fake", {("G", True): 1, ("F", True): 1})
    generator = ("generator", {("F", graph): 1, ("T", graph): 1})
    assert Calls(session_of(settings), monkeypatch).of_one_step() == [last, generator]
    settings["fake_updates"] = 2
    first = ("fake", {("G", False): 1, ("F", True): 1})
    assert Calls(session_of(settings), monkeypatch).of_one_step() == [first, last, generator]
    again = ("fake", {("F", True): 1})
    every = session_of({**settings, "fake_updates": 3, "reuse_samples": "all"})
    assert Calls(every, monkeypatch).of_one_step() == [last, again, again, generator]


def test_fake_updates_on_the_same_samples_have_noise_of_their_own(
    teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one is that of `reuse_samples: true`. The real samples are the same, since they share the labels."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    loss = DMD2.fake_loss

    def look(self: DMD2, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        assert batch.real is not None
        seen.append((x, batch.random.stream("fake").normal(1, 8, 8), batch.real))
        return loss(self, nets, x, batch)

    settings = distillation("dmd2", teachers, fake_updates=3)
    with monkeypatch.context() as patch:
        patch.setattr(DMD2, "fake_loss", look)
        for how in (True, "all"):
            advance(session_of({**settings, "reuse_samples": how}))
    alone, (one, two, three) = seen[2], seen[3:]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(alone, three, strict=True))
    for this, other in ((one, two), (two, three), (one, three)):
        assert torch.equal(this[0], other[0]) and torch.equal(this[2], other[2])
        assert not torch.equal(this[1], other[1])


def test_pairs_ride_along(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward makes the samples and those of the pairs' noise; where only pairs are looked at, only theirs."""
    for name, total in (("dmd", 12), ("hipa", 8)):
        session = session_of(distillation(name, teachers))
        made: list[tuple[Tensor, Tensor, Tensor]] = []
        generator = session.state.players["generator"].bare
        generator.register_forward_hook(lambda module, inputs, output, made=made: made.append((*inputs, output)))
        seen: list[tuple[Tensor, Batch]] = []
        generator_loss = type(session.run.objective).generator_loss  # type: ignore[attr-defined]

        def look(self: Objective, nets: Denoisers, x: Tensor, batch: Batch, loss: Any = generator_loss) -> Any:
            seen.append((x, batch))  # noqa: B023
            return loss(self, nets, x, batch)

        monkeypatch.setattr(type(session.run.objective), "generator_loss", look)  # type: ignore[attr-defined]
        expected = session.batches.micro("generator", 0, 0)
        advance(session)
        noise, cond, samples = made[-1]
        ((x, batch),) = seen
        assert expected.pairs is not None and batch.pairs is not None and batch.pairs.made is not None
        assert len(noise) == len(cond["labels"]) == total and len(x) == total - len(expected.pairs.noise)
        assert torch.equal(noise, torch.cat([expected.noise[: len(x)], expected.pairs.noise]))
        assert torch.equal(torch.cat([x, batch.pairs.made]), samples)
        assert torch.equal(batch.pairs.target, expected.pairs.target)


def test_without_a_fake_the_generator_alone_plays(teachers: Path) -> None:
    session = session_of(distillation("hipa", teachers))
    assert list(session.state.players) == ["generator"]
    advance(session)
    names = session.state.meter.read(session.accelerator)
    assert not any("fake" in name for name in names) and {"generator/perceptual", "generator/grad_norm"} <= set(names)


def test_fake_updates_draw_fresh_samples(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise of the fake's stream comes twice, in an iteration or across them."""
    session = session_of(recipe(teachers / "edm", fake_updates=2))
    noises: list[Tensor] = []
    session.state.players["generator"].bare.register_forward_pre_hook(lambda module, inputs: noises.append(inputs[0]))
    advance(session)
    advance(session)
    assert len(noises) == 6
    every = torch.cat(noises).flatten(1)
    assert len(every.unique(dim=0)) == 6 * 8


@pytest.mark.parametrize("players", [(), ("generator",), ("fake",), ("generator", "fake")])
def test_only_the_player_in_training_drops_out(players: tuple[str, ...], teachers: Path) -> None:
    """And only where its settings say so."""
    session = session_of(recipe(teachers / "dropout", **dict.fromkeys(players, DROPOUT)))
    told = {name: name in players for name in ("fake", "generator")}
    found, modes = session.state.players, []
    assert session.teacher is not None
    for name, module in (("T", session.teacher), ("F", found["fake"].bare), ("G", found["generator"].bare)):
        module.register_forward_hook(lambda module, inputs, output, name=name: modes.append((name, module.training)))
    advance(session)
    phases = [("G", False), ("F", told["fake"]), ("G", told["generator"]), ("T", False), ("F", False)]
    assert modes == phases


def test_dropout_is_seeded_by_the_place_in_the_run(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every phase, update, rank and seed has its own masks."""
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for changes, rank in (({}, 0), ({"seed": 1}, 0), ({}, 1)):
        session = session_of(recipe(teachers / "dropout", fake_updates=2, **changes))
        del seeds[len(seeds) - 1 :]  # of the build
        monkeypatch.setattr(Accelerator, "process_index", rank)
        advance(session)
        advance(session)
    assert len(seeds) == len(set(seeds)) == 18


def test_learning_rates_by_value() -> None:
    player = Player("p", nn.Linear(1, 1), Optimizer(lr=2.0, warmup=100, decay="cosine"), Accelerator(cpu=True))
    assert player.learning_rate(0, 1000) == pytest.approx(2.0 / 100)
    assert player.learning_rate(49, 1000) == pytest.approx(2.0 * 0.5 * 0.99409, rel=1e-4)
    assert player.learning_rate(500, 1000) == pytest.approx(1.0)
    assert player.learning_rate(750, 1000) == pytest.approx(2.0 * 0.146447, rel=1e-5)
    player.settings = Optimizer(lr=2.0, decay="linear")
    assert [player.learning_rate(i, 1000) for i in (0, 250, 999)] == pytest.approx([2.0, 1.5, 0.002])
    player.settings = Optimizer(lr=2.0)
    assert [player.learning_rate(i, 1000) for i in (0, 999)] == [2.0, 2.0]


def test_the_scheduled_rate_is_the_one_used(teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD without momentum moves by lr times the gradient; both players follow the same images."""
    sgd = {"name": "sgd", "lr": 1e-3, "betas": [0.0, 0.9]}
    settings = recipe(teachers / "edm", generator={**sgd, "decay": "linear"}, fake={**sgd, "warmup": 90})
    session = session_of(settings)
    expected = {
        "generator": [1e-3 * (1 - i / 96) for i in (0, 8, 16)],
        "fake": [1e-3 * (i + 1) / 90 for i in (0, 8, 16)],
    }
    moves: dict[str, list[float]] = {"generator": [], "fake": []}
    step = torch.optim.SGD.step
    for name, player in session.state.players.items():

        def measured(optimizer: Any = player.optimizer, player: Player = player, name: str = name) -> None:
            before, slopes = weights(player.bare), [p.grad.clone() for p in player.parameters if p.grad is not None]
            step(optimizer)
            moved = torch.cat([(a - b).flatten() for a, b in zip(before, weights(player.bare), strict=True)])
            slope = torch.cat([g.flatten() for g in slopes])
            moves[name].append(float((moved @ slope) / (slope @ slope)))

        player.optimizer.step = measured  # type: ignore[method-assign]
    for _ in range(3):
        advance(session)
    assert moves["generator"] == pytest.approx(expected["generator"], rel=1e-3)
    assert moves["fake"] == pytest.approx(expected["fake"], rel=1e-3)


@pytest.mark.parametrize("limit", [None, 0.25, 1e9])
def test_max_grad_norm_clips(limit: float | None, teachers: Path) -> None:
    """SGD with lr 1 moves by the clipped gradient; the logged norm is the one before."""
    sgd = {"name": "sgd", "lr": 1.0, "betas": [0.0, 0.9]}
    session = session_of(recipe(teachers / "edm", fake=sgd, generator=sgd, max_grad_norm=limit))
    before = {name: weights(player.bare) for name, player in session.state.players.items()}
    session.update_players(session)
    means = session.state.meter.read(session.accelerator)
    assert means["fake/grad_norm"] > 1
    for name, player in session.state.players.items():
        if limit == 0.25 or name == "fake":  # the generator's gradient depends on how far the fake went
            moved = torch.cat([(a - b).flatten() for a, b in zip(before[name], weights(player.bare), strict=True)])
            wanted = 0.25 if limit == 0.25 else means[f"{name}/grad_norm"]
            assert float(moved.double().norm()) == pytest.approx(wanted, rel=1e-4)


def test_bfloat16_computes_low_and_keeps_high(teachers: Path) -> None:
    session = session_of(recipe(teachers / "edm", precision="bfloat16"))
    teacher, dtypes = session.teacher, []
    assert teacher is not None
    for module in (teacher.network, session.state.players["fake"].bare.network):
        module.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    advance(session)
    assert dtypes == [torch.bfloat16] * 3
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    for player in session.state.players.values():
        assert {p.dtype for p in player.parameters} == {torch.float32}
        assert {v.dtype for state in player.optimizer.state.values() for v in state.values()} == {torch.float32}
    assert {p.dtype for p in session.model.parameters()} == {torch.float32}


class Reads(TorchDispatchMode):
    """Counts every reading of a value by the host, from Python or from inside torch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


READING = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("changes", [{}, {"reuse_samples": True, "max_grad_norm": 1.0}, {"micro_batches": 2}])
def test_no_value_is_read_by_the_host(
    objective: str, changes: dict[str, Any], teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(recipe(teachers / OBJECTIVES[objective], objective=objective, **changes))
    reads = Reads()

    def counted(name: str) -> Any:
        method = getattr(Tensor, name)

        def spy(self: Tensor, *args: Any) -> Any:
            reads.found[name] += 1
            return method(self, *args)

        return spy

    with monkeypatch.context() as patch:
        for name in READING:
            patch.setattr(Tensor, name, counted(name))
        with reads:
            advance(session)
            advance(session)
            assert reads.found == {}
            session.state.meter.read(session.accelerator)  # a log point is where it does happen
            assert reads.found["__float__"] > 0 and reads.found["_local_scalar_dense"] > 0


META = torch.device("meta")  # has shapes and no values: whatever reads one fails


@pytest.mark.parametrize("objective", DISTILLATIONS)
@pytest.mark.parametrize("changes", [{}, {"reuse_samples": True, "max_grad_norm": 1.0}, {"micro_batches": 2}])
def test_a_step_needs_nothing_back_from_the_device(
    objective: str, changes: dict[str, Any], teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU a copy to the host goes unseen; on this device it is refused."""
    monkeypatch.setattr(Accelerator, "device", META)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # which meta has not
    if objective in ("hipa", "dmd, regression alone"):  # has no fake to share samples with
        changes = {**changes, "reuse_samples": False}
    session = session_of(distillation(objective, teachers, **changes))
    for player in session.state.players.values():
        monkeypatch.setattr(player.optimizer, "step", lambda: None)  # nor fused optimizers
    advance(session)
    for player in session.state.players.values():
        assert {p.device for p in player.parameters} == {META}
    with pytest.raises(NotImplementedError, match="meta"):
        session.state.meter.read(session.accelerator)


def test_real_batches_need_nothing_back_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "device", META)
    batch = session_of(teacher_recipe()).batches.micro("teacher", 0, 0)
    assert batch.real is not None
    assert batch.noise.device == batch.real.device == batch.cond["labels"].device == batch.random.device == META
    assert batch.random.keys.device.type == "cpu"  # times and positions are computed on the host
