"""Adam with moments of 8 bits: one byte for a value, and a float32 scale for each block of at most 256 values.

The method is dynamic block-wise quantisation (Dettmers et al., arXiv:2110.02861). A block never crosses the end of a
row. The rows can therefore be sharded over any number of processes and saved by them, and every division takes the same
step. In bitsandbytes and torchao a block runs on into the next row, and both libraries count the steps on the host.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.compilation import fused
from trainers.engine.sharding import local, shard_like

BLOCK = 256
SMALLEST = 4096  # elements of the smallest tensor with moments of 8 bits, as in bitsandbytes
MOMENTS = ("exp_avg", "exp_avg_sq")
ELEMENTS_AT_ONCE = 2**24  # elements of a matrix whose moments are in float32 at one time


class Adam8bit(torch.optim.Adam):
    """The fused Adam of torch, with moments of 8 bits for large tensors.

    These are the tensors of two or more dimensions and at least SMALLEST elements. With `decoupled_weight_decay` it is
    AdamW. A step frees the gradients of these tensors.

    Args:
        parameters: The named parameters, which may be sharded.
        **settings: The settings of torch.optim.Adam, with `fused=True`.

    Attributes:
        found_inf: A scalar on the device of the weights. At 1 a step changes neither weights nor state, as in torch's
            fused optimizers.
    """

    found_inf: Tensor

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], **settings: Any) -> None:
        super().__init__(parameters, **settings)
        # The values of a byte, signed for the first moment and unsigned for the second.
        self._values = [byte_values(signed).to(local(parameters[0][1])) for signed in (True, False)]
        for _, parameter in parameters:
            if parameter.ndim > 1 and parameter.numel() >= SMALLEST:
                # The state exists before the first step, which may be skipped, so that every checkpoint holds it.
                rows = local(parameter.detach())
                self.state[parameter] = {"step": rows.new_zeros(())}
                for moment in MOMENTS:
                    scales = shard_like(rows.new_zeros(len(rows), _count(parameter)), parameter)
                    codes = torch.zeros_like(parameter, dtype=torch.uint8)
                    self.state[parameter] |= {f"{moment}_codes": codes, f"{moment}_scales": scales}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step. `closure` is as for any optimizer of torch."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and "exp_avg_codes" in self.state[parameter]:
                    self._update(parameter, group)
                    parameter.grad = None  # so that torch's step below leaves this parameter alone
        return super().step(closure)

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Step one parameter in place, a few rows at a time."""
        state, bad = self.state[parameter], self.found_inf > 0
        state["step"] += ~bad
        moments = [state[f"{moment}_{part}"] for moment in MOMENTS for part in ("codes", "scales")]
        tensors = [local(tensor.detach()) for tensor in (parameter, parameter.grad, *moments)]
        rows = max(1, ELEMENTS_AT_ONCE * len(parameter) // parameter.numel())
        # A number on the host: a graph takes it as an input, where each new float would be a new graph.
        lr = torch.tensor(group["lr"], dtype=parameter.dtype)
        settings = {key: group[key] for key in ("betas", "eps", "weight_decay", "decoupled_weight_decay")}
        for weight, gradient, *old in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
            _step_rows(weight, gradient, old, self._values, bad, state["step"], lr, settings)


@fused
def _step_rows(
    weight: Tensor,
    gradient: Tensor,
    old: list[Tensor],
    values: list[Tensor],
    bad: Tensor,
    step: Tensor,
    lr: Tensor,
    settings: dict[str, Any],
) -> None:
    """Step some rows of a parameter in place. The arguments are those of `adam`, but for these.

    Args:
        weight: [R, ...].
        gradient: [R, ...].
        old: The codes [R, ...] and the scales [R, blocks] of the first moment, then those of the second.
        values: The values of a byte, for the first moment and the second.
        bad: A scalar. Where it is true nothing changes.
        step: The number of this step.
        lr: The learning rate, a scalar.
        settings: The other settings of the optimizer.
    """
    mean, square = (dequantise(old[i].flatten(1), old[i + 1], values[i // 2]) for i in (0, 2))
    new, mean, square = adam(weight.flatten(1), gradient.flatten(1), mean, square, step, lr, settings)
    encoded = (*quantise(mean, values[0]), *quantise(square, values[1]))
    # Chosen on the device: the host never learns whether the step is skipped.
    for target, value in zip((weight, *old), (new, *encoded), strict=True):
        target.copy_(torch.where(bad, target, value.reshape(target.shape)))


def adam(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: Tensor, lr: Tensor, settings: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight and moments after a step of Adam (Kingma and Ba, arXiv:1412.6980) or AdamW (arXiv:1711.05101).

    Args:
        weight: [R, N].
        gradient: [R, N].
        mean: The first moment [R, N].
        square: The second moment [R, N].
        step: The number of this step, from 1, as a scalar.
        lr: The learning rate, a scalar.
        settings: The other settings of a parameter group of the optimizer.
    """
    (beta1, beta2), decay = settings["betas"], settings["weight_decay"]
    if settings["decoupled_weight_decay"]:
        weight = weight * (1 - lr * decay)
    else:
        gradient = gradient + decay * weight
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient**2
    root = (square / (1 - beta2**step)).sqrt() + settings["eps"]
    return weight - lr / (1 - beta1**step) * mean / root, mean, square


def byte_values(signed: bool) -> Tensor:
    """Return the 256 values that a byte stands for, float32 and rising, in units of the scale of its block.

    They are 0, 1 and seven decades of evenly spaced values. Each decade has twice as many values as the one below.
    """
    found = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1)
        found.append(10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2)
    positive = torch.cat(found)
    return torch.cat([positive, -positive if signed else positive[:0], torch.tensor([0.0, 1.0])]).sort().values


def quantise(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Encode rows.

    Args:
        rows: [R, N].
        values: The 256 values of a byte, rising.

    Returns:
        The numbers of the nearest values, uint8 [R, N], and the scale of every block, [R, ceil(N / BLOCK)].
    """
    blocks = _blocks(rows)
    scales = blocks.abs().amax(2)
    units = blocks / scales.clamp(min=torch.finfo(rows.dtype).tiny)[..., None]  # a block of zeros has the scale 0
    # The number of midpoints below a value is the number of the nearest value.
    codes = torch.bucketize(units, (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8)
    return codes.flatten(1)[:, : rows.shape[1]], scales


def dequantise(codes: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """Decode rows: the inverse of `quantise`, up to its rounding. Returns [R, N]."""
    return (_blocks(values[codes.int()]) * scales[..., None]).flatten(1)[:, : codes.shape[1]]


def _blocks(rows: Tensor) -> Tensor:
    """Return [R, N] as [R, blocks, width], the last block padded with zeros."""
    count = _count(rows)
    width = -(-rows.shape[1] // count)
    blocks: Tensor = F.pad(rows, (0, count * width - rows.shape[1])).unflatten(1, (count, width))
    return blocks


def _count(rows: Tensor) -> int:
    """Return the number of blocks in a row."""
    return -(-math.prod(rows.shape[1:]) // BLOCK)
