"""Back-propagation through teacher and fake one after the other is plain autograd with less memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import EDM, Denoiser, Random
from distill.discriminator import ChannelMean, Critic
from distill.objectives import Batch, Denoisers
from tests.tiny import DISTILLATIONS, build_session, distillation, experiment
from tests.toys import Tanh
from trainers.engine.backprop import OneByOne
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.recipe.run import Run


def session_of(settings: dict[str, Any]) -> Session:
    return build_session(settings)


def passes_both(name: str, teachers: Path) -> bool:
    """Whether the generator's gradient passes teacher and fake."""
    run = experiment(distillation(name, teachers))
    assert isinstance(run, Run)
    return run.objective.differentiates_denoisers and name != "score_mismatching"  # which asks the fake alone


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_one_by_one_trains_what_joint_does(name: str, teachers: Path) -> None:
    """Three rounds, log point included: weights and every logged number to 1e-10 in float64."""
    both = []
    for backprop in ("joint", "one_by_one"):
        session = session_of(distillation(name, teachers, backprop=backprop, precision="float64", log_every=8))
        for _ in range(3):
            advance(session)
        weights = torch.cat([p.detach().flatten() for p in session.state.players["generator"].parameters])
        both.append((weights, session.state.meter.read(session.accelerator)))
    (joint, numbers), (ours, again) = both
    assert float((joint - ours).abs().max() / joint.abs().max()) < 1e-10
    assert numbers == {key: pytest.approx(value, rel=1e-8, abs=1e-12) for key, value in again.items()}


def loss_of(nets: Denoisers, x: Tensor, batch: Batch) -> Tensor:
    """Every shape of call: two networks, a second call of one, a critic's two outputs, the logits alone."""
    t = torch.linspace(0.3, 2.0, len(x), dtype=torch.float64)
    x_t = nets.path.diffuse(x, t, batch.noise)
    later = nets.path.diffuse(x, 2 * t, batch.noise)
    fake, logits = nets.fake(x_t, t, batch.cond, "both")
    gap = nets.teacher(x_t, t, batch.cond) - fake
    second = nets.teacher(later, 2 * t, batch.cond)
    return (gap * (fake - x)).sum() + (logits**2).sum() * second.mean() + nets.fake(later, t, None, "logits").sum()


def toys() -> tuple[Denoisers, Tensor, Batch]:
    teacher, fake = (Denoiser(nn.Sequential(), EDM(), "v").double() for _ in range(2))
    teacher.network, fake.network = Tanh(18, 1).double(), Tanh(18, 2).double()
    nets = Denoisers(EDM(), teacher, Critic(fake, "encoder", ChannelMean()))
    for net in (teacher, fake):
        net.requires_grad_(False)
    random = Random.at(0, torch.arange(4))
    batch = Batch(random.normal(2, 3, 3, dtype=torch.float64), random, torch.arange(4) % 3)
    x = random.stream("x").normal(2, 3, 3, dtype=torch.float64)
    return nets, x.requires_grad_(), batch


def test_any_loss_of_any_calls() -> None:
    nets, x, batch = toys()
    (plain,) = torch.autograd.grad(loss_of(nets, x, batch), x)
    graph = OneByOne()
    loss = loss_of(graph.through(nets), graph.cut(x), batch)
    for _ in range(2):  # a term can be asked for its gradient before the loss is
        assert float((graph.gradient(loss) - plain).abs().max()) < 1e-10 * float(plain.abs().max())
    graph.backward(loss)
    assert x.grad is not None and torch.allclose(x.grad, plain, rtol=1e-10)
    detached = graph.through(nets).teacher(x.detach(), torch.ones(4, dtype=torch.float64), batch.cond)
    assert not detached.requires_grad and not graph.calls  # nothing to carry back, nothing kept
    assert graph.through(nets).teacher.sigma_data == nets.teacher.sigma_data


@contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """Bytes of activations that autograd holds for backward passes, at most, within the context."""
    now, most, held = 0, 0, Counter[int]()

    def gone(storage: int, size: int) -> None:
        nonlocal now
        held[storage] -= 1
        now -= 0 if held[storage] else size

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # with its graph it would keep itself alive

    def pack(tensor: Tensor) -> Saved:
        nonlocal now, most
        saved, storage = Saved(tensor), tensor.untyped_storage()
        if tensor.grad_fn is not None:  # neither weights nor inputs: they are there anyway
            now += 0 if held[storage.data_ptr()] else storage.nbytes()
            held[storage.data_ptr()] += 1
            weakref.finalize(saved, gone, storage.data_ptr(), storage.nbytes())
        most = max(most, now)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        yield lambda: most


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_peak_memory(name: str, teachers: Path) -> None:
    """Two networks' activations instead of three where the gradient passes both; the same where it passes none."""
    most = []
    for backprop in ("joint", "one_by_one"):
        session = session_of(distillation(name, teachers, backprop=backprop))
        with peak() as reading:
            advance(session)
            most.append(reading())
    ratio = most[1] / most[0]
    assert ratio < 0.7 if passes_both(name, teachers) else ratio == pytest.approx(1, abs=0.02)


def test_forwards(teachers: Path) -> None:
    """One more forward: the teacher's, which is not the last to be called."""
    counts = {}
    for backprop in ("joint", "one_by_one"):
        nets, x, batch = toys()
        graph, calls = OneByOne(), []
        for network, name in ((nets.teacher, "T"), (nets.fake, "F")):
            network.register_forward_hook(lambda module, inputs, output, name=name, calls=calls: calls.append(name))
        t = torch.ones(4, dtype=torch.float64)
        ours, sample = (nets, x) if backprop == "joint" else (graph.through(nets), graph.cut(x))
        gap = ours.teacher(sample, t, batch.cond) - ours.fake(sample, t, batch.cond)
        loss = (gap**2).sum()
        loss.backward() if backprop == "joint" else graph.backward(loss)
        counts[backprop] = "".join(calls)
    assert counts == {"joint": "TF", "one_by_one": "TFT"}
