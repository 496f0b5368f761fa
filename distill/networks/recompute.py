"""Gradient checkpointing (Chen et al., arXiv:1604.06174) of the blocks of a network."""

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module) -> None:
    """Make `block` store its inputs alone for the backward pass, and compute its activations again there.

    The second computation sees the same random numbers. A deep copy of `block` does the same with its own weights.
    Hooks of `block` itself run once, and hooks of its submodules run twice.
    """
    # This replaces the method of one object, so that other blocks of its class stay as they are. It is a bound method,
    # because copy.deepcopy binds the method of a copy to the copy. A closure would stay bound to the original block.
    block.forward = MethodType(_checkpointed_forward, block)


def _checkpointed_forward(block: nn.Module, *inputs: Any) -> Any:
    """Run the forward pass of the block's class under torch.utils.checkpoint, if gradients are wanted."""
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *inputs)
    return checkpoint(forward, block, *inputs, use_reentrant=False)
