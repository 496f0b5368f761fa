"""ImageReward against BLIP as it is published, in plain torch, under the published names of the weights."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from distill import UserError
from distill.rewards import ImageReward
from distill.rewards.image_reward import MEAN, STD
from distill.tiny import write_image_reward
from distill.tiny.rewards import LAYERS, PATCH, SIZE, WIDTH
from tests.distill.rewards.test_clip import pictures

PROMPTS = ["a red cube", "two", "a long prompt " * 9]  # the last has more than 35 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_reward")
    write_image_reward(folder)
    return folder


def settings(folder: Path) -> dict[str, str]:
    return {"weights": str(folder), "tokenizer": str(folder)}


class Published:
    """BLIP's image and text encoders with ImageReward's head, for one attention head."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: value.double() for name, value in state.items()}

    def __call__(self, squares: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        image = self.image(squares.double())
        hidden = self.words(ids)
        hidden = self.norm("blip.text_encoder.embeddings.LayerNorm", hidden, 1e-12)
        for number in range(LAYERS):
            layer = f"blip.text_encoder.encoder.layer.{number}"
            hidden = self.attend(f"{layer}.attention", hidden, hidden, mask)
            hidden = self.attend(f"{layer}.crossattention", hidden, image)
            inner = self.linear(f"{layer}.output.dense", gelu(self.linear(f"{layer}.intermediate.dense", hidden)))
            hidden = self.norm(f"{layer}.output.LayerNorm", inner + hidden, 1e-12)
        score = hidden[:, 0]
        for number in (0, 2, 4):
            score = self.linear(f"mlp.layers.{number}", score)
        return (score[:, 0] - MEAN) / STD

    def image(self, squares: Tensor) -> Tensor:
        state, name = self.state, "blip.visual_encoder"
        weight, bias = state[f"{name}.patch_embed.proj.weight"], state[f"{name}.patch_embed.proj.bias"]
        patches = torch.nn.functional.conv2d(squares, weight, bias, stride=PATCH).flatten(2).transpose(1, 2)
        x = torch.cat([state[f"{name}.cls_token"].expand(len(squares), 1, -1), patches], 1) + state[f"{name}.pos_embed"]
        for number in range(LAYERS):
            block = f"{name}.blocks.{number}"
            query, key, value = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
            x = x + self.linear(f"{block}.attn.proj", attention(query, key, value))
            x = x + self.linear(
                f"{block}.mlp.fc2", gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            )
        return self.norm(f"{name}.norm", x, 1e-6)

    def words(self, ids: Tensor) -> Tensor:
        name = "blip.text_encoder.embeddings"
        positions = self.state[f"{name}.position_embeddings.weight"][: ids.shape[1]]
        return self.state[f"{name}.word_embeddings.weight"][ids] + positions

    def attend(self, name: str, hidden: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = (
            self.linear(f"{name}.self.{part}", given)
            for part, given in (("query", hidden), ("key", seen), ("value", seen))
        )
        out = self.linear(f"{name}.output.dense", attention(query, key, value, mask))
        return self.norm(f"{name}.output.LayerNorm", out + hidden, 1e-12)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        return layer_norm(x, (WIDTH,), self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(mask[:, None] == 0, -torch.inf)
    return scores.softmax(-1) @ value


def test_the_score_is_that_of_the_published_model(folder: Path) -> None:
    score, (x, _) = ImageReward(**settings(folder)).load(), pictures(3, 40, 24)
    x = torch.cat([x, x[:1].flip(3)])
    tokens = score.read(PROMPTS)
    assert tokens["ids"].shape == (3, 35) and tokens["mask"].sum(1).tolist()[1:] == [5, 35]
    assert tokens["ids"][2, -1] == score.tokenizer.sep_token_id
    expected = Published(load_file(folder / "ImageReward.safetensors"))(score.prepare(x), tokens["ids"], tokens["mask"])
    assert float(expected.std()) > 0.03
    assert torch.allclose(score(x, None, PROMPTS).double(), expected, atol=1e-5)
    assert torch.allclose(score.double()(x.double(), None, PROMPTS), expected, atol=1e-6)


def test_pictures_are_cut_as_by_torchvision(folder: Path) -> None:
    """PIL's bicubic resize and the middle square, to its rounding to 8 bits."""
    score = ImageReward(**settings(folder)).load()
    for height, width in ((16, 16), (48, 16), (23, 16), (40, 31)):
        x, images = pictures(3, height, width)
        shorter = min(height, width)
        sides = int(SIZE * width / shorter), int(SIZE * height / shorter)
        left, top = (round((side - SIZE) / 2) for side in sides)
        cuts = [
            one.resize(sides, Image.Resampling.BICUBIC).crop((left, top, left + SIZE, top + SIZE)) for one in images
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(one) for one in cuts])).permute(0, 3, 1, 2) / 255
        ours = score.prepare(x) * score.prepare.std + score.prepare.mean
        assert ours.shape == pixels.shape
        assert float((255 * (ours - pixels)).abs().max()) < 1.5


def test_the_gradient_reaches_the_image_and_padding_is_not_read(folder: Path) -> None:
    score, (x, _) = ImageReward(**settings(folder)).load(), pictures(1, 16, 16)
    x = x.requires_grad_()
    before = score(x, None, PROMPTS[:2])
    (gradient,) = torch.autograd.grad(before.sum(), x)
    assert bool((score(x + 1e-3 * gradient / gradient.abs().max(), None, PROMPTS[:2]) > before).all())
    assert not any(parameter.requires_grad for parameter in score.parameters())
    text = score.read(PROMPTS[:2])
    other = text | {"ids": torch.where(text["mask"] == 0, 7, text["ids"])}
    assert torch.equal(score.judge(x, text), score.judge(x, other))
    assert not torch.allclose(score.judge(x, text), score.judge(x, text | {"ids": text["ids"].flip(0)}))


def test_prompts_of_classes(folder: Path) -> None:
    prompts, (x, _) = ("one", "two", "three"), pictures(3, 16, 16)
    kept, score = ImageReward(**settings(folder), prompts=prompts), ImageReward(**settings(folder)).load()
    assert not kept.reads_texts and ImageReward().reads_texts
    assert torch.equal(kept.load()(x, torch.tensor([2, 0])), score(x, None, ["three", "one"]))


def test_a_file_of_torch_is_read_and_runs_no_code(folder: Path, tmp_path: Path) -> None:
    state, (x, _) = load_file(folder / "ImageReward.safetensors"), pictures(3, 16, 16)
    positions = {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}
    torch.save(state | positions, tmp_path / "ImageReward.pt")
    found = ImageReward(weights=str(tmp_path), tokenizer=str(folder)).load()(x, None, PROMPTS[:2])
    assert torch.equal(found, ImageReward(**settings(folder)).load()(x, None, PROMPTS[:2]))

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"x": Runs()}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"^reward.weights: cannot read '.*bad.pt': "):
        ImageReward(weights=str(tmp_path / "bad.pt"), tokenizer=str(folder)).load()
    assert not (tmp_path / "ran").exists()


