"""The sections of benchmarks/gpu_check.py: each writes its Markdown lines as it finds them."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import edm_teacher
from benchmarks.roofline import PEAK
from benchmarks.sessions import Spread, seconds_of, session_of
from benchmarks.shapes import published_folder, shape_session, shortened_recipe
from distill.conditions import Condition
from distill.objectives.dmd2 import DMD2
from distill.objectives.sid import SiD
from tests import families as kinds
from tests import tiny as small
from tests.compiling import counting_graphs
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.plan.trace import plan
from trainers.recipe.load import resolve
from trainers.recipe.run import Run

Say = Callable[[str], None]
PUBLISHED = {  # recipe -> samples on a GPU, and the tiny teacher of its kind
    "cifar10_cond_sid": (128, "edm_cond"),
    "imagenet64_sid": (64, "adm"),
    "imagenet512_sid": (32, "edm2"),
    "sd15_sid_lsg": (8, "sd15"),
    "sdxl_dmd2": (2, "sdxl"),
}
PRICES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, `tf32: true`": {"tf32": True},
    "float32, `tf32: true`, `deterministic: false`": {"tf32": True, "deterministic": False},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, `deterministic: false`": {"precision": "bfloat16", "deterministic": False},
    "bfloat16, `deterministic: false`, `compile: true`": {
        "precision": "bfloat16",
        "deterministic": False,
        "compile": True,
    },
}
FAILED = "NO"


def this_device() -> Accelerator:
    """Return the Accelerator of the GPU, or of the CPU where there is none."""
    return Accelerator(cpu=not torch.cuda.is_available())


@contextmanager
def cheap_compiler(tiny: bool) -> Iterator[None]:
    """Compile to graphs of torch's own operators where everything is tiny, since a compiler takes minutes."""
    with counting_graphs() if tiny else nullcontext():
        yield


def clear() -> None:
    """Give the memory of earlier sessions back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def table(say: Say, *heads: str) -> None:
    """Write the head of a table."""
    say(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")


def row(say: Say, *cells: str) -> None:
    """Write a row of a table."""
    say(f"| {' | '.join(cells)} |")


def verdict(holds: bool) -> str:
    """Return a cell that says whether something holds. One that does not makes the check fail."""
    return "yes" if holds else FAILED


def flops_and_seconds(session: Session, rounds: int) -> tuple[float, float]:
    """Return the operations of a round, and its median seconds after two rounds that are not timed."""
    advance(session)
    device = session.accelerator.device
    took = Spread.over([seconds_of(lambda: advance(session), device) for _ in range(rounds + 1)][1:])
    if session.run.compile:  # a counter would stop the compilation
        return 0.0, took.median
    with FlopCounterMode(display=False) as counter:
        advance(session)
    return float(counter.get_total_flops()), took.median


def published(name: str, tiny: bool, folder: Path, **changes: Any) -> Run:
    """Return a paper's recipe for one GPU, with the configs of its teacher, or with a tiny one of the same kind."""
    run = cast(Run, resolve(name))
    batch, kind = PUBLISHED[name]
    if tiny:
        place = folder / kind
        if not place.exists():
            kinds.TEACHERS[kind](place)
        run, batch = replace(run, teacher=str(place)), 2
    else:
        run = replace(run, teacher=published_folder(run, folder))
    alone: dict[str, Any] = {"fake_updates": 1, "reuse_samples": False, "max_grad_norm": None}
    return shortened_recipe(run, batch_size=batch, **{**alone, **changes})


def prices(say: Say, tiny: bool) -> None:
    """Write what each setting costs: EDM's DDPM++ of CIFAR-10 under SiD."""
    table(say, "setting", "images/s", "of float32")
    first = None
    with tempfile.TemporaryDirectory() as folder, cheap_compiler(tiny):
        for name, changes in list(PRICES.items())[:: 5 if tiny else 1]:
            default = {"precision": "float32", "tf32": False, "deterministic": True}
            run = published("cifar10_cond_sid", tiny, Path(folder), **{**default, **changes})
            _, took = flops_and_seconds(shape_session(run, this_device()), 1 if tiny else 5)
            first = first or took
            row(say, name, f"{run.batch_size / took:,.1f}", f"{first / took:.2f}")
            clear()


def shapes(say: Say, tiny: bool) -> None:
    """Write the rate, the share of the peak and the memory of the published sizes, under SiD and DMD2.

    The plans come last, because those of large networks take a minute each on the host.
    """
    table(say, "teacher of", "objective", "batch", "images/s", "share of the peak", "measured MiB")
    measured = list[tuple[str, Run, float]]()
    with tempfile.TemporaryDirectory() as folder:
        for name in ["cifar10_cond_sid"] if tiny else PUBLISHED:
            for objective in (SiD(), DMD2()):
                settings: dict[str, Any] = {"precision": "bfloat16", "tf32": True, "deterministic": False}
                run = published(name, tiny, Path(folder), objective=objective, **settings)
                before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
                session = shape_session(run, this_device())
                flops, took = flops_and_seconds(session, 1 if tiny else 3)
                peak = round_peak(session) - before
                title = f"`{name}` | {type(objective).__name__}"
                rate = f"{run.batch_size / took:,.2f}", f"{flops / took / PEAK:.1%}"
                row(say, title, str(run.batch_size), *rate, f"{peak / 2**20:,.0f}")
                measured.append((title, run, peak))
                del session
                clear()
        say("")
        table(say, "teacher of", "objective", "planned MiB", "measured / planned", "within 10 %")
        for title, run, peak in measured:
            planned = plan(run, 1).peak.bytes
            near = "-" if peak != peak else verdict(abs(peak / planned - 1) <= 0.1)  # a CPU measures no peak
            row(say, title, f"{planned / 2**20:,.0f}", f"{peak / planned:.3f}", near)


