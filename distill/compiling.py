"""Compilation by torch.compile: one graph for each use of a function, or an error."""

from collections.abc import Callable
from typing import Any

import torch

GRAPHS = 256
"""The graphs that torch keeps of one function: those of all networks, their uses, and the shapes of their blocks."""


def compile_whole(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Return a function compiled for static shapes, each new one of which is compiled anew. No part of it stays out.

    Args:
        function: The function, or the forward of a module.
        mode: The mode of torch.compile: default, reduce-overhead (CUDA graphs), max-autotune.
    """
    # Beyond torch's own limit a call would silently not be compiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    return torch.compile(function, fullgraph=True, dynamic=False, mode=None if mode == "default" else mode)
