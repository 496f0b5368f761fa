"""Adam whose moments are a byte a value, and a scale for each block of at most 256 values.

Dynamic block-wise quantisation (Dettmers et al., arXiv:2110.02861). Blocks end where rows do, so that rows can be
shared out over any number of processes and saved by them: every one then takes the same step. (The blocks of
bitsandbytes and torchao run on through a process's rows, and both count steps on the host.)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.engine.sharding import local, shard_like

BLOCK = 256
SMALLEST = 4096  # elements; what is smaller keeps 32 bits, as with bitsandbytes
MOMENTS = ("exp_avg", "exp_avg_sq")
ELEMENTS_AT_ONCE = 2**24  # elements in float32 at a time, of a matrix that may be much larger


class Adam8bit(torch.optim.Adam):
    """torch's fused Adam, by `decoupled_weight_decay` AdamW, of which matrices of SMALLEST or more elements keep both
    moments in 8 bits.

    A step takes the gradients that it is done with.
    """

    found_inf: Tensor  # as the fused optimizers read it: 1 leaves weights and state as they are

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self._values = [dynamic(signed).to(local(parameters[0][1])) for signed in (True, False)]
        for _, parameter in parameters:
            if parameter.ndim > 1 and parameter.numel() >= SMALLEST:
                held = local(parameter.detach())
                self.state[parameter] = {"step": held.new_zeros(())}
                for moment in MOMENTS:
                    scales = shard_like(held.new_zeros(len(held), _count(parameter)), parameter)
                    codes = torch.zeros_like(parameter, dtype=torch.uint8)
                    self.state[parameter] |= {f"{moment}_codes": codes, f"{moment}_scales": scales}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As of any optimizer."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and "exp_avg_codes" in self.state[parameter]:
                    self._move(parameter, group)
                    parameter.grad = None
        return super().step(closure)

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state, bad = self.state[parameter], self.found_inf > 0
        state["step"] += ~bad
        moments = [state[f"{moment}_{part}"] for moment in MOMENTS for part in ("codes", "scales")]
        whole = [local(tensor.detach()) for tensor in (parameter, parameter.grad, *moments)]
        rows = max(1, ELEMENTS_AT_ONCE * len(parameter) // parameter.numel())
        for weight, gradient, *old in zip(*(tensor.split(rows) for tensor in whole), strict=True):
            mean, square = (dequantise(old[i].flatten(1), old[i + 1], self._values[i // 2]) for i in (0, 2))
            new, mean, square = adam(weight.flatten(1), gradient.flatten(1), mean, square, state["step"], group)
            encoded = (*quantise(mean, self._values[0]), *quantise(square, self._values[1]))
            for was, now in zip((weight, *old), (new, *encoded), strict=True):
                was.copy_(torch.where(bad, was, now.reshape(was.shape)))


def adam(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: Tensor, settings: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight and moments after a step (Kingma and Ba, arXiv:1412.6980; decoupled decay: arXiv:1711.05101)."""
    (beta1, beta2), lr, decay = settings["betas"], settings["lr"], settings["weight_decay"]
    if settings["decoupled_weight_decay"]:
        weight = weight * (1 - lr * decay)
    else:
        gradient = gradient + decay * weight
    mean = beta1 * mean + (1 - beta1) * gradient
    square = beta2 * square + (1 - beta2) * gradient**2
    root = (square / (1 - beta2**step)).sqrt() + settings["eps"]
    return weight - lr / (1 - beta1**step) * mean / root, mean, square


def dynamic(signed: bool) -> Tensor:
    """The 256 values of a byte in units of its block's scale, float32, rising: 7 decades, each of twice as many evenly
    spaced values as the one below, and 0 and 1."""
    found = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1)
        found.append(10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2)
    positive = torch.cat(found)
    return torch.cat([positive, -positive if signed else positive[:0], torch.tensor([0.0, 1.0])]).sort().values


def quantise(rows: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of `values` as bytes [R, N], and the scale of every block [R, ceil(N / BLOCK)], for `rows` [R, N]."""
    blocks = _blocks(rows)
    scales = blocks.abs().amax(2)
    units = blocks / scales.clamp(min=torch.finfo(rows.dtype).tiny)[..., None]
    codes = torch.bucketize(units, (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8)
    return codes.flatten(1)[:, : rows.shape[1]], scales


def dequantise(codes: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """The rows [R, N] that were encoded."""
    return (_blocks(values[codes.int()]) * scales[..., None]).flatten(1)[:, : codes.shape[1]]


def _blocks(rows: Tensor) -> Tensor:
    """[R, N] as [R, blocks, width], the last block filled up with zeros."""
    count = _count(rows)
    width = -(-rows.shape[1] // count)
    blocks: Tensor = F.pad(rows, (0, count * width - rows.shape[1])).unflatten(1, (count, width))
    return blocks


def _count(rows: Tensor) -> int:
    """Blocks in a row."""
    return -(-math.prod(rows.shape[1:]) // BLOCK)
