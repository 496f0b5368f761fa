"""The scores that tables of text-to-image models quote, as protocols of distill.metrics."""

from pathlib import Path
from typing import Any

import torch

from distill.errors import UserError, options
from distill.metrics.text_scores import TextScores
from distill.rewards.clip import AestheticReward, ClipReward, PickReward
from distill.rewards.hps import HpsReward
from distill.rewards.image_reward import ImageReward
from distill.rewards.text_score import PictureReward

SCORES: dict[str, type[PictureReward]] = {
    one.name: one for one in (ClipReward, PickReward, HpsReward, ImageReward, AestheticReward)
}
_MODEL = {"clip_score": "clip", "pick_score": "clip", "hps": "weights", "image_reward": "weights", "aesthetic": "head"}
"""{score: the setting that names its model}."""


def text_scores(score: str, device: torch.device | str = "cpu", at_once: int = 16, **settings: Any) -> TextScores:
    """Load a model, and return the protocol that scores samples with their prompts by it.

    The units are those of published tables: 100 times the cosine, and at least 0, for `clip_score`; 100 times the
    cosine for `hps`; the logit for `pick_score`; the standardised score for `image_reward`; the predicted rating for
    `aesthetic`, which reads no prompts.

    Args:
        score: clip_score, pick_score, hps, image_reward or aesthetic.
        device: The device of the model.
        at_once: The number of images in one pass.
        settings: The settings of the reward of this name, such as `clip` for clip_score.

    Raises:
        UserError: There is no such score, or its files are missing or damaged.
    """
    if score not in SCORES:
        raise UserError(f"score: must be one of {options(SCORES, score)}, got {score!r}")
    try:
        reward = SCORES[score](**settings)
    except TypeError as error:
        raise UserError(f"score: {score}: {error}") from error
    if getattr(reward, "prompts", ()):
        raise UserError(f"score: {score}: prompts are given with the images")
    return scores_by(reward, device, at_once)


def scores_by(reward: PictureReward, device: torch.device | str = "cpu", at_once: int = 16) -> TextScores:
    """Load the model of a reward, and return the protocol that scores samples by it, as `text_scores` does.

    Args:
        reward: A reward of SCORES without prompts of its own.
        device: The device of the model.
        at_once: The number of images in one pass.

    Raises:
        UserError: Its files are missing or damaged.
    """
    model = Path(str(getattr(reward, _MODEL[reward.name]))).name
    least = 0.0 if reward.name == "clip_score" else None
    return TextScores(f"{reward.name}({model})", reward.load().to(device), least, at_once, device)
