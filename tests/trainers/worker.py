"""Trains tiny runs on one layout and reports weights and gradients: a function, and a program for a rank of several."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import experiment
from trainers import checkpoint, saving
from trainers.loop import build
from trainers.state import Player


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def same_on_all_ranks(vector: Tensor) -> bool:
    if not dist.is_initialized():
        return True
    others = [torch.empty_like(vector) for _ in range(dist.get_world_size())]
    dist.all_gather(others, vector)
    return all(torch.equal(others[0].nan_to_num(1e9), other.nan_to_num(1e9)) for other in others)


def train(
    settings: dict[str, Any], updates: int = 20, bare: bool = False, load: str = "", save: str = ""
) -> dict[str, Tensor]:
    """Weights of each player before and after `updates` steps, its first gradient, the means of the meter, and for
    every update whether all ranks held the same gradient.

    `bare` trains past the DDP wrappers, which is wrong; `load` is a checkpoint to start from, `save` a folder for one.
    """
    session = build(experiment(settings), Accelerator(cpu=True))
    if load:
        checkpoint.restore(session, Path(load))
    players = session.state.players
    report = {f"{name} before": flat(player.parameters) for name, player in players.items()}
    equal = []
    step = Player.step

    def spy(self: Player, norm: Tensor, lr: float) -> None:
        gradient = flat([p.grad for p in self.parameters if p.grad is not None])
        equal.append(same_on_all_ranks(gradient))
        report.setdefault(f"{self.name} gradient", gradient.clone())
        step(self, norm, lr)

    Player.step = spy  # type: ignore[method-assign]
    try:
        for player in players.values():
            player.module = player.bare if bare else player.module
        for _ in range(updates):
            before = session.state.images
            session.step()
            session.state.ema.update(before, session.run.batch_size)
            session.state.images += session.run.batch_size
    finally:
        Player.step = step  # type: ignore[method-assign]
    if save:
        saving.save(session, Path(save), keep=1)
    means = session.state.meter.read(session.accelerator)
    for name, player in players.items():
        report[f"{name} after"] = flat(player.parameters)
        report[f"{name} equal on all ranks"] = torch.tensor([same_on_all_ranks(flat(player.parameters))])
    skipped = torch.tensor([player.counters()["skipped"] for player in players.values()])
    report["skipped"] = session.accelerator.gather(skipped)
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
        report = train(**arguments)
        if not dist.is_initialized() or dist.get_rank() == 0:
            save_file({key: value.contiguous() for key, value in report.items()}, folder / f"{name}.safetensors")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
