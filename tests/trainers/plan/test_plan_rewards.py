"""The plan of a run whose rewards read texts: they read them in the trace, and their memory counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from distill.objectives.diff_instruct import DiffInstruct
from distill.objectives.rewarded import Rewarded
from distill.rewards import ImageReward, PickReward
from distill.tiny import write_image_reward
from tests.distill.rewards.test_clip import write_clip
from trainers.plan.trace import plan
from trainers.recipe.load import resolve
from trainers.recipe.run import Run


def test_a_plan_reads_texts(tmp_path: Path) -> None:
    """CLIP's texts and BERT's, in one trace."""
    write_clip(clip := tmp_path / "clip")
    (made := tmp_path / "image_reward").mkdir()
    write_image_reward(made)
    inner = PickReward(clip=str(clip), processor=str(clip))
    outer = ImageReward(weights=str(made), tokenizer=str(made))
    objective = Rewarded(objective=DiffInstruct(), reward=inner, reward_scale=1.0)
    objective = Rewarded(objective=objective, reward=outer, reward_scale=1.0)
    run = replace(cast(Run, resolve("sd15_sid_lsg", tiny=tmp_path)), objective=objective)
    held = sum(value.nbytes for reward in (inner, outer) for value in reward.load().parameters())
    assert objective.needs == {"texts"} and plan(run, 1).peak.bytes > held
