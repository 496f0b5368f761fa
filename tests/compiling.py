"""Networks that are compiled to graphs of torch's own operators: they can be counted, and give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch

from distill import compilation, denoiser
from trainers.engine import networks


@contextmanager
def counting_graphs() -> Iterator[list[Any]]:
    """Compile without a compiler while the context is open; every graph that is traced is in the list."""
    graphs: list[Any] = []

    def keep(module: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(module)
        forward: Callable[..., Any] = module.forward
        return forward

    @cache
    def compile_whole(function: Callable[..., Any], mode: str = "default") -> Any:
        torch._dynamo.config.recompile_limit = compilation.GRAPHS
        return torch.compile(function, fullgraph=True, dynamic=False, backend=keep)

    torch._dynamo.reset()
    with (
        mock.patch.object(compilation, "compile_whole", compile_whole),
        mock.patch.object(denoiser, "compile_whole", compile_whole),
        mock.patch.object(networks, "compile_whole", compile_whole),
    ):
        yield graphs
    torch._dynamo.reset()
