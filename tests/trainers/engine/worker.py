"""Trains tiny runs on one layout and reports weights and gradients: a function, and a program for a rank of several."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.tensor import DTensor

from distill.objectives import Batch
from distill.user_code import trusting
from launch.processes import exit_now
from tests.compiling import counting_graphs
from tests.tiny import build_session
from trainers.checkpoints import checkpoint, saver
from trainers.engine.player import Player
from trainers.engine.session import Session
from trainers.engine.sharding import local
from trainers.engine.step import advance


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([whole(tensor.detach()).flatten() for tensor in tensors])


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same_on_all_ranks(vector: Tensor) -> bool:
    if not dist.is_initialized():
        return True
    others = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
    dist.all_gather(others, vector)
    return all(torch.equal(others[0].nan_to_num(1e9), other.nan_to_num(1e9)) for other in others)


def watch_samples(session: Session) -> Any:
    """A hash of the noise and the real images that all ranks together draw from now on."""
    digest, micro = hashlib.sha256(), session.batches.micro

    def watched(*place: Any) -> Batch:
        batch = micro(*place)
        for value in (batch.noise, batch.real):
            if value is not None:
                digest.update(session.accelerator.gather(value.contiguous()).numpy().tobytes())
        return batch

    session.batches.micro = watched  # type: ignore[method-assign]
    return digest


def bytes_held(session: Session) -> int:
    """Of the weights of all networks between updates, each once, on this rank."""
    players, average = session.state.players.values(), session.state.ema.module
    networks = [*(player.bare for player in players), average, session.teacher]
    parameters = [local(p.detach()) for network in networks if network is not None for p in network.parameters()]
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters}.values())


def offloading(session: Session) -> int:
    """How many blocks of the players FSDP2 copies from the host."""
    modules = [module for player in session.state.players.values() for module in player.bare.modules()]
    states = [module._get_fsdp_state() for module in modules if isinstance(module, FSDPModule)]
    groups = [group for state in states for group in state._fsdp_param_groups]
    return sum(isinstance(group.offload_policy, CPUOffloadPolicy) for group in groups)


def anonymous() -> int:
    """Bytes of this process's own memory: no maps of files."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("Anonymous:"))


class Gathered:
    """The most bytes that are gathered of shards at once, as most - least."""

    def start(self) -> None:
        self.now = self.most = self.least = 0

    def __enter__(self) -> Gathered:
        self.start()
        resize = self.resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> Any:  # as FSDP2 frees gathered weights, and takes them
            self.now += size - storage.nbytes()
            self.most, self.least = max(self.most, self.now), min(self.least, self.now)
            return resize(storage, size)

        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign]
        return self

    def __exit__(self, *raised: object) -> None:
        torch.UntypedStorage.resize_ = self.resize  # type: ignore[method-assign]


def train(
    settings: dict[str, Any], updates: int = 8, bare: bool = False, load: str = "", save: str = ""
) -> dict[str, Tensor]:
    """Weights of each player before and after `updates` steps, its first gradient, the means of the meter, for every
    update whether all ranks held the same gradient, a hash of all samples drawn, and bytes of weights.

    `bare` trains past the DDP wrappers, which is wrong; `load` is a checkpoint to start from, `save` a folder for one.
    """
    accelerator, before_building = Accelerator(cpu=True), anonymous()
    session = build_session(settings, accelerator)
    built = anonymous() - before_building
    if load:
        checkpoint.restore(session, Path(load))
    drawn = watch_samples(session)
    players = session.state.players
    report = {f"{name} before": flat(player.parameters) for name, player in players.items()}
    equal = []
    step = Player.step

    def spy(self: Player, norm: Tensor, lr: float) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        replicated = [g for g in gradients if not isinstance(g, DTensor)]  # shards differ, and cost a gather each
        equal.append(not replicated or same_on_all_ranks(flat(replicated)))
        if f"{self.name} gradient" not in report:
            report[f"{self.name} gradient"] = flat(gradients)
        step(self, norm, lr)

    Player.step = spy  # type: ignore[method-assign]
    try:
        for player in players.values():
            player.module = player.bare if bare else player.module
        with Gathered() as gathered, counting_graphs() as graphs:
            for number in range(updates):
                if number == 1:  # every buffer has been made, and freed
                    gathered.start()
                    report["graphs"] = torch.tensor(len(graphs))
                advance(session)
            report["later graphs"] = torch.tensor(len(graphs)) - report.get("graphs", torch.tensor(0))
    finally:
        Player.step = step  # type: ignore[method-assign]
    if save:
        saver.Saver(Path(save), 1, session.accelerator).save_now(session)
    means = session.state.meter.read(session.accelerator)
    for name, player in players.items():
        report[f"{name} after"] = flat(player.parameters)
        report[f"{name} equal on all ranks"] = torch.tensor([same_on_all_ranks(flat(player.parameters))])
        buffers = list(player.bare.buffers())
        report[f"{name} buffers equal on all ranks"] = torch.tensor([all(map(same_on_all_ranks, buffers))])
    skipped = torch.tensor([player.counters()["skipped"] for player in players.values()])
    report["skipped"] = session.accelerator.gather(skipped)
    report["bytes"] = torch.tensor([bytes_held(session), gathered.most - gathered.least, built])
    report["offloading"] = torch.tensor(offloading(session))
    report["drawn"] = torch.frombuffer(bytearray(drawn.digest()), dtype=torch.uint8)
    report["average"] = flat(list(session.state.ema.module.parameters()))
    report["gradients equal on all ranks"] = torch.tensor(equal)
    for key, wanted in (("losses", False), ("norms", True)):
        values = [means[name] for name in sorted(means) if name.endswith("grad_norm") == wanted]
        report[key] = torch.tensor(values, dtype=torch.float64)
    return report


def main() -> None:
    """Run the cases {name: arguments of train} of a JSON file; rank 0 writes FOLDER/name.safetensors."""
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for name, arguments in cases.items():
        with trusting(True):  # the objective of a case may be a class of the tests
            report = train(**arguments)
        if not dist.is_initialized() or dist.get_rank() == 0:
            save_file({key: value.contiguous() for key, value in report.items()}, folder / f"{name}.safetensors")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
    exit_now(0)  # as the command does: at Python's own exit a thread of torch's that still runs aborts the process