def test_what_is_no_image_reward_is_refused(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "ImageReward.safetensors")
    file = tmp_path / "ImageReward.safetensors"

    def refusal(changed: dict[str, Tensor]) -> str:
        save_file(changed, file)
        with pytest.raises(UserError) as error:
            ImageReward(weights=str(tmp_path), tokenizer=str(folder)).load()
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix(f"reward.weights: '{tmp_path}': ")

    head = {name: value for name, value in state.items() if not name.startswith("mlp.")}
    assert refusal(head) == "no weight of mlp.layers.*, so this is no ImageReward"
    assert refusal({"a": torch.ones(1)}) == "no weight of blip.visual_encoder.*, so this is no ImageReward"
    norm = "blip.text_encoder.encoder.layer.1.output.LayerNorm.bias"
    assert refusal({name: value for name, value in state.items() if name != norm}).startswith(
        "weights: they do not fit the model, first at encoder.layer.1.output.LayerNorm.bias"
    )
    assert "not finite" in refusal(state | {norm: torch.full((WIDTH,), torch.nan)})
    strange = {"blip.visual_encoder.blocks.0.gate.weight": torch.ones(1)}
    assert refusal(state | strange) == "weights: 'blocks.0.gate.weight' is no weight of BLIP's image encoder"
    with pytest.raises(UserError) as error:
        ImageReward(weights=str(tmp_path.parent), tokenizer=str(folder)).load()
    assert str(error.value) == (
        f"reward.weights: '{tmp_path.parent}' holds neither ImageReward.pt nor ImageReward.safetensors"
    )
    with pytest.raises(UserError, match=r"^reward.tokenizer: cannot read "):
        ImageReward(weights=str(folder), tokenizer=str(tmp_path)).load()
