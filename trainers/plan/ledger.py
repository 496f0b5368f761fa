"""A ledger of the memory, the messages and the operations of all that torch computes within a context, by phase.

Tensors and process group may be real or fake. `distill plan` reads the ledger of fake ones, and the tests that count
bytes and messages read the ledger of real ones.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from trainers.engine.player import Player
from trainers.engine.sharding import local

REST = "between updates"
CALCULATED = "activations and temporaries"
ALL, WITHIN, BETWEEN = "all GPUs", "within a replica", "between replicas"  # the processes in a collective


class Peak(NamedTuple):
    """The largest memory of a phase.

    Attributes:
        bytes: The bytes of all tensors that lived at the same time.
        kinds: The same bytes by kind.
    """

    bytes: int
    kinds: Mapping[str, int]


class Traffic(NamedTuple):
    """The messages of one kind of collective.

    Attributes:
        calls: The number of collectives.
        bytes: The bytes of their messages. The message of a gather or a scatter is the complete tensor.
    """

    calls: int = 0
    bytes: int = 0


class Overlap(NamedTuple):
    """The operations of an update behind which its messages can hide.

    Attributes:
        flops: The floating-point operations of products, convolutions and attention, after the first message.
        operation: The collective of the last message, which nothing follows that could hide it.
        group: The processes in it.
        bytes: Its bytes.
    """

    flops: int
    operation: str
    group: str
    bytes: int


class Ledger(TorchDispatchMode):
    """A context that keeps account of every storage that torch allocates, and of every collective.

    A storage is of the kind CALCULATED until `label` gives it another. Offloaded kinds are in host memory, which is
    counted by itself.

    Attributes:
        phase: The name of the player whose update is under way, or REST.
        kinds: The bytes that live now, by kind.
        host: The beginnings of the kinds that are offloaded.
        host_peak: The largest number of bytes of these kinds at one time.
        peaks: The largest memory of each phase, without the offloaded kinds.
        traffic: The messages by phase, operation, and processes in the collective.
        overlaps: What follows the first message of each update that has one, by phase.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = REST
        self.kinds: Counter[str] = Counter()
        self.host: tuple[str, ...] = ()
        self.host_peak = 0
        self.peaks: dict[str, Peak] = {}
        self.traffic: dict[tuple[str, str, str], Traffic] = {}
        self.overlaps: dict[str, list[Overlap]] = {}
        self._overlap: Overlap | None = None  # of the update that is under way, once it has sent something
        self._storages: dict[int, tuple[str, int]] = {}  # address of a storage -> (kind, bytes)

    def __enter__(self) -> Ledger:
        resize = self._resize = torch.UntypedStorage.resize_

        def resize_and_count(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            if (known := self._storages.get(storage._cdata)) is not None:
                self._storages[storage._cdata] = known[0], size
                self.kinds[known[0]] += size - known[1]
            return result

        # A patch, since FSDP2 frees and allocates gathered weights by resizing their storage, which no dispatch mode
        # sees.
        torch.UntypedStorage.resize_ = resize_and_count  # type: ignore[assignment, method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "prim":  # reads a device or a shape, and allocates nothing
            return result
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._register(leaf, CALCULATED)
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            size = max(_bytes(side) for side in (*args, result))  # the complete tensor, as input or as output
            message = func.__name__.partition(".")[0], size, _group(args)
            self.send(*message)
            self.start(*message)
        if (after := self._overlap) is not None:
            self._overlap = after._replace(flops=after.flops + _flops(func, args, kwargs or {}, result))
        kinds = {kind: size for kind, size in self.kinds.items() if not kind.startswith(self.host)}
        if (live := sum(kinds.values())) > self.peaks.get(self._stage(), Peak(0, {})).bytes:
            self.peaks[self._stage()] = Peak(live, kinds)
        self.host_peak = max(self.host_peak, self.kinds.total() - live)
        return result

    def send(self, operation: str, size: int, group: str = ALL) -> None:
        """Count a collective.

        Args:
            operation: Its name.
            size: The bytes of its message.
            group: The processes in it: ALL, WITHIN or BETWEEN.
        """
        key = self.phase, operation, group
        calls, total = self.traffic.get(key, Traffic())
        self.traffic[key] = Traffic(calls + 1, total + size)

    def start(self, operation: str, size: int, group: str = ALL) -> None:
        """Note that a message starts, which the operations that follow can hide. The arguments are those of `send`."""
        self._overlap = Overlap(self._overlap.flops if self._overlap else 0, operation, group, size)

    def label(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Give the storages of tensors a kind, unless they have one.

        Args:
            kind: The kind.
            tensors: The tensors. They may have been made outside the context.
        """
        for tensor in tensors:
            self._register(tensor, kind)
            key = local(tensor).untyped_storage()._cdata
            known, size = self._storages[key]
            if known == CALCULATED:
                self._storages[key] = kind, size
                self.kinds.update({CALCULATED: -size, kind: size})

    def label_rest(self, kind: str) -> None:
        """Give all storages that have no kind yet this one."""
        self._storages |= {key: (kind, size) for key, (known, size) in self._storages.items() if known == CALCULATED}
        self.kinds[kind] += self.kinds.pop(CALCULATED, 0)

    def track_players(self, players: Mapping[str, Player]) -> None:
        """Follow the updates of players: set the phase during each update, and label the gradients."""
        for name, player in players.items():
            # A patch of the instance: the step enters `training` for exactly one update of one player.
            player.training = partial(self._phase, name, player.training)  # type: ignore[method-assign]
            for parameter in player.parameters:
                # A sharded gradient is a view of the buffer that was reduced for its block, and has no storage of its
                # own before it is copied to the host.
                if not hasattr(parameter, "to_local") or name.startswith(self.host):
                    parameter.requires_grad_(True)  # torch takes hooks of such parameters alone
                    parameter.register_post_accumulate_grad_hook(partial(self._label_gradient, f"{name}: gradients"))
                    parameter.requires_grad_(False)

    def restart(self) -> None:
        """Forget peaks, traffic and overlaps. The storages stay known."""
        self.peaks, self.traffic, self.overlaps = {}, {}, {}

    def _label_gradient(self, kind: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.label(kind, [parameter.grad])

    @contextmanager
    def _phase(self, name: str, training: Callable[[], Any]) -> Iterator[None]:
        self.phase, self._overlap = name, None
        try:
            with training():
                yield
            if self._overlap is not None:
                self.overlaps.setdefault(name, []).append(self._overlap)
        finally:
            self.phase, self._overlap = REST, None

    def _stage(self) -> str:
        """Return the phase, and whether a backward pass is under way."""
        backward = torch._C._current_graph_task_id() != -1  # private: autograd has no public flag for it
        return f"{self.phase}, backward" if backward else self.phase

    def _register(self, tensor: Tensor, kind: str) -> None:
        """Count the storage of a tensor, once, until it is freed."""
        storage = local(tensor).untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # the address of the C++ object, which all views share
        if key not in self._storages:
            self._storages[key] = kind, size
            self.kinds[kind] += size
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        kind, size = self._storages.pop(key)
        self.kinds[kind] -= size


def _bytes(side: Any) -> int:
    """Return the bytes of the tensors in an argument or result."""
    return sum(leaf.nbytes for leaf in tree_leaves(side) if isinstance(leaf, Tensor))


def _flops(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the floating-point operations of a call of an operator. All but products count as none."""
    packet = func.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=result))
    if packet == torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # torch's table has the GPU's alone
        return int(sdpa_flop_count(*(one.shape for one in args[:3])))
    if packet == torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(sdpa_backward_flop_count(*(one.shape for one in args[:4])))
    return 0


def _group(arguments: Iterable[Any]) -> str:
    """Return the processes in a collective with these arguments: ALL, WITHIN or BETWEEN.

    The processes of a replica have consecutive ranks.
    """
    for argument in arguments:
        if isinstance(argument, torch.ScriptObject) and str(argument._type()).endswith(".ProcessGroup"):
            ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(argument))
            if len(ranks) < dist.get_world_size():
                return WITHIN if max(ranks) - min(ranks) < len(ranks) else BETWEEN
    return ALL
