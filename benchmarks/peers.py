"""The cost of an iteration of this library beside that of another training loop, measured alternately in one process.

    python -m benchmarks.peers their_file.py:build --objective sid --batch 16 --precision float32

The other loop is code of the person who runs this, and none of it is here. `their_file.py` has a function

    def build(teacher, batch_size, precision):
        ...
        return iteration

- teacher: a distill.denoiser.Denoiser with the weights of our own teacher. Called with noisy samples x_t [B, 3, S, S],
  noise levels sigma [B] in float64 and a distill.conditions.Condition of labels [B], it estimates the clean samples.
  `teacher.network` is the bare network. It is a copy: the peer may change it, move it or take its network apart.
- batch_size: B, the samples of one iteration.
- precision: "float32" or "bfloat16". The peer applies it in its own way.
- iteration: a function without arguments that makes one iteration: an update of the generator, with all updates of the
  fake that come with it (--fake-updates of them).

Both use EDM's DDPM++ for CIFAR-10 at 1/4 of its width (3x32x32, 3.5 million parameters). `--channels 128` is the
published one. The printed units are seconds of one iteration: wall seconds, and CPU seconds in user mode over all
threads (getrusage). The loops take turns, and the order within a turn alternates. Each ratio is the peer's time divided
by ours in the same turn, as a median with quartiles. The peaks are those of two further processes, one for each loop:
on a GPU the peak of torch's allocator, and else the resident memory at its peak, less that after the imports.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
import typer
from accelerate import Accelerator

from benchmarks.sessions import Spread, seconds_of, session_of
from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.paths import EDM
from distill.teachers import EDMNet
from trainers.engine.memory import GIB, peak_memory
from trainers.engine.step import advance
from trainers.io.console import plain
from trainers.recipe.strict_yaml import override

Iteration = Callable[[], object]
Build = Callable[[Denoiser, int, str], Iteration]
SETTINGS: dict[str, dict[str, Any]] = {  # so that nothing waits for images that a benchmark never comes to
    "sida": {"generator_from": 0, "adversarial_from": 0},
    "uni_instruct": {"generator_from": 0, "adversarial_from": 0},
    "dmd": {"regression": 0.0},
}


class Setting(NamedTuple):
    """The comparison: what both loops train.

    Attributes:
        objective: Our objective.
        batch: The samples of one iteration.
        precision: float32 or bfloat16.
        fake_updates: The updates of the fake in an iteration.
        reuse_samples: Whether our phases share samples, as in a recipe.
        compile: Whether ours is compiled.
        channels: The width of the network.
        size: The side of a sample in pixels.
    """

    objective: str = "sid"
    batch: int = 16
    precision: str = "float32"
    fake_updates: int = 1
    reuse_samples: bool | Literal["all"] = False
    compile: bool = False
    channels: int = 32
    size: int = 32


class Cost(NamedTuple):
    """The cost of an iteration.

    Attributes:
        wall: Wall seconds.
        user: CPU seconds in user mode, over all threads.
    """

    wall: float
    user: float


def edm_teacher(channels: int, size: int) -> Denoiser:
    """Return EDM's DDPM++ with random weights, all of which matter: EDM starts some layers at zero.

    Args:
        channels: The width, 128 in the published network.
        size: The side of a sample in pixels.
    """
    torch.manual_seed(0)
    levels = {"channel_mult": [2, 2, 2], "num_blocks": 4, "attn_resolutions": [size // 2]}
    shape = {"img_resolution": size, "img_channels": 3, "label_dim": 10}
    network = EDMNet(model_type="SongUNet", model_channels=channels, **levels, **shape)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return Denoiser(network, EDM(), "edm").eval()  # without dropout, as runs train


def with_settings(text: str) -> dict[str, Any]:
    """Return an objective as a mapping with its SETTINGS. The text is its name, or a YAML mapping as in a recipe."""
    found = override({}, [f"objective={text}"])["objective"]
    found = {"name": found} if isinstance(found, str) else found
    return {**SETTINGS.get(found["name"], {}), **found}


def our_iteration(teacher: Denoiser, setting: Setting, accelerator: Accelerator) -> Iteration:
    """Return one round of this library as a function."""
    session = session_of(
        teacher,
        accelerator,
        objective=with_settings(setting.objective),
        batch_size=setting.batch,
        precision=setting.precision,
        fake_updates=setting.fake_updates,
        reuse_samples=setting.reuse_samples,
        compile=setting.compile,
    )
    return lambda: advance(session)


def load_build(place: str) -> Build:
    """Return the function that 'file.py:function' names.

    Raises:
        UserError: There is no such file, or no such function in it.
    """
    file, _, name = place.rpartition(":")
    spec = importlib.util.spec_from_file_location("peer", file) if Path(file).is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"peer: '{place}' is not FILE.py:FUNCTION of a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peer"] = module
    sys.path.insert(0, str(Path(file).resolve().parent))  # where its own imports are
    spec.loader.exec_module(module)
    if not callable(found := getattr(module, name, None)):
        raise UserError(f"peer: '{file}' has no function '{name}'")
    return cast(Build, found)


def cost_of(iteration: Iteration, device: torch.device) -> Cost:
    """Return the cost of one iteration."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    wall = seconds_of(iteration, device)
    return Cost(wall, resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)


