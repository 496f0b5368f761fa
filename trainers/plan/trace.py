"""The plan of a run: the memory and the messages of each GPU, computed before any weight loads.

The plan comes from a trace of the trainer's own code: its players, its averages, its step, and torch's own DDP or
FSDP2. They run on fake tensors, which have shapes and no values, in one process that stands for any number of them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
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
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.errors import UserError
from distill.objectives import Batch, Pairs
from distill.pipeline_folder import meta_model
from distill.quiet import quiet_libraries
from distill.random import Random
from distill.teachers import load_denoiser
from distill.teachers.trial import try_shapes
from trainers.data import Dataset
from trainers.data.batches import Batches, BatchSizes
from trainers.data.read_ahead import Request
from trainers.engine.networks import set_precision
from trainers.engine.player import Player
from trainers.engine.session import Session
from trainers.engine.sharding import is_offloaded
from trainers.engine.step import advance
from trainers.plan.ledger import ALL, WITHIN, Ledger, Overlap, Peak, Traffic
from trainers.recipe.run import Run
from trainers.runs.distillation import assemble, generator_has_real

CPU = torch.device("cpu")
FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes of DDP's buckets of gradients, by torch's defaults
ON_SHAPES = (
    "a plan calls a class of your own on tensors without values, so it may not read values (item, numpy, branches), and"
    " its tensors must be parameters or buffers"
)


@dataclass(frozen=True)
class Plan:
    """The memory and the communication of one process in one update.

    Attributes:
        processes: The number of processes of the run.
        peaks: The largest GPU memory of each phase, with its bytes by kind.
        rest: The bytes in GPU and host memory between updates, by kind.
        traffic: The messages by phase, operation, and processes in the collective.
        overlaps: What follows the first message of each update that has one, by phase.
        replicas: The number of copies of each shard.
        host: The largest number of bytes that are offloaded to host memory. The peaks do not include them.
    """

    processes: int
    peaks: Mapping[str, Peak]
    rest: Mapping[str, int]
    traffic: Mapping[tuple[str, str, str], Traffic]
    overlaps: Mapping[str, Sequence[Overlap]]
    replicas: int = 1
    host: int = 0

    @property
    def phase(self) -> str:
        """The phase with the largest peak."""
        return max(self.peaks, key=lambda phase: self.peaks[phase].bytes)

    @property
    def peak(self) -> Peak:
        """The largest peak."""
        return self.peaks[self.phase]

    def groups(self, who: str) -> list[range]:
        """Return the groups of ranks that take part in collectives of `who`: ALL, WITHIN or BETWEEN."""
        share = self.processes // self.replicas
        if who == ALL:
            return [range(self.processes)]
        if who == WITHIN:
            return [range(first, first + share) for first in range(0, self.processes, share)]
        return [range(first, self.processes, share) for first in range(share)]


def silence(step: str) -> None:
    """Say nothing about a step."""


@quiet_libraries()
def plan(run: Run, processes: int, say: Callable[[str], None] = silence) -> Plan:
    """Trace one update of a run, and return its plan.

    The update is the last one of the run, and it leads to a log point. Every term of the objective has its weight then.
    Where the number of fake updates is decided while the run trains, the plan has the largest.

    Args:
        run: The recipe. The teacher's folder needs its configs and no weights.
        processes: The number of GPUs, with one process each.
        say: A function that is told each step.

    Raises:
        UserError: The run cannot be built or traced, or this process is one of several.
    """
    run.check_world(processes)
    say("the teacher's configs")
    decided: dict[str, Any] = {"fake_updates": run.most_fake_updates, "fake_warmup": 0, "compile": False}
    run = replace(run, log_every=run.batch_size, start=None, **decided)
    teacher = set_precision(_open(run.teacher), run)
    further = {name: _open(folder) for name, folder in run.objective.further_teachers().items()}
    with _fake_world(ledger := Ledger(), processes) as mode:
        for denoiser in (teacher, *further.values()):
            _apply_fake(mode, denoiser.network, lambda value: value)
        accelerator = cast(Accelerator, PlannedAccelerator(processes, ledger))
        dataset = Dataset("shapes", 1, _largest_shape(teacher, run), None, None)
        sizes = BatchSizes(run.batch_size, run.micro_batches, run.pairs_per_batch)
        real, texts = ("real" in run.objective.needs), ("texts" in run.objective.needs)
        both = generator_has_real(run)
        batches = ShapeBatches(
            dataset, sizes, run.seed, run.dtype, real, 0, processes, CPU, texts=texts, generator_real=both
        )
        batches.say = say
        with mode:
            batches.example = example(teacher, run)
        run.objective.check(teacher)
        # A class of the user's own counts as float32: a trial of its weights needs values.
        casts = run.precision == "bfloat16" and teacher.network.casts_weights
        low = frozenset(name for name, _ in teacher.named_parameters()) if casts else frozenset[str]()
        session = assemble(run, accelerator, teacher, dataset, batches, further, low)
        session.state.images = run.images - run.batch_size
        ledger.host = _offloaded_kinds(session)
        ledger.track_players(session.state.players)
        ledger.kinds["text encoders"] = _text_bytes(teacher, run)
        _label_state(ledger, session)
        with mode, ledger:
            for player in session.state.players.values():
                _make_optimizer_state(player)
            _label_state(ledger, session)  # again, for the state that the optimizers have made
            rest = {kind: size for kind, size in ledger.kinds.items() if size}
            ledger.restart()
            advance(session)
        replicas = 1 if run.sharding is None else run.sharding.replicas
        traffic = dict(ledger.traffic) if processes > 1 else {}
        overlaps = dict(ledger.overlaps) if processes > 1 else {}
        return Plan(processes, dict(ledger.peaks), rest, traffic, overlaps, replicas, ledger.host_peak)


def _open(folder: str) -> Denoiser:
    """Load a teacher without weights. All networks but a class of the user's own are tried as they are loaded."""
    denoiser = load_denoiser(folder, weights=False)
    if denoiser.network.own_class is not None:
        try:
            try_shapes(denoiser.network)
        except UserError as error:
            hint = f" ({ON_SHAPES})" if error.__cause__ else ""
            raise UserError(f"teacher: '{folder}': {error}{hint}") from error
    return denoiser


