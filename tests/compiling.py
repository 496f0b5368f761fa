"""Networks that are compiled to graphs of torch's own operators: they can be counted, and give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from distill import denoiser, random
from trainers.engine import networks


@contextmanager
def counting_graphs() -> Iterator[list[Any]]:
    """Compile without a compiler while the context is open; every graph that is traced is in the list."""
    graphs: list[Any] = []

    def keep(module: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(module)
        forward: Callable[..., Any] = module.forward
        return forward

    def compile_whole(function: Callable[..., Any], mode: str) -> Any:
        torch._dynamo.config.recompile_limit = denoiser.GRAPHS
        return torch.compile(function, fullgraph=True, dynamic=False, backend=keep)

    def forget() -> None:
        torch._dynamo.reset()
        denoiser.compiled_evaluate.cache_clear()
        networks._compiled_forward.cache_clear()

    forget()
    with (
        mock.patch.object(random, "fused_normals", lambda: random._normals),  # bit for bit, and none of the graphs
        mock.patch.object(denoiser, "compile_whole", compile_whole),
        mock.patch.object(networks, "compile_whole", compile_whole),
    ):
        yield graphs
    forget()