def round_peak(session: Session) -> float:
    """Return the bytes at the peak of a round on a GPU. A CPU has no such number."""
    if not torch.cuda.is_available():
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    advance(session)
    return float(torch.cuda.max_memory_allocated())


def offload(say: Say, tiny: bool) -> None:
    """Write the price of weights in (pinned) host memory: a DDPM++ under SiD."""
    table(say, "`sharding.offload`", "ms a round", "peak MiB on the GPU")
    for what in (None, "teacher", "all"):
        sharding = None if what is None else {"offload": what}
        row(say, str(what), *round_cells(tiny, sharding=sharding))
    if dist.is_initialized():
        dist.destroy_process_group()


def eight_bits(say: Say, tiny: bool) -> None:
    """Write the price of moments of 8 bits: a DDPM++ under SiD."""
    table(say, "optimizer", "ms a round", "peak MiB on the GPU")
    for name in ("adam", "adam8bit"):
        row(say, name, *round_cells(tiny, generator={"name": name}, fake={"name": name}))


def round_cells(tiny: bool, **recipe: Any) -> list[str]:
    """Return the milliseconds of a round of SiD on EDM's DDPM++, and the peak memory."""
    clear()
    teacher = edm_teacher(8, 8) if tiny else edm_teacher(128, 32)
    session = session_of(teacher, this_device(), objective="sid", batch_size=2 if tiny else 64, **recipe)
    _, took = flops_and_seconds(session, 1 if tiny else 5)
    peak = f"{torch.cuda.max_memory_allocated() / 2**20:,.0f}" if torch.cuda.is_available() else "-"
    return [f"{1000 * took:,.1f}", peak]


def nccl(say: Say, tiny: bool) -> None:
    """Write whether DDP in a group of one, over NCCL on a GPU, gives the gradients of the bare network."""
    backend, device = ("nccl" if torch.cuda.is_available() else "gloo"), this_device().device
    network = edm_teacher(8, 8).to(device) if tiny else edm_teacher(32, 32).to(device)
    x = torch.randn(4, *network.network.shape, device=device)
    given = x, torch.ones(4, dtype=torch.float64), Condition(labels=torch.zeros(4, dtype=torch.int64, device=device))
    with ExitStack() as stack:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, rank=0, world_size=1, store=store)
        stack.callback(dist.destroy_process_group)
        found = []
        for module in (network, nn.parallel.DistributedDataParallel(network)):
            network.zero_grad()
            module(*given).square().mean().backward()
            found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        total = torch.ones((), device=device)
        dist.all_reduce(total)
        worst = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-20)) for a, b in zip(*found, strict=True))
    table(say, "backend", "an all-reduce of 1", "difference of DDP's gradients, of the largest", "below 1e-5")
    row(say, backend, f"{float(total):g}", f"{worst:.1e}", verdict(worst < 1e-5 and float(total) == 1))


def resume(say: Say, tiny: bool) -> None:
    """Write whether a run that goes on from a checkpoint ends with the bits of one that was not interrupted."""
    table(say, "precision", "equal bits after a resume")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        small.write_teachers(folder)
        for precision in ("float32", "bfloat16"):
            settings = small.recipe(folder / "edm", precision=precision, evaluation={"samples": 8})
            settings |= {"deterministic": True}
            whole = weights_after(small.fit_run(settings, folder / precision, accelerator=this_device()))
            for late in sorted((folder / precision / "checkpoints").iterdir())[1:]:
                shutil.rmtree(late)
            again = weights_after(small.fit_run(settings, folder / precision, True, this_device()))
            equal = all(torch.equal(whole[name], again[name]) for name in whole)
            row(say, precision, verdict(equal))


def weights_after(session: Session) -> dict[str, torch.Tensor]:
    """Return copies of the weights of all players of a run."""
    players = session.state.players.items()
    return {f"{name} {key}": value.clone() for name, one in players for key, value in one.bare.state_dict().items()}


def families(say: Say, tiny: bool) -> None:
    """Write for every kind of network whether it compiles, and how far its first round is from one in eager mode."""
    heads = "difference of the generator's gradient norm, float32", "below 1e-4", "the norm in bfloat16 is finite"
    table(say, "teacher", *heads)
    for name in ["edm_cond"] if tiny else kinds.TEACHERS:
        if name == "own":
            continue  # the class of a user, whose code a folder may not name without consent
        with tempfile.TemporaryDirectory() as place, cheap_compiler(tiny):
            work = Path(place)
            kinds.TEACHERS[name](work / "teacher")
            changes: dict[str, Any] = {"images": 10**6, "log_every": 10**6, "samples_every": 10**6}
            settings = kinds.recipe(name, kinds_objective(name), work / "teacher", work, **changes)
            eager, compiled, half = (
                generator_norm({**settings, **more})
                for more in ({}, {"compile": True}, {"compile": True, "precision": "bfloat16"})
            )
            difference = abs(compiled - eager) / max(abs(eager), 1e-20)
            row(say, name, f"{difference:.1e}", verdict(difference < 1e-4), verdict(abs(half) < float("inf")))
        clear()


def kinds_objective(name: str) -> str:
    """Return the objective for a kind of teacher: FGM for flows, and SiD for all others."""
    return "fgm" if name.startswith(kinds.FLOWS) else "sid"


def generator_norm(settings: dict[str, Any]) -> float:
    """Return the norm of the generator's gradient in the first round of a recipe."""
    session = small.build_session(settings, this_device())
    advance(session)
    return float(session.state.meter.read(session.accelerator)["generator/grad_norm"])
