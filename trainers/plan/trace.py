"""What a run will hold and send on each GPU, before any weight loads.

Two updates of the trainer's own code are traced: its players, averages and step, torch's own DDP or FSDP2, on fake
tensors (shapes without values), in one process that stands for any number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.encoders import autoencoder
from distill.errors import UserError
from distill.lora import Lora
from distill.objectives import Batch, Pairs
from distill.pipeline_folder import meta_model
from distill.random import Random
from distill.teachers import load_denoiser
from trainers.data import Dataset
from trainers.data.batches import Batches, BatchSizes
from trainers.engine.networks import set_precision
from trainers.engine.player import Player
from trainers.engine.session import Session
from trainers.engine.sharding import is_offloaded
from trainers.engine.step import advance
from trainers.plan.ledger import ALL, WITHIN, Ledger, Peak, Traffic
from trainers.recipe.run import PlayerSettings, Run, Sharding
from trainers.runs.distillation import assemble

CPU = torch.device("cpu")
TEACHER_ALONE = Sharding(generator=False, fake=False)


@dataclass(frozen=True)
class Plan:
    """Of one process: bytes at the peak of every phase by kind, bytes between updates, and messages of an update by
    phase, operation and who talk. The most that is in `host` memory, offloaded, is no part of the peaks."""

    processes: int
    peaks: Mapping[str, Peak]
    rest: Mapping[str, int]
    traffic: Mapping[tuple[str, str, str], Traffic]
    replicas: int = 1
    host: int = 0

    @property
    def phase(self) -> str:
        """Where most is held."""
        return max(self.peaks, key=lambda phase: self.peaks[phase].bytes)

    @property
    def peak(self) -> Peak:
        return self.peaks[self.phase]

    @property
    def largest(self) -> str:
        """What is most of the peak."""
        return max(self.peak.kinds, key=lambda kind: self.peak.kinds[kind])

    def groups(self, who: str) -> list[range]:
        """The processes that talk with each other where `who` do."""
        share = self.processes // self.replicas
        if who == ALL:
            return [range(self.processes)]
        if who == WITHIN:
            return [range(first, first + share) for first in range(0, self.processes, share)]
        return [range(first, self.processes, share) for first in range(share)]


def plan(run: Run, processes: int) -> Plan:
    """The plan of `run` on `processes` GPUs. Raises UserError where it cannot be built or traced, and where this
    process is one of several.

    The update is one that leads to a log point, at the end of the run: every term of the objective has its weight then.
    """
    run.check_world(processes)
    run = replace(run, log_every=run.batch_size, start=None)
    teacher = set_precision(load_denoiser(run.teacher, weights=False), run)
    further = {name: load_denoiser(folder, weights=False) for name, folder in run.objective.further_teachers().items()}
    with _fake(ledger := Ledger(), processes) as mode:
        for denoiser in (teacher, *further.values()):
            _moved(mode, denoiser.network, lambda value: value)
        accelerator = cast(Accelerator, PlannedAccelerator(processes, ledger))
        with mode:
            cond = example(teacher, run)
        run.objective.check(teacher)
        dataset = Dataset("shapes", 1, teacher.network.shape, None, None)
        sizes = BatchSizes(run.batch_size, run.micro_batches, run.pairs_per_batch)
        real = "real" in run.objective.needs
        batches = ShapeBatches(dataset, sizes, run.seed, run.dtype, real, 0, processes, CPU)
        batches.example = cond
        session = assemble(run, accelerator, teacher, dataset, batches, further)
        session.state.images = run.images - run.batch_size
        ledger.host = _hosted(session)
        ledger.track_players(session.state.players)
        _name(ledger, session)
        with mode, ledger:
            for player in session.state.players.values():
                _make_state(player)
            _name(ledger, session)
            rest = {kind: size for kind, size in ledger.kinds.items() if size}
            ledger.restart()
            advance(session)
        replicas = 1 if run.sharding is None else run.sharding.replicas
        traffic = dict(ledger.traffic) if processes > 1 else {}
        return Plan(processes, dict(ledger.peaks), rest, traffic, replicas, ledger.host_peak)


def remedies(run: Run, processes: int) -> Iterator[tuple[str, Run]]:
    """Changes of a recipe that take memory off, the cheapest first: (key=value, the run with it).

    Smaller micro-batches cost nothing but overhead, shards messages, of the teacher alone the fewest; bfloat16 is
    faster, and the teacher is stored in it; one denoiser at a time costs a forward of each, recomputed blocks one of
    every network; moments of 8 bits are rounded; what is offloaded is copied to the GPU for each use; adapters are
    another training; to offload all leaves the optimizers' steps to the CPU.
    """
    share = run.batch_size // processes
    for micro_batches in sorted({count for count in (2 * run.micro_batches, share) if not share % count}):
        if micro_batches > run.micro_batches:
            yield from _changed(run, f"micro_batches={micro_batches}", micro_batches=micro_batches)
    if run.sharding is None and processes > 1:
        yield from _changed(run, "sharding={generator: false, fake: false}", sharding=TEACHER_ALONE)
    if run.sharding in (None, TEACHER_ALONE) and processes > 1:
        yield from _changed(run, "sharding={}", sharding=Sharding())
    if run.precision == "float32":
        yield from _changed(run, "precision=bfloat16", precision="bfloat16")
    if run.backprop == "joint" and run.objective.differentiates_denoisers:
        yield from _changed(run, "backprop=one_by_one", backprop="one_by_one")
    if not run.gradient_checkpointing:
        yield from _changed(run, "gradient_checkpointing=true", gradient_checkpointing=True)
    players: dict[str, PlayerSettings] = {"fake": run.fake, "generator": run.generator}
    if not run.objective.trains_fake:
        del players["fake"]
    for name, player in players.items():
        bits: Any = f"{player.name}8bit"
        if player.name in ("adam", "adamw"):
            yield from _changed(run, f"{name}.name={bits}", **{name: replace(player, name=bits)})
    sharding = run.sharding or Sharding()
    if sharding.offload is None and sharding.teacher:
        yield from _changed(run, "sharding.offload=teacher", sharding=replace(sharding, offload="teacher"))
    for name, player in players.items():
        if player.lora is None:
            yield from _changed(run, f"{name}.lora.rank=64", **{name: replace(player, lora=Lora())})
    if sharding.offload != "all":
        yield from _changed(run, "sharding.offload=all", sharding=replace(sharding, offload="all"))


def _changed(run: Run, what: str, **changes: Any) -> Iterator[tuple[str, Run]]:
    """Nothing where the recipe does not allow it."""
    with suppress(UserError):
        yield what, replace(run, **changes)


def cheapest(run: Run, processes: int, fits: Callable[[Plan], bool], best: Plan) -> tuple[list[str], Plan | None]:
    """The first of `remedies`, each on top of those before that helped, with which the run fits, whose plan is `best`
    now; and their plan, None where all of them are not enough."""
    applied: list[str] = []
    tried: set[str] = set()
    while not fits(best):
        left = [(what, changed) for what, changed in remedies(run, processes) if what not in tried]
        if not left:
            return applied, None
        what, changed = left[0]
        tried.add(what)
        with suppress(UserError):
            found = plan(changed, processes)
            if found.peak.bytes < 0.99 * best.peak.bytes:
                run, best = changed, found
                applied = [one for one in applied if one.partition("=")[0] != what.partition("=")[0]] + [what]
    return applied, best


def _make_state(player: Player) -> None:
    """Of the optimizer, as its first step does."""
    with player.training():
        for parameter in player.parameters:
            parameter.grad = torch.zeros_like(parameter)
        player.step(torch.zeros(()), 0.0)


def _hosted(session: Session) -> tuple[str, ...]:
    """Of which networks all is in host memory, as their kinds begin."""
    networks = {"teacher": session.teacher, **{name: player.bare for name, player in session.state.players.items()}}
    names = [name for name, network in networks.items() if is_offloaded(network)]
    return tuple(names + ["average"] * ("generator" in names))


def _name(ledger: Ledger, session: Session) -> None:
    """Tell the ledger what everything is that stays; what several share is the first's."""
    state, teacher = session.state, session.teacher
    assert teacher is not None
    modules: dict[str, nn.Module] = {"teacher: weights": teacher}
    modules |= {f"{name}: weights": player.bare for name, player in state.players.items()}
    averages = {"average": state.ema, **{f"average {std:g}": ema for std, ema in state.power_ema.items()}}
    modules |= {name: ema.module for name, ema in averages.items()}
    for kind, module in modules.items():
        ledger.label(kind, [*module.parameters(), *module.buffers()])
    for name, player in state.players.items():
        held = [value for each in player.optimizer.state.values() for value in each.values()]
        ledger.label(f"{name}: optimizer", [value for value in held if isinstance(value, Tensor)])


