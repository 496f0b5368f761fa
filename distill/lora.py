"""Low-rank adapters (Hu et al., arXiv:2106.09685) on the convolutions and linear layers of a network, through peft.

Each becomes W x + alpha/rank B A x with W frozen, A random and B zero: the network starts as what it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from distill.errors import UserError

_LAYERS = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """`targets` are names of layers, whole or their ends from a dot on ("conv1", "attentions.0.to_q"); null: all of
    them."""

    rank: int = 64  # DMD2's LoRA of SDXL, as alpha
    alpha: int = 8
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: must be positive, got {getattr(self, name)}")


def attach(network: nn.Module, lora: Lora) -> None:
    """Put adapters on the targets in `network`, in place; they alone require gradients then.

    A is drawn from torch's global generator. Raises UserError for a target that names no convolution or linear layer.
    """
    layers = targets(network, lora)
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers), network)


def targets(network: nn.Module, lora: Lora) -> list[str]:
    """The full names of the layers that get adapters; raises UserError as attach does."""
    layers = [name for name, module in network.named_modules() if isinstance(module, _LAYERS)]
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


def merge(network: nn.Module) -> None:
    """Add every adapter to the weight it stands beside and take it away, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            network.set_submodule(name, module.get_base_layer())
