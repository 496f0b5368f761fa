"""Players (networks with their optimizers), averages and the state of a run. Nothing else changes during training."""

import inspect
import math
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from distill.compilation import fused
from distill.lora import adapted
from distill.networks.network import Network
from distill.power_ema import PowerProfile
from trainers.engine.adam8bit import Adam8bit
from trainers.engine.meter import Meter
from trainers.engine.pace import Pace
from trainers.engine.sharding import copy_sharded_like, is_sharded, local, reshard
from trainers.recipe.run import Average, Optimizer, PlayerSettings, PowerEMA

OptimizerFactory = Callable[[str, list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""(name of the player, its named parameters) -> optimizer.

An optimizer that reads `found_inf`, as torch's fused ones do, never makes the host wait.
"""
Beta = Callable[[int, int], float]
"""(images before the update, images of the update) -> the factor of the old average in it."""
# The argument by which DDP sends buffers before every forward; torch before 2.13 calls it broadcast_buffers.
_SYNC_BUFFERS = "forward_sync_buffers"
if _SYNC_BUFFERS not in inspect.signature(nn.parallel.DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"


class Player:
    """A network that trains, with its optimizer.

    A player trains the parameters that require gradients when it is made: all of them, or adapters. Between updates no
    parameter requires a gradient.

    Args:
        name: The name of the player: generator, fake, teacher.
        network: The network, which may be sharded.
        settings: The settings of the optimizer.
        accelerator: Device and ranks.
        optimizer: Makes the optimizer in place of the one that `settings` names. None for that one.

    Attributes:
        sharded: Whether the network is sharded (trainers.engine.sharding).
        bare: The network itself, for every use while it is frozen and for every use without a graph.
        module: The network behind a DDP reducer, for its own update alone. For a sharded network it is `bare`.
        parameters: The parameters that train.
        frozen_names: The names of the other parameters. Several networks may share these, and a player never changes
            them.
        optimizer: The optimizer of the parameters that train.
        own_optimizer: Whether the caller made the optimizer.
        updates: The number of updates of the run, skipped ones included.
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
        if isinstance(settings, PlayerSettings) and isinstance(settings.dropout, float):
            for layer in (module for module in self.bare.modules() if isinstance(module, nn.Dropout)):
                layer.p = settings.dropout
        # Some networks constrain their weights after each update: EDM2 puts them on the unit sphere, unless the recipe
        # says that it does not. Layers under adapters have no update.
        constrains = not isinstance(settings, PlayerSettings) or settings.force_normalization
        modules = self.bare.modules() if constrains else ()
        own = [m.after_step for m in modules if hasattr(m, "after_step") and not adapted(m)]
        self._after_steps: list[Callable[[], None]] = own  # type: ignore[assignment]
        self._constrain()
        # A network of the user's own may change its buffers by the samples of its rank, as BatchNorm does its running
        # statistics. All other networks leave them as they are.
        changing = [m for m in self.bare.modules() if isinstance(m, Network) and not m.casts_weights]
        several = accelerator.num_processes > 1
        self._changing = [buffer for network in changing for buffer in network.buffers()] if several else []
        # Before `freeze`: DDP registers its hooks on the parameters that require gradients at this moment.
        self.module = wrap(self.bare, accelerator)
        named, self.own_optimizer = list(trained.items()), optimizer is not None
        self.optimizer = build_optimizer(named, settings) if optimizer is None else optimizer(name, named)
        self.updates = 0
        self._counters = {"skipped": 0, "streak": 0, "longest": 0}
        self._skips: list[Tensor] = []  # whether each update since was skipped, on the device
        self.freeze()

    def freeze(self) -> None:
        """Freeze the network between its updates: gradients pass through it to its input, in eval mode."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        if self.sharded:  # a forward may have left weights gathered, and the optimizer steps the shards
            reshard(self.bare)
        self.bare.eval()

    @contextmanager
    def training(self) -> Iterator[None]:
        """Make the network trainable while the context is open, which is for one update.

        A network of a distillation stays in eval mode, unless its settings ask for the dropout of the teacher's class.
        """
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        if self.sharded:
            reshard(self.bare, in_backward=False)
        settings = self.settings
        self.bare.train(not isinstance(settings, PlayerSettings) or settings.dropout != "off")
        try:
            yield
        finally:
            self.freeze()

    def learning_rate(self, images: int, total: int) -> float:
        """Return the learning rate of the update that follows `images` of `total` images."""
        s = self.settings
        lr = s.lr * min(1.0, (images + 1) / s.warmup) if s.warmup else s.lr
        remaining = 1 - images / total  # share of the run
        return lr * {"none": 1.0, "linear": remaining, "cosine": 0.5 - 0.5 * math.cos(math.pi * remaining)}[s.decay]

    def step(self, norm: Tensor, lr: float) -> None:
        """Step the optimizer. Where the gradient norm is not finite, the device skips the step.

        The elements of the gradient are clamped first where the settings say so.

        Args:
            norm: The norm of all gradients, a scalar on the device.
            lr: The learning rate.
        """
        bad = _not_finite(norm)
        if (most := self.settings.max_grad_element) is not None:
            # In place, on the shards of this rank: the norm was taken before, and nothing reads the gradient after.
            gradients = [local(p.grad) for p in self.parameters if p.grad is not None]
            torch._foreach_clamp_min_(gradients, -most)
            torch._foreach_clamp_max_(gradients, most)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The attribute by which a GradScaler tells torch's fused optimizers to skip: 1 leaves weights and state as they
        # are. For offloaded weights it is copied to the host here, since torch would read its copy before it arrives.
        offloaded = any(parameter.device.type != bad.device.type for parameter in self.parameters)
        self.optimizer.found_inf = bad.cpu() if offloaded else bad  # type: ignore[attr-defined]
        # A caller's optimizer may not read `found_inf`. Then the host decides, for which it waits for the device.
        if getattr(self.optimizer, "_step_supports_amp_scaling", False) or not bool(bad):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._constrain()
        for buffer in self._changing:  # as DDP does: all ranks go on from those of the main process, as a resume does
            dist.broadcast(buffer, 0)
        self.updates += 1
        self._skips.append(bad)

    def _constrain(self) -> None:
        """Let the network constrain its weights, if it does."""
        for after_step in self._after_steps:
            after_step()

    def counters(self) -> dict[str, int]:
        """Return the numbers of non-finite updates, for which the host waits for the device.

        They are `skipped`, those of the run, `streak`, those in a row until now, and `longest`, the longest such row
        since it was last set.
        """
        skips, self._skips = self._skips, []
        for skip in torch.stack(skips).tolist() if skips else ():
            streak = self._counters["streak"] + 1 if skip else 0
            longest = max(self._counters["longest"], streak)
            self._counters = {"skipped": self._counters["skipped"] + bool(skip), "streak": streak, "longest": longest}
        return self._counters

    def set_counters(self, **counters: int) -> None:
        """Set some of the counters."""
        self._counters = {**self.counters(), **counters}


@fused
def _not_finite(norm: Tensor) -> Tensor:
    """Return 1 where the scalar `norm` is not finite, and 0 otherwise."""
    return (0 * norm != 0).float()  # 0 * inf and 0 * nan are nan


def frozen_names(network: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that require no gradients."""
    return frozenset(name for name, parameter in network.named_parameters() if not parameter.requires_grad)


def wrap(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return a network behind DDP, if there are several processes and the network is replicated on each. Collective."""
    if accelerator.num_processes == 1 or is_sharded(network):
        return network
    ids = [accelerator.device] if accelerator.device.type == "cuda" else None
    settings: dict[str, Any] = {"device_ids": ids, "gradient_as_bucket_view": True}
    settings[_SYNC_BUFFERS] = False  # buffers are equal on all ranks, since a step makes them so: nothing to send
    return nn.parallel.DistributedDataParallel(network, **settings)


def build_optimizer(parameters: list[tuple[str, nn.Parameter]], settings: Optimizer) -> torch.optim.Optimizer:
    """Return torch's fused optimizer of named parameters, or one with moments of 8 bits.

    Args:
        parameters: The named parameters that train, which may be sharded.
        settings: The name of the optimizer and its settings.
    """
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
    if settings.name == "sgd":
        sgd = torch.optim.SGD(parameters, momentum=settings.betas[0], **common)
        if settings.betas[0]:  # torch makes momentum buffers in the first step, and leaves them empty if it is skipped
            sgd.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for _, p in parameters})
        return sgd
    kind = Adam8bit if settings.name.endswith("8bit") else torch.optim.Adam
    common |= {"betas": settings.betas, "eps": settings.eps}
    return kind(parameters, decoupled_weight_decay=settings.name.startswith("adamw"), **common)


class EMA:
    """A moving average of a module's parameters, held in a copy of the module.

    The copy shares the parameters of `frozen_names` with the module. Buffers are copied at every update. The average
    of a sharded module holds this rank's shards.

    Args:
        module: The network to average.
        beta: The factor of the old average in an update. At 0 the update copies the parameters.
        frozen_names: The parameters that do not train.

    Attributes:
        module: The averaged network, frozen and in eval mode.
    """

    def __init__(self, module: nn.Module, beta: Beta, frozen_names: Container[str] = ()) -> None:
        self.module = copy_sharded_like(module, frozen_names).requires_grad_(False).eval()
        self.beta, self.frozen_names = beta, frozen_names
        both = zip(self.module.named_parameters(), module.parameters(), strict=True)
        self._pairs = [(old, new) for (name, old), new in both if name not in frozen_names]
        self._sharded = is_sharded(module)
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self, images: int, batch_size: int) -> None:
        """Move the average towards the module, after an update of `batch_size` images.

        Args:
            images: The images before the update.
            batch_size: The images of the update.
        """
        # The rows of this rank alone: an average needs no communication.
        pairs = [(local(old), local(new)) for old, new in self._pairs] if self._sharded else self._pairs
        old, new = zip(*pairs, strict=True)
        # In place, so that `module` keeps its parameters; torch's private foreach form takes few kernel launches.
        torch._foreach_lerp_(old, new, 1 - self.beta(images, batch_size))
        for target, source in self._buffers:
            target.copy_(source)


def half_life_beta(settings: Average, images: int, batch_size: int) -> float:
    """Return the factor of the old average under a half-life (SiD's rule, from EDM, arXiv:2206.00364, appendix F.2).

    With a ramp-up the half-life is at most a fraction of the images seen. The first update then copies the parameters.

    Args:
        settings: The half-life in images, and the ramp-up.
        images: The images before the update.
        batch_size: The images of the update.
    """
    half_life = min(settings.half_life, settings.ramp_up * images) if settings.ramp_up else settings.half_life
    return float(0.5 ** (batch_size / max(half_life, 1e-8)))  # a half-life of 0 gives 0, not a division by 0


def average(module: nn.Module, settings: Average, frozen_names: Container[str] = ()) -> EMA:
    """Return the average of `module` with the half-life of a recipe."""
    return EMA(module, partial(half_life_beta, settings), frozen_names)


def power_averages(module: nn.Module, settings: PowerEMA | None, frozen_names: Container[str] = ()) -> dict[float, EMA]:
    """Return one average of `module` for each relative width (EDM2, arXiv:2312.02696)."""
    return {std: EMA(module, PowerProfile(std).beta, frozen_names) for std in settings.stds} if settings else {}


@dataclass
class TrainState:
    """The state of a run: all that a checkpoint must hold.

    Attributes:
        players: The networks that train, by name.
        ema: The average that is sampled, evaluated and exported.
        power_ema: Further averages of the same network, by relative width.
        images: The number of samples that the averaged player was updated on.
        meter: The running means since the last log point.
        pace: The decisions about the fake's warm-up and updates. None where the recipe leaves none to the run.
        memory: The tensors that the objective keeps from update to update, by name.
        unfinished: The names of the hooks of this image count that were not called, since the run was stopped.
        changes: The changes that resumes have made, in the form of `trainers.checkpoints.formats.Change`.
    """

    players: dict[str, Player]
    ema: EMA
    power_ema: dict[float, EMA] = field(default_factory=dict)
    images: int = 0
    meter: Meter = field(default_factory=Meter)
    pace: Pace | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def average(self, batch_size: int) -> None:
        """Move every average after an update of `batch_size` images, and count these images."""
        for ema in (self.ema, *self.power_ema.values()):
            ema.update(self.images, batch_size)
        self.images += batch_size
