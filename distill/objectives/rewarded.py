"""Any objective with a reward (Diff-Instruct++, arXiv:2410.18881; Diff-Instruct*, arXiv:2410.20898)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.objectives.objective import Batch, Denoisers
from distill.objectives.wrapper import Wrapper
from distill.rewards import Reward


@dataclass(frozen=True, kw_only=True)
class Rewarded(Wrapper):
    """The inner objective's terms and -reward_scale reward(x), which pulls the generator's law up the reward.

    DI++ is diff_instruct within it, DI* is sim, each guided or decoupled. The reward judges x as it would be saved,
    decoded where it is a latent and clamped to [-1, 1].
    """

    reward: Reward
    reward_scale: float  # the papers' alpha_rew; no value carries over from one reward or image size to another

    def __post_init__(self) -> None:
        super().__post_init__()
        inner = self.objective
        while isinstance(inner, Wrapper):
            if isinstance(inner, Rewarded) and inner.reward.name == self.reward.name:
                raise UserError(f"reward: {self.reward.name} is there twice; give it one reward_scale")
            inner = inner.objective

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        self.reward.check(teacher)

    def load_frozen(self) -> dict[str, nn.Module]:
        return {**super().load_frozen(), self.reward.name: self.reward.load()}

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms = super().generator_loss(nets, x, batch)
        decoder = nets.teacher.network.autoencoder
        images = x if decoder is None else decoder.decode(x, graph=True)
        reward = nets.frozen[self.reward.name](images.clamp(-1, 1), batch.cond)
        nets.note(self.reward.name, reward)
        return {**terms, self.reward.name: -self.reward_scale * reward}
