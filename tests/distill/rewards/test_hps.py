"""HPSv2 against open_clip's CLIP, in torch's own attention under open_clip's names of the weights."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from distill import UserError
from distill.rewards import HpsReward
from distill.rewards.hps import from_open_clip
from distill.rewards.prepare import CLIP_MEAN, CLIP_STD, fit_inside
from tests.distill.rewards.test_clip import SIZE, WIDTH, pictures, write_clip

TEXTS = ["two", "a zero, in red"]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), nn.MultiheadAttention(width, 2)
        parts = {"c_fc": nn.Linear(width, 2 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(2 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x).transpose(0, 1)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0].transpose(0, 1)
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width), Block(width)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Images(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((SIZE // 8) ** 2 + 1, width))
        self.conv1 = nn.Conv2d(3, width, 8, stride=8, bias=False)
        self.ln_pre, self.transformer, self.ln_post = nn.LayerNorm(width), Blocks(width), nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(x), 1, -1), patches], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(tokens))[:, 0]) @ self.proj  # type: ignore[no-any-return]


class OpenClip(nn.Module):
    def __init__(self, words: int, length: int, width: int = 16) -> None:
        super().__init__()
        self.visual, self.transformer = Images(width), Blocks(width)
        self.token_embedding, self.ln_final = nn.Embedding(words, width), nn.LayerNorm(width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.text_projection = nn.Parameter(torch.randn(width, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def forward(self, squares: Tensor, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        text = x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection
        return (normalize(self.visual(squares)) * normalize(text)).sum(1)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder, act="gelu")
    return folder


@pytest.fixture
def published(clip: Path) -> OpenClip:
    torch.manual_seed(5)
    return OpenClip(514, 16).eval()


def test_the_score_is_that_of_open_clip(clip: Path, published: OpenClip, tmp_path: Path) -> None:
    """From a file as it is published: a dict of several entries, one of which is the state dict."""
    torch.save({"epoch": 3, "name": "hps", "state_dict": published.state_dict()}, tmp_path / "HPS_v2_compressed.pt")
    reward = HpsReward(weights=str(tmp_path / "HPS_v2_compressed.pt"), clip=str(clip))
    assert reward.reads_texts
    score, (x, _) = reward.load(), pictures(3, 40, 64)
    x = x.requires_grad_()
    ids = score.texts.tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    expected, found = 100 * published(score.images.prepare(x), ids), score(x, None, TEXTS)
    assert float((expected[0] - expected[1]).detach().abs()) > 1
    assert torch.allclose(found, expected, atol=2e-4)
    (ours,), (theirs,) = (torch.autograd.grad(values.sum(), x) for values in (found, expected))
    assert bool(theirs.any()) and torch.allclose(ours, theirs, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in score.parameters())


def test_a_folder_holds_the_weights_under_the_published_name(clip: Path, published: OpenClip, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in published.state_dict().items()}
    save_file(state, tmp_path / "HPS_v2.1_compressed.safetensors")
    of_safetensors = HpsReward(weights=str(tmp_path), clip=str(clip)).load()
    torch.save(
        {"state_dict": {name: value.half() for name, value in state.items()}}, tmp_path / "HPS_v2.1_compressed.pt"
    )
    of_torch = HpsReward(weights=str(tmp_path), clip=str(clip)).load()
    x, _ = pictures(3, 32, 32)
    assert torch.allclose(of_safetensors(x, None, TEXTS), of_torch(x, None, TEXTS), atol=0.2)  # which are of 16 bits
    assert not torch.equal(of_safetensors(x, None, TEXTS), of_torch(x, None, TEXTS))


def test_images_are_padded_to_squares() -> None:
    """The longer side fits, the rest is black, and bicubic overshoots stay."""
    pixels = (pictures(3, 30, 60)[0] + 1) / 2
    square = fit_inside(pixels, 20)
    inner = interpolate(pixels, (10, 20), mode="bicubic", antialias=True)
    assert square.shape == (2, 3, 20, 20)
    assert torch.equal(square[:, :, 5:15], inner) and not square[:, :, :5].any() and not square[:, :, 15:].any()
    tall = fit_inside(pixels.transpose(2, 3), 20)
    assert torch.allclose(tall, square.transpose(2, 3), atol=1e-6)
    assert torch.equal(fit_inside(pixels[:, :, :20, :20], 20), pixels[:, :, :20, :20])
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1
    assert float(fit_inside(step, 20).max()) > 1
    assert (CLIP_MEAN[0], CLIP_STD[2]) == (0.48145466, 0.27577711)


def test_what_is_no_hps_is_refused(clip: Path, published: OpenClip, tmp_path: Path) -> None:
    state = dict(published.state_dict())

    def refusal(changed: object) -> str:
        torch.save(changed, tmp_path / "w.pt")
        with pytest.raises(UserError) as error:
            HpsReward(weights=str(tmp_path / "w.pt"), clip=str(clip)).load()
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix(f"reward.weights: '{tmp_path / 'w.pt'}': ")

    assert refusal(state | {"logit_bias": torch.ones(1)}) == "weights: 'logit_bias' is no weight of an open_clip CLIP"
    gate = {"transformer.resblocks.0.gate.weight": torch.ones(1)}
    assert refusal(state | gate) == "weights: 'gate.weight' is no weight of a layer of an open_clip CLIP"
    lacks = {name: value for name, value in state.items() if name != "visual.proj"}
    assert refusal(lacks) == "weights: they do not fit the model, first at visual_projection.weight"
    wide = {"text_projection": torch.ones(16, 5)}
    assert refusal(state | wide) == "weights: they do not fit the model, first at text_projection.weight"
    assert refusal([state]) == "expected tensors by name"
    with pytest.raises(UserError, match=r"^reward.weights: cannot read 'no/folder': "):
        HpsReward(weights="no/folder", clip=str(clip)).load()
    with pytest.raises(UserError, match=r"^reward.clip: '.*': expected the config.json of a CLIP$"):
        torch.save(state, tmp_path / "w.pt")
        HpsReward(weights=str(tmp_path / "w.pt"), clip=str(tmp_path)).load()


def test_every_name_of_the_model_is_made(published: OpenClip, clip: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    names = set(CLIPModel(CLIPConfig.from_pretrained(clip)).state_dict())
    assert set(from_open_clip(published.state_dict())) == names