class ShapeBatches(Batches):
    """Batches of shapes without values."""

    example: Condition

    def micro(self, stream: str, first: int, micro: int) -> Batch:
        """Return a micro-batch of zeros."""
        noise, cond = self._zeros(self.size)
        real = torch.zeros_like(noise) if self.real else None
        pairs = None
        if self.pairs_size and stream == "generator":
            pairs = Pairs(self._zeros(self.pairs_size)[0], *self._zeros(self.pairs_size))
        return Batch(noise, Random(torch.zeros(self.size, dtype=torch.int64)), cond, real, pairs)

    def _zeros(self, count: int) -> tuple[Tensor, Condition]:
        cond = self.example.map(lambda value: value.new_zeros(count, *value.shape[1:]))
        return torch.zeros(count, *self.dataset.shape, dtype=self.dtype), cond


def example(teacher: Denoiser, run: Run) -> Condition:
    """Return some condition [1, ...], as the teacher takes it; the null condition of prompts is known from here."""
    network = teacher.network
    cond = network.example(1).to(CPU, run.dtype)
    if network.text_encoder is not None:
        network.null = cond.map(lambda value: value[0])
    return cond


@dataclass(frozen=True)
class PlannedAccelerator:
    """Stands for the Accelerator of the first of `num_processes`."""

    num_processes: int
    ledger: Ledger
    device: torch.device = CPU
    process_index: int = 0
    is_main_process: bool = True

    def no_sync(self, module: nn.Module) -> Any:
        return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()

    def reduce(self, tensor: Tensor, how: str) -> Tensor:
        if self.num_processes > 1:
            self.ledger.send("allreduce_", tensor.nbytes)
        return tensor


