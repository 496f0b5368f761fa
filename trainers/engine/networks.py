"""The set-up of a network for a run: its precision, and the recomputation of its activations."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from distill.denoiser import Denoiser
from distill.errors import UserError
from trainers.recipe.run import Experiment


def set_precision(denoiser: Denoiser, run: Experiment) -> Denoiser:
    """Put a denoiser into the precision of `run`, in place, and return it."""
    if run.precision == "float64":
        denoiser.double()
    # bfloat16 is the dtype of compute alone: the weights stay in float32, and autocast casts them.
    denoiser.autocast_dtype = torch.bfloat16 if run.precision == "bfloat16" else None
    return denoiser


@contextmanager
def compiled(networks: Iterable[nn.Module], mode: str | None) -> Iterator[None]:
    """Let the denoisers among some networks run compiled while the context is open (`Denoiser.compiled`)."""
    denoisers = [one for network in networks for one in network.modules() if isinstance(one, Denoiser)] if mode else []
    for denoiser in denoisers:
        denoiser.compiled = mode
    try:
        yield
    finally:
        for denoiser in denoisers:
            denoiser.compiled = None


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
