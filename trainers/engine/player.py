"""Players (a network with its optimizer) and the state of a run. Nothing else changes during training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.lora import adapted
from trainers.engine.adam8bit import Adam8bit
from trainers.engine.ema import EMA
from trainers.engine.meter import Meter
from trainers.engine.sharding import is_sharded, reshard
from trainers.recipe.run import Optimizer

OptimizerFactory = Callable[[str, list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""(name of the player, its named parameters) -> an optimizer that reads `found_inf` as torch's fused ones do."""
_SYNC_BUFFERS = "forward_sync_buffers"  # in every forward; torch before 2.13 calls it broadcast_buffers
if _SYNC_BUFFERS not in inspect.signature(nn.parallel.DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"


class Player:
    """A network that trains, with its optimizer.

    It trains the parameters that require gradients when it gets them: all, or adapters. Between updates no parameter
    requires a gradient.

    Attributes:
        sharded: Whether the network is sharded (trainers.engine.sharding).
        bare: The network itself, for every frozen use and every use without a graph.
        module: The same network behind a DDP reducer of its own, for its update alone; a sharded network is both.
        frozen_names: The names of the other parameters. Several networks may share them; a player never touches them.
        optimizer: The optimizer of the parameters that train.
        skipped: The number of non-finite updates in the run.
        streak: The number of non-finite updates in a row until now.
        longest: The longest such row since the last check.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        settings: Optimizer,
        accelerator: Accelerator,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        self.name, self.settings = name, settings
        self.sharded = is_sharded(network)
        self.bare = network if self.sharded else network.to(accelerator.device)
        self.frozen_names = frozen_names(self.bare)
        trained = {name: parameter for name, parameter in self.bare.named_parameters() if name not in self.frozen_names}
        self.parameters = list(trained.values())
        # These put weights back where their network wants them after an update (EDM2: on the unit sphere). The base
        # under adapters has no update.
        own = [module for module in self.bare.modules() if hasattr(module, "after_step") and not adapted(module)]
        self._after_steps: list[Callable[[], None]] = [module.after_step for module in own]  # type: ignore[misc]
        self._constrain()
        self.module = wrap(self.bare, accelerator)  # hooks go to the parameters that require gradients here
        named, self.own_optimizer = list(trained.items()), optimizer is not None
        self.optimizer = build_optimizer(named, settings) if optimizer is None else optimizer(name, named)
        device = accelerator.device
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)  # non-finite updates, all and in a row
        self.streak = torch.zeros((), dtype=torch.int64, device=device)
        self.longest = torch.zeros((), dtype=torch.int64, device=device)
        self.rest()

    def rest(self) -> None:
        """Freeze the network between its updates: it is then a function of its input only."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        if self.sharded:
            reshard(self.bare)
        self.bare.eval()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Make the network trainable, with dropout, while the context is open: for one update."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        if self.sharded:
            reshard(self.bare, in_backward=False)
        self.bare.train()
        try:
            yield
        finally:
            self.rest()

    def learning_rate(self, images: int, total: int) -> float:
        """lr of the update after `images` of `total` images."""
        s = self.settings
        lr = s.lr * min(1.0, (images + 1) / s.warmup) if s.warmup else s.lr
        left = 1 - images / total
        return lr * {"none": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[s.decay]

    def step(self, norm: Tensor, lr: float) -> None:
        """One optimizer step, skipped on the device where the gradient norm is not finite."""
        bad = ~torch.isfinite(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The fused optimizers read `found_inf` as they do under a GradScaler: 1 leaves weights and state as they are.
        # One for weights on the host has to be there before: torch would not wait for its copy.
        hosted = any(parameter.device.type != bad.device.type for parameter in self.parameters)
        self.optimizer.found_inf = bad.float().cpu() if hosted else bad.float()  # type: ignore[attr-defined]
        # An optimizer of the caller's that does not read it is asked by the host, which waits for the device here.
        if getattr(self.optimizer, "_step_supports_amp_scaling", False) or not bool(bad):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._constrain()
        self.skipped += bad
        self.streak = torch.where(bad, self.streak + 1, 0)
        self.longest = torch.maximum(self.longest, self.streak)

    def _constrain(self) -> None:
        for after_step in self._after_steps:
            after_step()

    def counters(self) -> dict[str, int]:
        """Skipped updates: of the run, in a row until now, and the longest row since the last log point."""
        return {"skipped": int(self.skipped), "streak": int(self.streak), "longest": int(self.longest)}


def frozen_names(network: nn.Module) -> frozenset[str]:
    """Names of the parameters that require no gradients."""
    return frozenset(name for name, parameter in network.named_parameters() if not parameter.requires_grad)


def wrap(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The network behind DDP when there are several processes and it is whole in each."""
    if accelerator.num_processes == 1 or is_sharded(network):
        return network
    ids = [accelerator.device] if accelerator.device.type == "cuda" else None
    quiet: dict[str, Any] = {_SYNC_BUFFERS: False}
    return nn.parallel.DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True, **quiet)


def build_optimizer(parameters: list[tuple[str, nn.Parameter]], settings: Optimizer) -> torch.optim.Optimizer:
    """torch's fused optimizer over named parameters, or one that holds its state in 8 bits."""
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
    if settings.name == "sgd":
        sgd = torch.optim.SGD(parameters, momentum=settings.betas[0], **common)
        if settings.betas[0]:  # torch makes these in its first step, without values if that step is skipped
            sgd.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for _, p in parameters})
        return sgd
    kind = Adam8bit if settings.name.endswith("8bit") else torch.optim.Adam
    common |= {"betas": settings.betas, "eps": settings.eps}
    return kind(parameters, decoupled_weight_decay=settings.name.startswith("adamw"), **common)


@dataclass
class TrainState:
    """Everything a checkpoint must hold. `images` counts the samples of the averaged player's updates, `memory` is
    what the objective keeps."""

    players: dict[str, Player]
    ema: EMA
    power_ema: dict[float, EMA] = field(default_factory=dict)  # by relative width; of the same network as `ema`
    images: int = 0
    meter: Meter = field(default_factory=Meter)
    memory: dict[str, Tensor] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)  # hooks of this image count that a stop came before

    def average(self, batch_size: int) -> None:
        """Move every average after an update of `batch_size` images, and count them."""
        for ema in (self.ema, *self.power_ema.values()):
            ema.update(self.images, batch_size)
        self.images += batch_size
