"""Rewards: models that say how good an image is. Recipes name them by the keys of REWARDS."""

from distill.rewards.clip import AestheticReward, ClipReward, PickReward
from distill.rewards.hps import HpsReward
from distill.rewards.image_reward import ImageReward
from distill.rewards.label_likelihood import ClassifierReward
from distill.rewards.reward import Reward
from distill.rewards.scores import SCORES, scores_by, text_scores
from distill.rewards.text_score import TextReward, TextScore

REWARDS: dict[str, type[Reward]] = {
    "classifier": ClassifierReward,
    "clip_score": ClipReward,
    "pick_score": PickReward,
    "hps": HpsReward,
    "image_reward": ImageReward,
    "aesthetic": AestheticReward,
}

__all__ = [
    "REWARDS",
    "SCORES",
    "AestheticReward",
    "ClassifierReward",
    "ClipReward",
    "HpsReward",
    "ImageReward",
    "PickReward",
    "Reward",
    "TextReward",
    "TextScore",
    "scores_by",
    "text_scores",
]
