"""The trial of a network before anything else is done with it: it is called once on shapes, without any arithmetic."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from distill.conditions import Condition
from distill.errors import UserError, one_line
from distill.networks.network import Network

COUNT = 2  # samples: an operation that mixes samples up fails for more than one


def try_shapes(network: Network) -> None:
    """Call a network once on tensors that have shapes and no values, as a Denoiser calls it.

    Weights on the meta device are as good as real ones. The call takes about as long as a call of a tiny network.

    Raises:
        UserError: The network fails, or its output has not the shape of its input.
    """
    # On the CPU, also where the caller builds a network on the meta device.
    with torch.no_grad(), torch.device("cpu"), FakeTensorMode(allow_non_fake_inputs=True), _without_log():
        # functional_call leaves the network as it is, weights and buffers included.
        named = network.own_class or network.display_name
        tensors = {name: _shape_of(value) for name, value in network.named_parameters()}
        tensors |= {name: _shape_of(value) for name, value in network.named_buffers()}
        try:
            x, time = torch.zeros(COUNT, *network.shape), torch.ones(COUNT)
            output = functional_call(network, tensors, (x, time, network.example(COUNT)))
        except UserError:
            raise
        except Exception as error:  # diffusers and torch raise their own kinds
            inputs = f"x of {[COUNT, *network.shape]}, times and {_inputs(network)}"
            raise UserError(
                f"network: {named} fails when it is called with {inputs}: {type(error).__name__}: {one_line(error)}"
            ) from error
    if not isinstance(output, Tensor) or output.shape != x.shape:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"network: {named} gives {found} for x of {list(x.shape)}")


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep torch from logging the traceback of an operation that fails, which becomes one line here."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _shape_of(value: Tensor) -> Tensor:
    """Return a tensor like `value`, on the CPU. Inside FakeTensorMode it has no memory."""
    empty = torch.empty(value.shape, dtype=value.dtype)
    return nn.Parameter(empty, False) if isinstance(value, nn.Parameter) else empty


def _inputs(network: Network) -> str:
    """Return the names of the conditions that a network is given, for a message."""
    cond: Condition = network.example(1)
    return " and ".join(cond) or "no condition"
