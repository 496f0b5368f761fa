"""Counts what a rank of several does in two updates: a program, `counting.py CASES.json FOLDER`."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import build_session
from trainers.engine.sharding import is_sharded, sharding_units
from trainers.engine.step import advance
from trainers.plan.ledger import REST, Ledger

WARM, COUNTED = 2, 2  # updates; DDP rebuilds its buckets in the second
READING = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu")  # by the way of Python
READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")


class Reads(TorchDispatchMode):
    """Readings of a value by the host, by phase; those of the batch's positions, which are the host's own, apart."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger, self.found, self.drawing = ledger, Counter[str](), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS:
            self.read()
        return func(*args, **(kwargs or {}))

    def read(self) -> None:
        self.found["batch" if self.drawing else self.ledger.phase] += 1

    def spy(self, method: Any) -> Any:
        def read(tensor: Tensor, *args: Any) -> Any:
            self.read()
            return method(tensor, *args)

        return read


def count(settings: dict[str, Any]) -> dict[str, Any]:
    """Traffic, optimizer steps and readings, by phase, of COUNTED updates after WARM ones, and of a log point."""
    session = build_session(settings)
    steps: Counter[str] = Counter()
    ledger = Ledger()
    ledger.track_players(session.state.players)
    for _ in range(WARM):
        advance(session)
    with ledger, Reads(ledger) as reads:
        micro = session.batches.micro

        def drawn(*place: Any) -> Any:
            reads.drawing = True
            try:
                return micro(*place)
            finally:
                reads.drawing = False

        session.batches.micro = drawn  # type: ignore[method-assign]
        methods = {name: getattr(Tensor, name) for name in READING}
        for name, method in methods.items():
            setattr(Tensor, name, reads.spy(method))
        for player in session.state.players.values():
            player.optimizer.register_step_pre_hook(lambda *_, name=player.name: steps.update([name]))  # type: ignore[misc]
        for _ in range(COUNTED):
            advance(session)
        updates, found = dict(ledger.traffic), dict(reads.found)
        ledger.restart()
        reads.found.clear()
        session.state.meter.read(session.accelerator)
        for name, method in methods.items():
            setattr(Tensor, name, method)
    players = session.state.players
    trained = {name: sum(p.nbytes for p in player.parameters) for name, player in players.items()}
    networks = {"teacher": session.teacher, **{name: player.bare for name, player in players.items()}}
    shards = {name: network for name, network in networks.items() if network is not None and is_sharded(network)}
    own = {name: {id(p) for p in player.parameters} for name, player in players.items()}
    return {
        "traffic": {", ".join(key): value for key, value in updates.items()},
        "steps": steps,
        "reads": found,
        "log": {", ".join(key): value.calls for key, value in ledger.traffic.items()},
        "log reads": reads.found[REST],
        "trained": trained,
        "gathered": {name: sizes(network) for name, network in shards.items()},
        "reduced": {name: sizes(shards[name], only) for name, only in own.items() if name in shards},
    }


def sizes(network: nn.Module, only: Container[int] | None = None) -> list[int]:
    """Bytes of each unit of a sharded network, its rest last, or of the parameters in it whose ids are `only`; with as
    many rows for every process."""
    found, seen = [], set[int]()
    for unit in sharding_units(network):
        mine = [p for p in unit.parameters() if id(p) not in seen and (only is None or id(p) in only)]
        seen |= {id(p) for p in mine}
        found.append(sum(math.prod(p.shape[1:]) * p.itemsize * padded(p) for p in mine))
    return [size for size in found if size]


def padded(parameter: Tensor) -> int:
    """Rows of the shares of all, each as long as the longest."""
    share: int = parameter.device_mesh.size(-1)  # type: ignore[attr-defined]
    return -(-len(parameter) // share) * share


def main() -> None:
    """Every rank writes FOLDER/RANK.json: {case: counts}."""
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    counts = {name: count(settings) for name, settings in cases.items()}
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(counts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
