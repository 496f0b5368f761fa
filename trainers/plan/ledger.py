"""Bytes that live and bytes that travel, by phase, of whatever torch calculates within a context.

Tensors may be real or fake, the process group too: `distill plan` and the tests that count read the same ledger.
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

from trainers.engine.player import Player

REST = "between updates"
CALCULATED = "activations and temporaries"
ALL, WITHIN, BETWEEN = "all GPUs", "within a replica", "between replicas"  # who talk in a collective


class Peak(NamedTuple):
    """Bytes that lived at once, and what they were by kind."""

    bytes: int
    kinds: Mapping[str, int]


class Traffic(NamedTuple):
    """Collectives and the bytes of their messages, each message as long as its longest side."""

    calls: int = 0
    bytes: int = 0


class Ledger(TorchDispatchMode):
    """`live` bytes of every storage that was made within the context, by `kinds`; `peaks` of them by phase, and
    `traffic` by phase, operation and who talk.

    A storage is CALCULATED until `label` names it. The phase is "generator", "fake" ... within that player's update.
    Kinds that begin as one of `host` are in host memory: no part of `live` and `peaks`, their most is `host_peak`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = REST
        self.kinds: Counter[str] = Counter()
        self.host: tuple[str, ...] = ()
        self.host_peak = 0
        self.peaks: dict[str, Peak] = {}
        self.traffic: dict[tuple[str, str, str], Traffic] = {}
        self._held: dict[int, tuple[str, int]] = {}  # address of a storage -> (kind, bytes)

    @property
    def live(self) -> int:
        return self.kinds.total() - self.on_host

    @property
    def on_host(self) -> int:
        return sum(size for kind, size in self.kinds.items() if kind.startswith(self.host))

    def __enter__(self) -> Ledger:
        resize = self._resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> Any:  # so FSDP2 frees a gathered weight and takes it
            done = resize(storage, size)
            if (held := self._held.get(storage._cdata)) is not None:
                self._held[storage._cdata] = held[0], size
                self.kinds[held[0]] += size - held[1]
            return done

        torch.UntypedStorage.resize_ = resized  # type: ignore[assignment, method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.namespace == "prim":  # a question for a device or a shape
            return made
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._hold(leaf, CALCULATED)
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            self.send(func.__name__.partition(".")[0], max(_bytes(side) for side in (*args, made)), _group(args))
        if (live := self.live) > self.peaks.get(self._stage(), Peak(0, {})).bytes:
            kinds = {kind: size for kind, size in self.kinds.items() if not kind.startswith(self.host)}
            self.peaks[self._stage()] = Peak(live, kinds)
        self.host_peak = max(self.host_peak, self.on_host)
        return made

    def send(self, operation: str, size: int, group: str = ALL) -> None:
        """Count a collective with a message of `size` bytes."""
        key = self.phase, operation, group
        calls, total = self.traffic.get(key, Traffic())
        self.traffic[key] = Traffic(calls + 1, total + size)

    def label(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Name the storages of `tensors`, those from elsewhere too; what has a name keeps it."""
        for tensor in tensors:
            self._hold(tensor, kind)
            key = _local(tensor).untyped_storage()._cdata
            known, size = self._held[key]
            if known == CALCULATED:
                self._held[key] = kind, size
                self.kinds.update({CALCULATED: -size, kind: size})

    def label_rest(self, kind: str) -> None:
        """Name all that has no name yet."""
        for key, (known, size) in self._held.items():
            if known == CALCULATED:
                self._held[key] = kind, size
        self.kinds[kind] += self.kinds.pop(CALCULATED, 0)

    def track_players(self, players: Mapping[str, Player]) -> None:
        """Tell phases by the updates of `players`, and name their gradients."""
        for name, player in players.items():
            player.training = self._around(name, player.training)  # type: ignore[method-assign]
            for parameter in player.parameters:
                # A sharded gradient is a part of what was reduced for its block, until it is copied to the host.
                if not hasattr(parameter, "to_local") or name.startswith(self.host):
                    parameter.requires_grad_(True)
                    parameter.register_post_accumulate_grad_hook(partial(self._gradient, f"{name}: gradients"))
                    parameter.requires_grad_(False)

    def restart(self) -> None:
        """Forget peaks and traffic."""
        self.peaks, self.traffic = {}, {}

    def _gradient(self, kind: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.label(kind, [parameter.grad])

    def _around(self, name: str, training: Callable[[], Any]) -> Callable[[], Any]:
        @contextmanager
        def phase() -> Iterator[None]:
            self.phase = name
            try:
                with training():
                    yield
            finally:
                self.phase = REST

        return phase

    def _stage(self) -> str:
        backward = torch._C._current_graph_task_id() != -1
        return f"{self.phase}, backward" if backward else self.phase

    def _hold(self, tensor: Tensor, kind: str) -> None:
        storage = _local(tensor).untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held[key] = kind, size
            self.kinds[kind] += size
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        kind, size = self._held.pop(key)
        self.kinds[kind] -= size


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a distributed tensor."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local


def _bytes(side: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(side) if isinstance(leaf, Tensor))


def _group(arguments: Iterable[Any]) -> str:
    """Who talk in a collective with these arguments: the processes of a replica are neighbours."""
    for argument in arguments:
        if isinstance(argument, torch.ScriptObject) and str(argument._type()).endswith(".ProcessGroup"):
            ranks = dist.get_process_group_ranks(dist.ProcessGroup.unbox(argument))
            if len(ranks) < dist.get_world_size():
                return WITHIN if max(ranks) - min(ranks) < len(ranks) else BETWEEN
    return ALL
