"""A teacher whose denoiser is known in closed form, which is an oracle for tests."""

import torch
from torch import Tensor, nn

from distill.conditions import Condition, ConditionLike
from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.networks.network import Network, null_label
from distill.paths import Path, beside
from distill.random import Random, expand


class GaussianMixture(Denoiser):
    """The exact E[x0 | x_t] of data distributed as sum_k weight_k N(mean_k, std_k^2 I), on any path.

    A label k in 0 ... K-1 restricts the data to component k. The label K is the null condition, the whole mixture.

    Args:
        path: The path of the diffusion.
        means: The component means, [K, ...].
        stds: The component standard deviations, [K], each positive.
        weights: The component weights, [K], each positive. They are normalised to sum to 1, and equal when None.

    Raises:
        UserError: Means, stds and weights differ in number, or a std or a weight is not positive.
    """

    def __init__(self, path: Path, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        super().__init__(Network(), path, "x0")
        weights = torch.ones_like(stds) if weights is None else weights
        for name, values in (("std", stds), ("weight", weights)):
            if len(means) != len(values) or not bool((values > 0).all()):
                raise UserError(
                    f"GaussianMixture: needs one positive {name} a mean,"
                    f" got {len(means)} means, {name}s {values.tolist()}"
                )
        self.means, self.stds = nn.Buffer(means), nn.Buffer(stds)
        self.log_weights = nn.Buffer((weights / weights.sum()).log())
        self.network.shape, self.network.null = tuple(means.shape[1:]), null_label(len(means))

    # It predicts no uncertainty, which the signature of the base class could ask for.
    def forward(self, x_t: Tensor, t: Tensor, cond: ConditionLike = None) -> Tensor:  # type: ignore[override]
        """Return E[x0 | x_t] [B, ...] for `x_t` [B, ...] at times `t` [B].

        It is the mean of the components' own estimates, weighted by the components' posterior probabilities.
        """
        x_t = x_t.to(torch.promote_types(x_t.dtype, torch.float32))
        flat = x_t.flatten(1)
        alpha, sigma = beside(flat, self.path.alpha(t), self.path.sigma(t))  # [B, 1]
        stds, log_weights = self.stds.to(x_t.dtype), self.log_weights.to(x_t.dtype)  # [K]
        variance = alpha**2 * stds**2 + sigma**2  # [B, K], of x_t under each component
        means = self.means.flatten(1).to(x_t.dtype)  # [K, D]
        offset = flat[:, None] - alpha[..., None] * means  # [B, K, D]
        log_density = -0.5 * (offset**2).sum(-1) / variance - 0.5 * means.shape[1] * variance.log()
        share = (log_weights + log_density).softmax(1)  # [B, K]
        if (labels := Condition.of(cond).labels) is not None:
            one = torch.nn.functional.one_hot(labels, len(means) + 1).to(x_t.dtype)
            share = one[:, :-1] + one[:, -1:] * share
        component = means + (alpha * stds**2 / variance)[..., None] * offset
        return (share[..., None] * component).sum(1).reshape(x_t.shape)

    def data(self, random: Random, cond: Tensor | None = None) -> Tensor:
        """Draw samples [B, ...] from the mixture, or each from its component in `cond`, int64 [B]."""
        if cond is None:
            edges = self.log_weights.exp().cumsum(0)
            u = random.stream("component").uniform().to(edges.device, edges.dtype)
            cond = torch.bucketize(u, edges).clamp(max=len(edges) - 1)  # rounding may leave the last edge below u
        means = self.means[cond]
        return means + expand(self.stds[cond], means) * random.normal(*means.shape[1:], dtype=means.dtype)
