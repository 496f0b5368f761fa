"""Scores of sets of samples with prompts, each by its model, in parts and as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill import UserError
from distill.metrics.text_scores import ScoredSet, TextScores
from distill.rewards import REWARDS, SCORES, ClipReward, text_scores
from distill.tiny import write_image_reward
from tests.distill.rewards.test_clip import WIDTH, write_clip
from tests.distill.rewards.test_hps import OpenClip

TEXTS = ["two", "a zero", "the digit one", "red", "blue"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = tmp_path_factory.mktemp("models")
    write_clip(folder / "ViT-g-14", act="gelu")
    (folder / "ir").mkdir()
    write_image_reward(folder / "ir")
    torch.manual_seed(0)
    state = {name: value.clone() for name, value in OpenClip(514, 16).state_dict().items()}
    save_file(state, folder / "hps.safetensors")
    save_file({"0.weight": torch.randn(1, WIDTH), "0.bias": torch.zeros(1)}, folder / "head.safetensors")
    clip, weights, reader = str(folder / "ViT-g-14"), str(folder / "hps.safetensors"), str(folder / "ir")
    return {
        "clip_score": {"clip": clip},
        "pick_score": {"clip": clip, "processor": clip},
        "hps": {"clip": clip, "weights": weights},
        "image_reward": {"weights": reader, "tokenizer": reader},
        "aesthetic": {"clip": clip, "head": str(folder / "head.safetensors")},
    }


def images() -> torch.Tensor:
    return torch.rand(5, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2


@pytest.mark.parametrize("score", SCORES)
def test_a_score_is_its_models_for_each_sample(score: str, models: dict[str, dict[str, str]]) -> None:
    """Whatever fits in a pass, clamped to [-1, 1], with its mean."""
    protocol, x = text_scores(score, at_once=2, **models[score]), images()
    judge = REWARDS[score](**models[score]).load()
    with torch.no_grad():
        one_by_one = torch.cat([judge(x[n : n + 1].clamp(-1, 1), None, TEXTS[n : n + 1]) for n in range(5)]).double()
    if score == "clip_score":
        assert bool((one_by_one < 0).any()) and bool((one_by_one > 0).any())
        one_by_one = one_by_one.clamp(min=0)
    found = protocol.score(x, TEXTS)
    assert found.each.dtype == torch.float64 and torch.allclose(found.each, one_by_one, atol=1e-4)
    assert found.mean == pytest.approx(float(one_by_one.mean()), abs=1e-4)
    assert found.error == pytest.approx(float(one_by_one.std()) / 5**0.5, abs=1e-4)
    moved = protocol.score(x, TEXTS[::-1]).each
    assert torch.allclose(moved, found.each) == (score == "aesthetic")
    parts = [protocol.score(x[:3], TEXTS[:3]), protocol.score(x[3:], TEXTS[3:])]
    assert torch.allclose(protocol.merge(parts).each, found.each, atol=1e-4)


def test_names_say_the_model(models: dict[str, dict[str, str]]) -> None:
    names = [text_scores(score, **models[score]).name for score in SCORES]
    assert names == [
        "clip_score(ViT-g-14)",
        "pick_score(ViT-g-14)",
        "hps(hps.safetensors)",
        "image_reward(ir)",
        "aesthetic(head.safetensors)",
    ]
    assert str(ScoredSet("hps(x)", torch.tensor([1.0, 2.0]))) == "hps(x) 1.5000 +- 0.5000 (2 samples)"


def test_what_cannot_be_scored(models: dict[str, dict[str, str]]) -> None:
    protocol = TextScores("s(m)", lambda images, cond, texts: images.flatten(1).mean(1))
    for call, line in (
        (lambda: protocol.score(images(), TEXTS[:4]), "s(m): 4 prompts given, expected one for each of 5 images"),
        (lambda: protocol.score(images()[:0], []), "s(m): no images"),
        (
            lambda: protocol.score(images()[:, :2], TEXTS),
            "s(m): images [5, 2, 24, 40] given, expected [N, 1 or 3, H, W]",
        ),
        (lambda: protocol.score(images() / 0, TEXTS), "images: 5 of 5 hold NaN or infinity, expected finite values"),
        (lambda: protocol.merge([]), "s(m): no parts"),
        (lambda: protocol.merge([ScoredSet("t", torch.ones(1))]), "s(m): a part is from t"),
        (
            lambda: text_scores("clip"),
            "score: must be one of clip_score, pick_score, hps, image_reward, aesthetic, got 'clip'",
        ),
        (lambda: text_scores("hps", **models["hps"], prompts=("a",)), "score: hps: prompts are given with the images"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert str(error.value) == line
    with pytest.raises(UserError, match=r"^score: clip_score: .*clip"):
        text_scores("clip_score")
    assert ClipReward is SCORES["clip_score"]
    assert Path(models["hps"]["weights"]).is_file()