def _largest_shape(teacher: Denoiser, run: Run) -> tuple[int, ...]:
    """Return the shape of the largest samples of a run."""
    network, buckets = teacher.network, getattr(run.data, "buckets", ())
    return max([network.shape, *(network.shape_at(*size) for size in buckets)], key=math.prod)


def _text_bytes(teacher: Denoiser, run: Run) -> int:
    """Return the bytes of text encoders that stay on the device. One of the user's own counts 0."""
    settings, encoder = run.embeddings, teacher.network.text_encoder
    if settings.ahead or settings.device is not None or not isinstance(encoder, PipelineTextEncoder):
        return 0
    dtype: torch.dtype = getattr(torch, settings.precision)
    return encoder.parameter_count * dtype.itemsize


def _make_optimizer_state(player: Player) -> None:
    """Take an optimizer's step with zero gradients, in which torch makes its state."""
    with player.training():
        for parameter in player.parameters:
            parameter.grad = torch.zeros_like(parameter)
        player.step(torch.zeros(()), 0.0)


def _offloaded_kinds(session: Session) -> tuple[str, ...]:
    """Return the beginnings of the kinds that are in host memory: the names of offloaded networks."""
    networks = {"teacher": session.teacher, **{name: player.bare for name, player in session.state.players.items()}}
    names = [name for name, network in networks.items() if is_offloaded(network)]
    return tuple(names + ["average"] * ("generator" in names))  # averages are where their network is