@contextmanager
def _fake(ledger: Ledger, processes: int) -> Iterator[FakeTensorMode]:
    """Modules that move become fake; process groups of `processes` that send nothing."""
    if dist.is_initialized():
        raise UserError("plan: start it as one process, without a launcher")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(nn.Module, "_apply", lambda *label: _moved(mode, *label)))
        stack.enter_context(mock.patch.object(autoencoder, "load_model", _autoencoder))
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
        stack.callback(dist.destroy_process_group)
        reducer = type("Unheard", (SilentDDP,), {"ledger": ledger, "mode": mode})
        stack.enter_context(mock.patch.object(nn.parallel, "DistributedDataParallel", reducer))
        inputs = cast(property, FSDPParam.all_gather_inputs).fget
        stack.enter_context(mock.patch.object(FSDPParam, "all_gather_inputs", property(partial(_from_host, inputs))))
        yield mode


def _from_host(inputs: Any, parameter: Any) -> list[Tensor]:
    """What FSDP2 gathers of a parameter: if that is offloaded a copy, which from CPU to CPU it does not make."""
    copied = parameter.offload_to_cpu
    return [each.clone() if copied and each.dtype == parameter.orig_dtype else each for each in inputs(parameter)]


def _autoencoder(place: Path, kind: str, *names: Any) -> Any:
    """In place of distill.encoders.parts.load_model, for rewards of decoded samples."""
    return meta_model(place, kind)._apply(lambda value: value)


def _moved(mode: FakeTensorMode, module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """nn.Module._apply for fake tensors, which torch's own cannot swap: what was real or changes is replaced."""
    for part in module.modules():
        for table in cast("tuple[dict[str, Any], ...]", (part._parameters, part._buffers)):
            for name, old in list(table.items()):
                new: Any = old if old is None else function(old)
                if new is not None and not isinstance(new, FakeTensor):
                    new = _fresh(new, mode)
                if new is not old:
                    table[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return module


def _fresh(like: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty(like.shape, dtype=like.dtype, device=CPU)


class SilentDDP(nn.parallel.DistributedDataParallel):
    """DDP with its own buckets and hooks, whose messages go into the `ledger` alone."""

    ledger: Ledger
    mode: FakeTensorMode

    def __init__(self, module: nn.Module, **settings: Any) -> None:
        with self.mode, self.ledger:  # which sees the buckets
            super().__init__(module, **{**settings, "init_sync": False})
        self.ledger.label_rest("gradient buckets")
        self.register_comm_hook(None, lambda state, bucket: self._sent(bucket.buffer()))
        self.reducer: Any = _FixedBuckets(self.reducer)

    def _sent(self, bucket: Tensor) -> torch.futures.Future[Tensor]:
        self.ledger.send("allreduce_", bucket.nbytes)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket)
        return future


class _FixedBuckets:
    """A reducer that keeps its first buckets: to order them anew it would send the order."""

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False
