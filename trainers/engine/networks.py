"""The set-up of a network for a run: its precision, its compilation, and the recomputation of its activations."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import MethodType

import torch
from torch import nn

from distill.compilation import compile_whole, fusing
from distill.denoiser import Denoiser
from distill.errors import UserError
from trainers.engine.session import Session
from trainers.engine.sharding import is_sharded, sharding_units
from trainers.recipe.run import Compile, Experiment


def set_precision(denoiser: Denoiser, run: Experiment) -> Denoiser:
    """Put a denoiser into the precision of `run`, in place, and return it."""
    if run.precision == "float64":
        denoiser.double()
    # bfloat16 is the dtype of compute alone: the weights stay in float32, and autocast casts them.
    denoiser.autocast_dtype = torch.bfloat16 if run.precision == "bfloat16" else None
    return denoiser


@contextmanager
def compiling(networks: Iterable[nn.Module], how: Compile) -> Iterator[None]:
    """Let networks, and the `fused` functions around them, run compiled while the context is open.

    A network is compiled as a whole (`Denoiser.compiled`), or block by block. A sharded one always is: the weights of a
    block are gathered before and freed after it, which no graph can hold.

    Args:
        networks: The networks.
        how: The settings.
    """
    blocks, denoisers = list[nn.Module](), list[Denoiser]()
    for network in networks:
        if how.blocks or is_sharded(network):
            blocks += [unit for unit in sharding_units(network) if not isinstance(unit, Denoiser)]
        else:
            denoisers += [part for part in network.modules() if isinstance(part, Denoiser)]
    for denoiser in denoisers:
        denoiser.compiled = how.mode
    for block in blocks:  # its forward alone: the hooks around it gather and free
        # That of its class: blocks of a class share the graphs, which keep none of them alive.
        block.forward = MethodType(compile_whole(type(block).forward, how.mode), block)
    try:
        with fusing():
            yield
    finally:
        for denoiser in denoisers:
            denoiser.compiled = None
        for block in blocks:
            del block.forward  # so that a copy of the block has its own


def compiled_rounds(update_players: Callable[[Session], None], how: Compile) -> Callable[[Session], None]:
    """Return the rounds of a run whose networks run compiled meanwhile."""

    def update(session: Session) -> None:
        with compiling(session.networks(), how):
            update_players(session)

    return update


def compile_seconds() -> float:
    """Return the seconds that this process has spent compiling, by torch's own clock."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # it is imported, for seconds, by the first compilation
    return 0.0 if dynamo is None else float(dynamo.calculate_time_spent()["total_wall_time"])


def recompute_activations(network: nn.Module) -> None:
    """Let the blocks of `network` recompute their activations in a backward pass (gradient checkpointing).

    Calls `enable_gradient_checkpointing()`, which diffusers' models have, on the first submodule that has it.

    Raises:
        UserError: No submodule can recompute its activations.
    """
    with suppress(ValueError):  # models of diffusers raise it when they cannot recompute
        for module in network.modules():
            if (enable := getattr(module, "enable_gradient_checkpointing", None)) is not None:
                enable()
                return
    raise UserError(f"gradient_checkpointing: {type(network).__name__} cannot recompute its activations; leave it out")
