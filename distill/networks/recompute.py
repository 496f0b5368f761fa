"""Gradient checkpointing (Chen et al., arXiv:1604.06174) of a network's blocks."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module) -> None:
    """Let `block` keep its inputs alone for a backward pass and run once more there, under the same random numbers.

    A copy of the block does so with its own weights. Hooks of the block itself run once, those inside it twice.
    """
    # An attribute of this one object; copy.deepcopy binds a method to the copy of its object.
    block.forward = MethodType(_recomputed, block)


def _recomputed(block: nn.Module, *inputs: Any) -> Any:
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *inputs)
    return checkpoint(forward, block, *inputs, use_reentrant=False)
