"""A loop of SiD as a user would write it from the formulas, in plain torch: the stand-in for a peer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from distill import Denoiser
from distill.conditions import Condition

ALPHA, START = 1.2, 2.5


def ramp(u: Tensor) -> Tensor:
    """Return EDM's noise levels at the shares `u` of its ramp, from 0.002 to 80."""
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return torch.pow(low + u * (high - low), 7)


def build(teacher: Denoiser, batch_size: int, precision: str) -> Callable[[], None]:
    """Return one iteration: an update of the fake, then one of the generator."""
    generator, fake = copy.deepcopy(teacher), copy.deepcopy(teacher)
    teacher.requires_grad_(False)
    device = next(teacher.parameters()).device
    optimizers = {net: torch.optim.Adam(net.parameters(), lr=1e-5, betas=(0.0, 0.999)) for net in (generator, fake)}
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def made() -> tuple[Tensor, Condition]:
        cond = Condition(labels=torch.randint(teacher.network.classes, (batch_size,), device=device))
        noise = START * torch.randn(batch_size, *teacher.network.shape, device=device)
        return generator(noise, torch.full((batch_size,), START, dtype=torch.float64), cond), cond

    def at(x: Tensor, sigma: Tensor) -> Tensor:
        return x + sigma.to(x)[:, None, None, None] * torch.randn_like(x)

    def step(net: Denoiser, loss: Tensor) -> None:
        loss.backward()
        optimizers[net].step()
        optimizers[net].zero_grad()

    def iteration() -> None:
        fake.requires_grad_(True)
        with half:
            with torch.no_grad():
                x, cond = made()
            sigma = (1.2 * torch.randn(batch_size, dtype=torch.float64) - 1.2).exp()
            error = (fake(at(x, sigma), sigma, cond) - x).square().flatten(1).sum(1)
        step(fake, ((1 / sigma**2 + 4).to(error) * error).mean())
        fake.requires_grad_(False)
        with half:
            x, cond = made()
            sigma = ramp(0.8 * torch.rand(batch_size, dtype=torch.float64))
            x_t = at(x, sigma)
            real, made_up = teacher(x_t, sigma, cond), fake(x_t, sigma, cond)
            gap = real - made_up
            weight = 1 / (x - real).detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        step(generator, (weight * (gap * (real - x - ALPHA * gap)).flatten(1).sum(1)).mean())

    return iteration
