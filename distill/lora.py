"""Low-rank adapters (Hu et al., arXiv:2106.09685) on the convolutions and linear layers of a network, by peft.

An adapted layer becomes W x + alpha/rank B A x with W frozen, A random and B zero, so the network starts unchanged.
Networks that share weights (`share_parameters`) have modules of their own over the same tensors, so each network has
its own adapters. The alternative, one network with a switch for the adapters, would go wrong where a backward pass
recomputes a forward pass under another position of the switch.
"""

import copy
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import nn

from distill.errors import UserError, options, require

Module = TypeVar("Module", bound=nn.Module)
MAX_RANK = 4096
"""The largest rank. The recipe of a stranger's run could otherwise ask for any amount of memory."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The settings of adapters.

    Attributes:
        rank: The rank of B A, at most MAX_RANK.
        alpha: The adapter is multiplied by alpha / rank.
        targets: Names of layers, in full or their last parts, such as "conv1" or "attentions.0.to_q". None for all
            convolutions and linear layers. Convolutions in groups, such as Sana's, never get adapters.
    """

    rank: int = 64  # DMD2's LoRA of SDXL, as alpha
    alpha: int = 8
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            require(getattr(self, name) > 0, f"{name}: must be positive, got {getattr(self, name)}")
        require(self.rank <= MAX_RANK, f"rank: must be at most {MAX_RANK}, got {self.rank}")


def share_parameters(module: Module, names: Container[str] | None = None) -> Module:
    """Return a copy of `module` that has the same parameter tensors.

    Buffers are copied, because a network may write them in training. A change of a shared parameter in place, such as a
    move to a device, changes every module that shares it. Code that loads or merges weights must not change them.

    Args:
        module: The module.
        names: The names of the parameters to share. The others are copied. None shares all.
    """
    shared = {id(value): value for name, value in module.named_parameters() if names is None or name in names}
    return copy.deepcopy(module, shared)  # deepcopy takes the values of its memo as copies that exist already


def attach(network: nn.Module, lora: Lora) -> None:
    """Add adapters to the target layers of a network, in place. Afterwards the adapters alone require gradients.

    The values of A come from torch's global generator.

    Args:
        network: The network.
        lora: The settings of the adapters.

    Raises:
        UserError: The network has no layer that takes an adapter, or a target names no such layer.
    """
    layers = targets(network, lora)
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers), network)


def targets(network: nn.Module, lora: Lora) -> list[str]:
    """Return the full names of the layers that get adapters, or raise UserError as attach does."""
    layers = [name for name, module in network.named_modules() if _adaptable(module)]
    require(len(layers) > 0, f"lora: {type(network).__name__} has no convolution or linear layer to put adapters on")
    if lora.targets is None:
        return layers
    found = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in lora.targets}
    for target, names in found.items():
        if not names:
            ends = {name.rpartition(".")[2] for name in layers}
            have = options(sorted(end for end in ends if not end.isdigit()), target)
            raise UserError(f"lora.targets: no convolution or linear layer is called {target!r}; it has {have}")
    return [name for name in layers if any(name in names for names in found.values())]


def _adaptable(module: nn.Module) -> bool:
    """Return whether peft has adapters of every rank for this layer. It has none for convolutions in groups."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def adapted(network: nn.Module) -> bool:
    """Return whether `network` has adapters."""
    return any(hasattr(module, "lora_A") for module in network.modules())


def merge(network: nn.Module) -> None:
    """Add every adapter to the weight of its layer and remove it, in place.

    A weight that was shared with another network becomes a tensor of its own first.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            layer = cast(Any, module.get_base_layer())
            # peft merges in place, which would change the weight of every network that shares it.
            layer.weight = nn.Parameter(layer.weight.detach().clone(), layer.weight.requires_grad)
            module.merge()
    strip(network)


def strip(network: nn.Module) -> None:
    """Remove every adapter, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            network.set_submodule(name, module.get_base_layer())