def _label_state(ledger: Ledger, session: Session) -> None:
    """Label all long-lived tensors in the ledger. A shared tensor gets the label of its first owner."""
    state, teacher = session.state, session.teacher
    assert teacher is not None
    modules: dict[str, nn.Module] = {"teacher: weights": teacher}
    modules |= {f"{name}: weights": player.bare for name, player in state.players.items()}
    modules |= {"average": state.ema.module, **{f"average {std:g}": ema.module for std, ema in state.power_ema.items()}}
    for kind, module in modules.items():
        ledger.label(kind, [*module.parameters(), *module.buffers()])
    for name, player in state.players.items():
        values = [value for each in player.optimizer.state.values() for value in each.values()]
        ledger.label(f"{name}: optimizer", [value for value in values if isinstance(value, Tensor)])


class ShapeBatches(Batches):
    """Batches of fake tensors.

    Attributes:
        example: A condition [1, ...] with the shapes and dtypes that the teacher takes.
        say: A function that is told each micro-batch.
    """

    example: Condition
    say: Callable[[str], None]

    def micro(self, stream: str, first: int, micro: int) -> Batch:
        """Return a micro-batch of zeros."""
        self.say(f"update of the {stream}: micro-batch {micro + 1} of {self.sizes.micro_batches}")
        noise, cond = self._zeros(self.size)
        real = torch.zeros_like(noise) if self.reads(Request(stream, first, micro)) else None
        pairs = None
        if self.pairs_size and stream == "generator":
            pairs = Pairs(self._zeros(self.pairs_size)[0], *self._zeros(self.pairs_size))
        random = Random(torch.zeros(self.size, dtype=torch.int64))
        return Batch(noise, random, cond, real, pairs, ("",) * self.size if self.texts else None)

    def _zeros(self, count: int) -> tuple[Tensor, Condition]:
        cond = self.example.map(lambda value: value.new_zeros(count, *value.shape[1:]))
        return torch.zeros(count, *self.dataset.shape, dtype=self.dtype), cond


def example(teacher: Denoiser, run: Run) -> Condition:
    """Return a condition [1, ...] with the shapes and dtypes that the teacher takes.

    A teacher of prompts gets its null condition here, in place of the encoded one.
    """
    network = teacher.network
    cond = network.example(1).to(CPU, run.dtype)
    if network.text_encoder is not None:
        network.null = cond.map(lambda value: value[0])
    return cond


@dataclass(frozen=True)
class PlannedAccelerator:
    """The parts of an Accelerator that a step uses, as the first of `num_processes` would have them."""

    num_processes: int
    ledger: Ledger
    device: torch.device = CPU
    process_index: int = 0

    def no_sync(self, module: nn.Module) -> Any:
        """Return the context in which a backward pass reduces no gradients."""
        return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()

    def reduce(self, tensor: Tensor, how: str) -> Tensor:
        """Count an all-reduce, and return the tensor as it is."""
        if self.num_processes > 1:
            self.ledger.send("allreduce_", tensor.nbytes)
        return tensor


@contextmanager
def _fake_world(ledger: Ledger, processes: int) -> Iterator[FakeTensorMode]:
    """Stand for one of several processes while the context is open. Process groups send nothing.

    Four functions are patched, since torch's own need real tensors or real messages.
    """
    if dist.is_initialized():
        raise UserError("plan: start it as one process, without a launcher")
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        # 1. `module.to(...)` makes the tensors of a module fake.
        stack.enter_context(mock.patch.object(nn.Module, "_apply", lambda *given: _apply_fake(mode, *given)))
        # 2. Rewards of decoded samples load no weights of the autoencoder.
        stack.enter_context(mock.patch.object(autoencoder, "load_model", _meta_autoencoder))
        from torch.testing._internal.distributed.fake_pg import FakeStore

        dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
        stack.callback(dist.destroy_process_group)
        # 3. DDP's messages go into the ledger alone. A subclass, since DDP's constructor takes no ledger.
        ddp = type("LedgerDDP", (SilentDDP,), {"ledger": ledger, "mode": mode})
        stack.enter_context(mock.patch.object(nn.parallel, "DistributedDataParallel", ddp))
        # 4. FSDP2 copies what it gathers from host memory, although this trace is on the CPU throughout. A private
        # class, since FSDP2 has no hook between the offloaded rows and their gather.
        inputs = cast(property, FSDPParam.all_gather_inputs).fget
        stack.enter_context(mock.patch.object(FSDPParam, "all_gather_inputs", property(partial(_from_host, inputs))))
        yield mode


