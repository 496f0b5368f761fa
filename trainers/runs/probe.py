"""A probe of the teacher before training: are its estimates finite, and does it compute otherwise in train mode?"""

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.objectives import Objective
from distill.paths import Path
from distill.random import Random
from distill.times import Karras, Times
from trainers.engine.session import Session
from trainers.io.console import plain
from trainers.recipe.run import Run

QUANTILES = 16  # of each law of times
TAIL = 1e-4  # the first and the last quantile lie this far from 0 and 1


def probe_teacher(session: Session) -> None:
    """Check the generator's first samples, and the estimates that frozen denoisers make of them. Collective.

    A line is printed where the teacher computes otherwise in train mode.

    The times are quantiles of the objective's laws, and of the ramp on which a teacher is sampled. Each is asked for
    one sample, so that a law takes as many forwards as 16 samples are global micro-batches. No random number of the
    training is drawn.

    Args:
        session: The run, built as for its start.

    Raises:
        UserError: Samples or estimates are not finite. The message names the first such time.
    """
    run = session.run
    if session.nets is None:  # a teacher trains
        return
    run, nets = cast(Run, run), session.nets
    batch, generator = session.batches.micro("probe", 0, 0), cast(Any, session.state.players["generator"].bare)
    advice = "; check its weights" + ("" if run.precision != "bfloat16" else ", or try precision: float32")
    with torch.no_grad():
        x = generator(batch.noise, batch.cond)
        if _on_any(session, ~_finite(x).all()[None]).any():
            at = f"at the generator's time t = {generator.t:g} on {_name(nets.path)}"
            raise UserError(f"teacher: '{run.teacher}' gives samples that are not finite {at}{advice}")
        frozen = {name: one for name, one in nets.frozen.items() if isinstance(one, Denoiser)}
        denoisers = {f"teacher: '{run.teacher}'": cast(Denoiser, nets.teacher)}
        denoisers |= {f"objective: the denoiser '{name}'": one for name, one in frozen.items()}
        for name, denoiser in denoisers.items():
            asked = dict.fromkeys([*laws(run.objective), Karras()])
            times = torch.cat([_quantiles(law, denoiser.path) for law in asked]).unique()
            if (bad := _on_any(session, _bad_times(session, denoiser, x, batch.cond, batch.random, times))).any():
                t = times[bad.cpu()][:1]
                raise UserError(
                    f"{name} gives estimates that are not finite at t = {t.item():g} on {_name(denoiser.path)}"
                    f" (noise-to-signal ratio {denoiser.path.nsr(t).item():.4g}){advice}"
                )
        t = torch.full((len(x),), generator.t, dtype=torch.float64, device=x.device)
        teacher = cast(Denoiser, session.teacher)
        squares = train_mode_squares(teacher, generator.scale * batch.noise, t, batch.cond, run.seed)
        difference = train_mode_ratio(cast(Tensor, session.accelerator.gather(squares[None])))
    if not difference <= (1e-2 if run.precision == "bfloat16" else 1e-4):  # more than rounding
        plain(stderr=True, quiet=not session.accelerator.is_main_process).print(_told(run, difference))


def laws(objective: Objective) -> list[Times]:
    """Return the different laws of times in an objective and in those that it holds."""

    def found(held: Objective) -> Iterator[Times]:
        for value in (getattr(held, one.name) for one in fields(held)):
            if isinstance(value, Times):
                yield value
            elif isinstance(value, Objective):
                yield from found(value)

    return list(dict.fromkeys(found(objective)))


def _quantiles(law: Times, path: Path) -> Tensor:
    """Return the times [16] on a path at quantiles of a law, float64."""
    return path.time(law.nsr(torch.linspace(TAIL, 1 - TAIL, QUANTILES, dtype=torch.float64), path))


def _bad_times(session: Session, denoiser: Denoiser, x: Tensor, cond: Any, random: Random, times: Tensor) -> Tensor:
    """Return at which of the times [N] an estimate of this process was not finite. Each takes some of the times."""
    accelerator, bad = session.accelerator, torch.zeros(len(times), dtype=torch.int32, device=x.device)
    noise = random.stream("noise").normal(*x.shape[1:], dtype=x.dtype)
    rank = accelerator.process_index * len(x)
    # All processes make as many forwards, which are collective where weights are sharded. The last may repeat times.
    for first in range(rank, rank + len(times), len(x) * accelerator.num_processes):
        index = (first + torch.arange(len(x))) % len(times)
        t = times[index].to(x.device)
        estimates = denoiser(denoiser.path.diffuse(x, t, noise), t, cond)
        bad.index_add_(0, index.to(x.device), (~_finite(estimates)).int())
    return bad > 0


def train_mode_squares(teacher: Denoiser, x_t: Tensor, t: Tensor, cond: Any, seed: int) -> Tensor:
    """Return two sums of squares [2]: of what train mode changes in the estimates of x0, and of the estimates.

    The first is infinite where the teacher fails in train mode. Buffers and torch's random numbers are put back.

    Args:
        teacher: The teacher, in eval mode.
        x_t: Noisy samples [B, ...].
        t: Times [B] on the path.
        cond: The condition [B, ...].
        seed: The seed of dropout.
    """
    expected = teacher(x_t, t, cond)
    tables = [module._buffers for module in teacher.modules()]
    buffers = [(table, name, b, b.clone()) for table in tables for name, b in table.items() if b is not None]
    with torch.random.fork_rng([x_t.device] if x_t.device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            return torch.stack([(teacher.train()(x_t, t, cond) - expected).square().sum(), expected.square().sum()])
        except Exception:  # the user's code may raise anything
            return torch.tensor([math.inf, 1.0], dtype=expected.dtype, device=expected.device)
        finally:
            teacher.eval()
            for table, name, buffer, value in buffers:
                table[name] = buffer.copy_(value)


def train_mode_ratio(squares: Tensor) -> float:
    """Return how far the estimates in train mode are from those in eval mode, from `train_mode_squares` [ranks, 2]."""
    difference, size = squares.double().sum(0).sqrt().tolist()
    return float(difference / max(size, 1e-30))  # the estimates may be 0


def _told(run: Run, difference: float) -> str:
    """Return the line about a teacher that computes otherwise in train mode, by a ratio of `difference`."""
    names = ["generator", "fake"] if run.objective.trains_fake else ["generator"]
    off, on = ([name for name in names if (getattr(run, name).dropout == "off") == way] for way in (True, False))
    verb = "train" if len(names) > 1 else "trains"
    if off and on:
        decided = f"{off[0]} trains without it, {on[0]} with it"
    elif off:
        decided = f"{' and '.join(off)} {verb} without it; dropout: teacher turns it on"
    else:
        decided = f"{' and '.join(on)} {verb} with it; dropout: off turns it off"
    found = f"difference {100 * difference:.2g} %, such as dropout" if math.isfinite(difference) else "it fails there"
    return f"teacher: its class computes otherwise in train mode ({found}): {decided}"


def _finite(x: Tensor) -> Tensor:
    """Return whether each sample of `x` [B, ...] is finite, [B]."""
    return x.isfinite().flatten(1).all(1)


def _on_any(session: Session, flags: Tensor) -> Tensor:
    """Return the flags [N] that are set on some process. Collective."""
    return cast(Tensor, session.accelerator.gather(flags.int()[None])).any(0)


def _name(path: Path) -> str:
    return type(path).__name__
