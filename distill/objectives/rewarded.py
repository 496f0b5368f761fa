"""A reward beside any objective (Diff-Instruct++, arXiv:2410.18881; Diff-Instruct*, arXiv:2410.20898)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.objectives.objective import Batch, Denoisers
from distill.objectives.wrapper import Wrapper
from distill.rewards import Reward


@dataclass(frozen=True, kw_only=True)
class Rewarded(Wrapper):
    """The terms of the inner objective, and the term -reward_scale reward(x).

    DI++ has diff_instruct as the inner objective, and DI* has sim, each of them guided or decoupled. The reward sees x
    as an image file would hold it: latents are decoded, and values are clamped to [-1, 1]. It is handed the condition
    too, and the texts of the prompts where it reads them.

    Attributes:
        reward: The model that scores images.
        reward_scale: The factor on the reward.
    """

    reward: Reward
    reward_scale: float  # the papers' alpha_rew; its value depends on the reward and on the image size

    def __post_init__(self) -> None:
        super().__post_init__()
        inner = self.objective
        while isinstance(inner, Wrapper):
            if isinstance(inner, Rewarded) and inner.reward.name == self.reward.name:
                raise UserError(f"reward: {self.reward.name} is there twice; give it one reward_scale")
            inner = inner.objective

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"texts"} if self.reward.reads_texts else super().needs

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        self.reward.check(teacher)

    def load_frozen(self) -> dict[str, nn.Module]:
        return {**super().load_frozen(), self.reward.name: self.reward.load()}

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        terms = super().generator_loss(nets, x, batch)
        decoder = nets.teacher.network.autoencoder
        images = x if decoder is None else decoder.decode(x, graph=True)
        texts: tuple[Sequence[str], ...] = ()
        if self.reward.reads_texts:
            if batch.texts is None:
                raise UserError(f"reward: {self.reward.name} reads prompts, the batch has no texts")
            texts = (batch.texts,)
        reward = nets.frozen[self.reward.name](images.clamp(-1, 1), batch.cond, *texts)
        nets.note(self.reward.name, reward)
        return {**terms, self.reward.name: -self.reward_scale * reward}
