"""Low-rank adapters (Hu et al., arXiv:2106.09685) on the convolutions and linear layers of a network, through peft.

An adapted layer becomes W x + alpha/rank B A x with W frozen, A random and B zero: the network starts unchanged.
Networks that share weights (`share_parameters`) have a tree of modules each over the same tensors. The adapters of one
network are therefore in no other: no switch can be in a wrong position, neither in a forward pass nor when a backward
pass recomputes one.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import nn

from distill.errors import UserError

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """`targets` are names of layers, whole or their ends from a dot on ("conv1", "attentions.0.to_q"); null: all of
    them. Convolutions in groups (Sana's by depth) get none."""

    rank: int = 64  # DMD2's LoRA of SDXL, as alpha
    alpha: int = 8
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: must be positive, got {getattr(self, name)}")


def share_parameters(module: Module, names: Container[str] | None = None) -> Module:
    """A copy of `module` in which the parameters of these `names` (null: all) are the very tensors of `module`.

    Buffers are copied, since a network may write them in training. Moving the shared parameters in place, to a device
    or a precision, moves them for all; what loads or merges weights must not touch them.
    """
    shared = {id(value): value for name, value in module.named_parameters() if names is None or name in names}
    return copy.deepcopy(module, shared)  # the memo of what has been copied already


def attach(network: nn.Module, lora: Lora) -> None:
    """Put adapters on the targets in `network`, in place; they alone require gradients then.

    A is drawn from torch's global generator. Raises UserError for a target that names no convolution or linear layer.
    """
    layers = targets(network, lora)
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers), network)


def targets(network: nn.Module, lora: Lora) -> list[str]:
    """The full names of the layers that get adapters; raises UserError as attach does."""
    layers = [name for name, module in network.named_modules() if _adaptable(module)]
    if not layers:
        raise UserError(f"lora: {type(network).__name__} has no convolution or linear layer to put adapters on")
    if lora.targets is None:
        return layers
    found = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in lora.targets}
    for target, names in found.items():
        if not names:
            ends = sorted({name.rpartition(".")[2] for name in layers if not name.rpartition(".")[2].isdigit()})
            raise UserError(
                f"lora.targets: no convolution or linear layer is called {target!r}; it has {', '.join(ends)}"
            )
    return [name for name in layers if any(name in names for names in found.values())]


def _adaptable(module: nn.Module) -> bool:
    """Whether it is one linear map: of a convolution in groups peft makes no adapter of any rank."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def adapted(network: nn.Module) -> bool:
    """Whether there are adapters in `network`."""
    return any(hasattr(module, "lora_A") for module in network.modules())


def merge(network: nn.Module) -> None:
    """Add every adapter to the weight it stands beside and take it away; a weight that was shared is its own then."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            layer = cast(Any, module.get_base_layer())
            layer.weight = nn.Parameter(layer.weight.detach().clone(), layer.weight.requires_grad)
            module.merge()
    strip(network)


def strip(network: nn.Module) -> None:
    """Take every adapter away, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            network.set_submodule(name, module.get_base_layer())