def alternate(loops: dict[str, Iteration], turns: int, device: torch.device) -> dict[str, list[Cost]]:
    """Return the costs of iterations that take turns, each after one iteration that is not timed.

    Args:
        loops: The loops by name.
        turns: The number of timed iterations of each.
        device: The device that they use.
    """
    for iteration in loops.values():
        iteration()
    costs: dict[str, list[Cost]] = {name: [] for name in loops}
    for turn in range(turns):
        for name in list(loops)[:: 1 if turn % 2 else -1]:
            costs[name].append(cost_of(loops[name], device))
    return costs


def make_iteration(which: str, peer: str, setting: Setting) -> tuple[Iteration, torch.device]:
    """Return the iteration of `ours` or of the `peer`, on a copy of the same teacher, and its device."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    teacher = edm_teacher(setting.channels, setting.size)
    if which == "ours":
        return our_iteration(teacher, setting, accelerator), accelerator.device
    build = load_build(peer)
    return build(copy.deepcopy(teacher).to(accelerator.device), setting.batch, setting.precision), accelerator.device


def peak_bytes(which: str, peer: str, setting: Setting, iterations: int = 3) -> int:
    """Return the peak memory of a loop, in this process, which must have run nothing else."""
    before = peak_memory(torch.device("cpu"))
    iteration, device = make_iteration(which, peer, setting)
    for _ in range(iterations):
        iteration()
    return round(GIB * (peak_memory(device) - (before if device.type == "cpu" else 0.0)))


def peak_in_a_process(which: str, peer: str, setting: Setting) -> int:
    """Return the peak memory of a loop in a process of its own, in bytes."""
    program = "import sys, json; from benchmarks.peers import Setting, peak_bytes"
    program += "; a = json.loads(sys.argv[1]); print('peak', peak_bytes(a[0], a[1], Setting(*a[2])))"
    command = [sys.executable, "-c", program, json.dumps([which, peer, setting])]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(next(line for line in printed.splitlines()[::-1] if line.startswith("peak ")).split()[1])


def compare(peer: str, setting: Setting, turns: int) -> dict[str, dict[str, Spread]]:
    """Return the spreads of wall and user seconds, of ours, of the peer, and of their ratio in a turn."""
    loops, device = {}, torch.device("cpu")
    for which in ("ours", "peer"):
        loops[which], device = make_iteration(which, peer, setting)
    costs = alternate(loops, turns, device)
    found = {name: {kind: [getattr(c, kind) for c in each] for kind in Cost._fields} for name, each in costs.items()}
    pairs = {kind: zip(found["peer"][kind], found["ours"][kind], strict=True) for kind in Cost._fields}
    found["ratio"] = {kind: [theirs / max(ours, 1e-9) for theirs, ours in each] for kind, each in pairs.items()}
    return {name: {kind: Spread.over(values) for kind, values in each.items()} for name, each in found.items()}


def main(
    peer: Annotated[str, typer.Argument(help="FILE.py:FUNCTION that builds the other loop.")],
    objective: Annotated[str, typer.Option(help="Our objective, by its name or as a YAML mapping.")] = "sid",
    batch: Annotated[int, typer.Option(help="Samples of an iteration.", min=1)] = 16,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    fake_updates: Annotated[int, typer.Option(help="Updates of the fake in an iteration.", min=1)] = 1,
    reuse_samples: Annotated[
        Literal["none", "last", "all"], typer.Option(help="The fake's updates that share samples with the generator's.")
    ] = "none",
    compile: Annotated[bool, typer.Option(help="Whether ours is compiled.")] = False,
    channels: Annotated[int, typer.Option(help="The width of the network.", min=8)] = 32,
    size: Annotated[int, typer.Option(help="The side of a sample in pixels.", min=8)] = 32,
    turns: Annotated[int, typer.Option(help="The timed iterations of each loop.", min=1)] = 9,
    memory: Annotated[bool, typer.Option(help="Whether to measure the peaks too.")] = True,
) -> None:
    """Print both costs, their ratio and the peaks."""
    reused: bool | Literal["all"] = "all" if reuse_samples == "all" else reuse_samples == "last"
    setting = Setting(objective, batch, precision, fake_updates, reused, compile, channels, size)
    console, found = plain(), compare(peer, setting, turns)
    described = ", ".join(f"{name} {value}" for name, value in setting._asdict().items())
    console.print(f"{described}; torch {torch.__version__}, {torch.get_num_threads()} threads; {turns} turns")
    console.print(f"{'':8}{'wall s':>28}{'user CPU s':>28}")
    for name, kinds in found.items():
        cells = (f"{each.median:.3f} [{each.low:.3f}, {each.high:.3f}]" for each in (kinds["wall"], kinds["user"]))
        console.print(f"{name:8}" + "".join(f"{cell:>28}" for cell in cells))
    if memory:
        ours, theirs = (peak_in_a_process(which, peer, setting) for which in ("ours", "peer"))
        console.print(
            f"peak: ours {ours / 2**20:.0f} MiB, peer {theirs / 2**20:.0f} MiB, ours / peer {ours / theirs:.2f}"
        )


if __name__ == "__main__":
    typer.run(main)
