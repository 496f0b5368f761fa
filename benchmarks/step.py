"""The time of one round of training, in units of one forward of the network, measured side by side in one run.

    python -m benchmarks.step [--compile] [--precision bfloat16] [--objective sid] [--rounds 9]

`make bench-step` prints medians over turns, since machines are noisy. A turn times forwards and a round, one after the
other, both compiled or not and in the same precision. The table also shows the count that the mathematics needs: a
forward is 1, a backward through weights and input is 2, and a backward through the input alone is 1. With forwards G, T
and F of generator, teacher and fake, the fake's phase needs G + F + 2, and the generator's phase needs G + T + F and
their backwards. A pass that ends at a discriminator's tap counts as the share of the network's FLOPs up to there.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import torch
import typer
from accelerate import Accelerator
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sessions import FOREVER, seconds_of, session_of
from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.paths import EDM, Flow
from distill.teachers import build_unet
from trainers.engine.networks import compiling
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.hooks import Log
from trainers.hooks.alarms import Alarms
from trainers.io.console import plain

SIZE, CLASSES, BATCH, LOG_ITERATIONS = 16, 10, 64, 50
NETWORK: dict[str, Any] = {
    "sample_size": SIZE,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [64, 128],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "num_class_embeds": CLASSES,
    "add_attention": False,
}


class Passes(NamedTuple):
    """The passes of a phase by the mathematics, a backward included as one or two.

    Attributes:
        whole: Those through the whole network.
        part: Those that end at the discriminator's tap.
    """

    whole: int
    part: int = 0


FAKE = Passes(4)  # G, F and its backward, 2
JUDGED = Passes(4, 3)  # and the real samples up to the tap, with a backward
REAL_TOO = Passes(7)  # G, and F with its backward on generated and on real samples
THROUGH = Passes(7)  # G, T, F, the backwards of T and F through their input, 1 each, and that of G, 2
DETACHED = Passes(5)  # G, T, F without a graph, and the backward of G
DETACHED_JUDGED = Passes(5, 2)  # and the discriminator's pass up to the tap, with a backward through its input
FAKE_ALONE = Passes(5)  # G, F, its backward through the input, and that of G


class Case(NamedTuple):
    """A row of the table.

    Attributes:
        objective: The objective, as in a recipe.
        fake: The passes of an update of the fake.
        generator: The passes of an update of the generator.
        tap: The tap of the discriminator. None without one.
        recipe: Further keys of the recipe.
        flow: Whether the teacher is a flow and not EDM's.
    """

    objective: dict[str, Any]
    fake: Passes
    generator: Passes
    tap: str | None = None
    recipe: Mapping[str, Any] = MappingProxyType({})
    flow: bool = False

    def needs(self, share: float) -> float:
        """Return the forwards that a round needs, where the part up to the tap is `share` of one."""
        updates, shared = self.recipe.get("fake_updates", 1), self.recipe.get("reuse_samples", False)
        saved = updates if shared == "all" else shared
        whole = updates * self.fake.whole + self.generator.whole - saved
        return float(whole + share * (updates * self.fake.part + self.generator.part))


_REUSED: dict[str, Any] = {"reuse_samples": True}
_AT_ONCE = {"generator_from": 0, "adversarial_from": 0}
CASES = {
    "sid": Case({"name": "sid"}, FAKE, THROUGH),
    "sid, reuse_samples": Case({"name": "sid"}, FAKE, THROUGH, recipe=_REUSED),
    "sida": Case({"name": "sida", **_AT_ONCE}, JUDGED, THROUGH, "encoder"),
    "sim": Case({"name": "sim"}, FAKE, THROUGH),
    "diff_instruct": Case({"name": "diff_instruct"}, FAKE, DETACHED),
    "dmd without pairs": Case({"name": "dmd", "regression": 0.0}, FAKE, DETACHED),
    "dmd2": Case({"name": "dmd2"}, JUDGED, DETACHED_JUDGED, "middle"),
    "dmd2, K = 5": Case({"name": "dmd2"}, JUDGED, DETACHED_JUDGED, "middle", {"fake_updates": 5}),
    "dmd2, K = 5, reuse_samples": Case(
        {"name": "dmd2"}, JUDGED, DETACHED_JUDGED, "middle", {"fake_updates": 5, **_REUSED}
    ),
    "dmd2, K = 5, reuse_samples: all": Case(
        {"name": "dmd2"}, JUDGED, DETACHED_JUDGED, "middle", {"fake_updates": 5, "reuse_samples": "all"}
    ),
    "f_distill": Case({"name": "f_distill"}, JUDGED, DETACHED_JUDGED, "middle"),
    "uni_instruct": Case({"name": "uni_instruct", **_AT_ONCE}, JUDGED, THROUGH, "encoder"),
    "score_mismatching": Case({"name": "score_mismatching"}, REAL_TOO, FAKE_ALONE),
    "fgm": Case({"name": "fgm"}, FAKE, THROUGH, flow=True),
    "realuid": Case({"name": "realuid"}, REAL_TOO, THROUGH, flow=True),
}


class Stopwatch:
    """The total time of the calls of wrapped functions.

    Attributes:
        seconds: The time so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same and adds its time."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return result

        return timed