def _from_host(inputs: Any, parameter: Any) -> list[Tensor]:
    """Return the tensors that FSDP2 gathers of a parameter, copied if the parameter is offloaded.

    On GPUs the move from host memory makes this copy, and from CPU to CPU it would make none.
    """
    copied = parameter.offload_to_cpu
    return [each.clone() if copied and each.dtype == parameter.orig_dtype else each for each in inputs(parameter)]


def _meta_autoencoder(place: Path, kind: str, *names: Any) -> Any:
    """Return a model without weights, in place of distill.pipeline_folder.load_model."""
    return meta_model(place, kind)._apply(lambda value: value)  # `_apply` is patched: its tensors become fake


def _apply_fake(mode: FakeTensorMode, module: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """Apply a function to the tensors of a module and make them fake, as nn.Module._apply in a fake world.

    torch's own `_apply` swaps the data of a tensor in place, which fake tensors do not allow. Here a tensor that was
    real or that changes is replaced.
    """
    for part in module.modules():
        for table in cast("tuple[dict[str, Any], ...]", (part._parameters, part._buffers)):
            for name, old in list(table.items()):
                new: Any = old if old is None else function(old)
                if new is not None and not isinstance(new, FakeTensor):
                    with mode:
                        new = torch.empty(new.shape, dtype=new.dtype, device=CPU)
                if new is not old:
                    table[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return module


class SilentDDP(nn.parallel.DistributedDataParallel):
    """A DDP with the buckets and hooks of torch's, whose messages go into a ledger alone.

    DDP sends one message in its first backward, and buckets in the order of the gradients from then on. The message is
    counted as the first, and the overlap as that of the buckets.

    Attributes:
        ledger: The ledger.
        mode: The mode of the fake tensors.
        filled: The bytes of the bucket that is being filled.
        limit: The bytes at which it is sent.
    """

    ledger: Ledger
    mode: FakeTensorMode
    filled: int
    limit: int

    def __init__(self, module: nn.Module, **settings: Any) -> None:
        with self.mode, self.ledger:  # so that the ledger sees the buckets
            super().__init__(module, **{**settings, "init_sync": False})  # the weights have no values to send
        self.ledger.label_rest("gradient buckets")
        self.filled, self.limit = 0, FIRST_BUCKET
        self.register_comm_hook(None, lambda state, bucket: self._count(bucket.buffer()))
        self.reducer: Any = _FixedBuckets(self.reducer)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._fill)

    def _fill(self, parameter: Tensor) -> None:
        """Put the gradient of a parameter into the bucket, and send the bucket if it is full."""
        if self.require_backward_grad_sync:
            self.filled += parameter.nbytes
            if self.filled >= self.limit:
                self.ledger.start("allreduce_", self.filled)
                self.filled, self.limit = 0, BUCKET

    def _count(self, bucket: Tensor) -> torch.futures.Future[Tensor]:
        """Count the all-reduce of all gradients, and return them as its result."""
        self.ledger.send("allreduce_", bucket.nbytes)
        if self.filled:
            self.ledger.start("allreduce_", self.filled)
        self.filled, self.limit = 0, FIRST_BUCKET
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket)
        return future


class _FixedBuckets:
    """A reducer of DDP that keeps its first buckets.

    DDP orders its buckets anew after the first backward, and sends the order to all ranks, which are not there.
    """

    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False
