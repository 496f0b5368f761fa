"""Rewards: models that say how good an image is. Recipes name them by the keys of REWARDS."""

from distill.rewards.clip import AestheticReward, ClipReward
from distill.rewards.label_likelihood import ClassifierReward
from distill.rewards.reward import Reward

REWARDS: dict[str, type[Reward]] = {
    "classifier": ClassifierReward,
    "clip_score": ClipReward,
    "aesthetic": AestheticReward,
}

__all__ = ["REWARDS", "AestheticReward", "ClassifierReward", "ClipReward", "Reward"]