class Found(NamedTuple):
    """The measurement of one row.

    Attributes:
        forward: Milliseconds of a forward.
        ratio: The time of a round in forwards.
        needs: The forwards that it needs.
        extras: The share of a round that data, log and averages take.
    """

    forward: float
    ratio: float
    needs: float
    extras: float


def random_teacher(case: Case) -> Denoiser:
    """Return the teacher of a row, with random weights."""
    torch.manual_seed(0)
    unet = build_unet(NETWORK)
    return Denoiser(unet, Flow(), "velocity") if case.flow else Denoiser(unet, EDM(), "edm")


@torch.no_grad()
def share_to(teacher: Denoiser, tap: str | None) -> float:
    """Return the share of a forward's FLOPs up to `tap`."""
    if tap is None:
        return 0.0
    x, t = torch.zeros(1, *teacher.network.shape), torch.full((1,), 0.5, dtype=torch.float64)
    cond = Condition(labels=torch.zeros(1, dtype=torch.int64))
    with FlopCounterMode(display=False) as part:
        teacher.features(x, t, cond, tap)
    with FlopCounterMode(display=False) as whole:
        teacher(x, t, cond)
    teacher.remove_taps()
    return float(part.get_total_flops() / whole.get_total_flops())


def measure(case: Case, accelerator: Accelerator, rounds: int, batch: int = BATCH, **recipe: Any) -> Found:
    """Measure one row.

    Args:
        case: The row.
        accelerator: The device.
        rounds: The number of turns.
        batch: The number of samples.
        recipe: Further keys of the recipe: compile, precision.
    """
    teacher = random_teacher(case)
    needs = case.needs(share_to(teacher, case.tap))
    session = session_of(teacher, accelerator, objective=case.objective, batch_size=batch, **case.recipe, **recipe)
    watch, device = Stopwatch(), accelerator.device
    session.batches.micro = watch.around(session.batches.micro)  # type: ignore[method-assign]
    session.state.ema.update = watch.around(session.state.ema.update)  # type: ignore[method-assign]
    session.state.meter.add = watch.around(session.state.meter.add)  # type: ignore[method-assign]
    forwards = round(needs)  # about as long as a round
    found = list[tuple[float, float, float]]()
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder), FOREVER, Console(quiet=True))
        log.start(session)
        log.alarms = Alarms(())  # of networks with random weights
        for turn in range(rounds + 2):
            forward = seconds_of(lambda: _forwards(session, forwards), device) / forwards
            watch.seconds = 0.0
            iteration = seconds_of(lambda: advance(session), device)
            inside = watch.seconds
            logging = seconds_of(lambda: log(session), device) / LOG_ITERATIONS
            if turn > 1:  # the first two compile
                found.append((forward, iteration / forward, (inside + logging) / (iteration + logging)))
        log.stop()
    forward, ratio, extras = (statistics.median(column) for column in zip(*found, strict=True))
    return Found(1000 * forward, ratio, needs, extras)


@torch.no_grad()
def _forwards(session: Session, count: int) -> None:
    """Call the teacher, compiled if the run is."""
    assert session.teacher is not None
    size, device, how = session.run.batch_size, session.accelerator.device, session.run.compilation
    x = torch.zeros(size, *session.dataset.shape, device=device)
    t = torch.full((size,), 0.5, dtype=torch.float64)
    cond = Condition(labels=torch.zeros(size, dtype=torch.int64, device=device))
    with nullcontext() if how is None else compiling([session.teacher], how):
        for _ in range(count):
            session.teacher(x, t, cond)


def main(
    rounds: Annotated[int, typer.Option(help="The turns of each row.", min=1)] = 9,
    compile: Annotated[bool, typer.Option(help="Compile the networks, in rounds and forwards alike.")] = False,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    objective: Annotated[list[str] | None, typer.Option(help="Rows by name. All when left out.")] = None,
    batch: Annotated[int, typer.Option(help="The number of samples.", min=1)] = BATCH,
) -> None:
    """Print the table, each figure a median of `rounds` turns."""
    accelerator, console = Accelerator(cpu=not torch.cuda.is_available()), plain()
    console.print(
        f"UNet2DModel 3x{SIZE}x{SIZE} {NETWORK['block_out_channels']}, batch {batch}, {precision},"
        f" {'compiled' if compile else 'eager'}, {accelerator.device}, {torch.get_num_threads()} threads,"
        f" torch {torch.__version__}; medians of {rounds} rounds"
    )
    heads = ["iteration / forward", "needs", "measured / needs", "data, log, EMA", "forward, ms"]
    console.print(f"{'':28}" + "".join(f"{head:>21}" for head in heads))
    for name in objective or CASES:
        found = measure(CASES[name], accelerator, rounds, batch, compile=compile, precision=precision)
        cells = [f"{found.ratio:.2f}", f"{found.needs:.1f}", f"{found.ratio / found.needs:.3f}"]
        cells += [f"{found.extras:.2%}", f"{found.forward:.2f}"]
        console.print(f"{name:28}" + "".join(f"{cell:>21}" for cell in cells))


if __name__ == "__main__":
    typer.run(main)
