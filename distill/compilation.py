"""The compilation of networks, and of the arithmetic around them, by torch.compile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch

GRAPHS = 256
"""The graphs that torch keeps of one function: those of all networks, their uses, and the shapes of their blocks."""
TAG = "distill, backwards that may run again"
"""The part of the key of our entries in torch's cache of compiled code. It keeps them apart from others."""
_FUSES: ContextVar[bool] = ContextVar("fuses", default=False)
_P = ParamSpec("_P")
_R = TypeVar("_R")


@cache
def compile_whole(function: Callable[..., Any], mode: str = "default") -> Callable[..., Any]:
    """Return a function compiled for static shapes, each new one of which is compiled anew. No part of it stays out.

    The same function and mode give the same compiled function, with all its graphs.

    Args:
        function: The function, or the forward of a module.
        mode: The mode of torch.compile: default, reduce-overhead (CUDA graphs), max-autotune.
    """
    # Beyond torch's own limit a call would silently not be compiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    # A backward that writes into what its forward kept can run once. At a log point each term of a loss has its own.
    torch._functorch.config.donated_buffer = False
    # Torch would take such a backward from its cache all the same, and give wrong gradients. The tag is in the key.
    if TAG not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += TAG
    return torch.compile(function, fullgraph=True, dynamic=False, mode=None if mode == "default" else mode)


@contextmanager
def fusing() -> Iterator[None]:
    """Let `fused` functions be compiled while the context is open, as in the rounds of a compiled run."""
    token = _FUSES.set(True)
    try:
        yield
    finally:
        _FUSES.reset(token)


def fused(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a function of tensors that is compiled where `fusing` is open: one launch in place of many.

    Its backward is compiled too. The last digits of its values may differ from those of the function. All arguments but
    tensors are constants of its graph, so that each new value of one is compiled anew.
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        compiles = not torch.compiler.is_compiling() and _FUSES.get()  # in this order: a graph cannot read the second
        called = cast(Callable[_P, _R], compile_whole(function)) if compiles else function
        return called(*args, **kwargs)

    return call
