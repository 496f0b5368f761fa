"""CLIP's rewards against transformers' own CLIP and image processor, on a tiny random model made offline."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from distill import UserError
from distill.rewards import AestheticReward, ClipReward, PickReward
from tests.distill.rewards.test_label_likelihood import teacher

SIZE, WIDTH = 32, 12
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
PROMPTS = ("a zero", "the digit one", "two")


def write_clip(folder: Path, act: str = "quick_gelu") -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)
    blocks: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    blocks |= {"num_attention_heads": 2, "hidden_act": act}
    text = blocks | {"vocab_size": len(words), "max_position_embeddings": 16}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = blocks | {"image_size": SIZE, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text | ends, vision_config=vision, projection_dim=WIDTH))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"image_processor_type": "CLIPImageProcessor", "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


def pictures(channels: int, height: int, width: int) -> tuple[Tensor, list[Image.Image]]:
    """Smooth images in 256 levels, [2, C, H, W] in [-1, 1], and as PIL images; short of black and white, where the
    processor also clamps between its passes."""
    grid = torch.linspace(0, 6, height)[:, None] + torch.linspace(0, 4, width)
    x = torch.stack([torch.stack([0.8 * (grid + shift + c).sin() for c in range(channels)]) for shift in (0.0, 2.0)])
    levels = ((x + 1) * 127.5).round()
    arrays = levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    return levels / 127.5 - 1, [Image.fromarray(array) for array in arrays]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 48, 48), (3, 40, 64), (3, 70, 45), (3, 32, 32)], ids=str)
def test_images_are_prepared_as_by_clips_processor(shape: tuple[int, int, int], clip: Path) -> None:
    """To its rounding to 8 bits after each of two passes."""
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = processing.CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD
    )
    x, images = pictures(*shape)
    theirs = torch.from_numpy(np.stack(processor(images)["pixel_values"]))
    ours = ClipReward(clip=str(clip), prompts=PROMPTS).load().images.prepare(x)
    assert ours.shape == theirs.shape == (2, 3, SIZE, SIZE)
    levels = 255 * (ours - theirs).abs() * torch.tensor(STD)[:, None, None]
    assert float(levels.max()) < 1.3 and float(levels.mean()) < 0.4


def test_the_clip_score_is_the_models_own(clip: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    reward, (x, _) = ClipReward(clip=str(clip), prompts=PROMPTS).load(), pictures(3, 48, 48)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    tokens = tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, pixel_values=reward.images.prepare(x)).logits_per_image / model.logit_scale.exp()
    labels = torch.tensor([2, 1])
    assert torch.allclose(reward(x, labels), 100 * logits[torch.arange(2), labels], rtol=1e-4)
    alone = ClipReward(clip=str(clip), prompts=PROMPTS[1:2]).load()
    assert torch.allclose(alone(x, None), 100 * logits[:, 1], rtol=1e-4)


def test_the_clip_score_of_prompts_as_they_are_written(clip: Path) -> None:
    """Equal to that of prompts by class, and to transformers' own with its padding and its mask."""
    from transformers import CLIPModel, CLIPTokenizer

    reward, (x, _) = ClipReward(clip=str(clip)), pictures(3, 48, 48)
    assert reward.reads_texts and not ClipReward(clip=str(clip), prompts=PROMPTS).reads_texts
    score, texts = reward.load(), ["two", "a prompt of more than the sixteen tokens that are read"]
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        cosines = model(**tokens, pixel_values=score.images.prepare(x)).logits_per_image / model.logit_scale.exp()
    assert torch.allclose(score(x, None, texts), 100 * cosines.diagonal(), rtol=1e-4)
    kept = ClipReward(clip=str(clip), prompts=PROMPTS).load()
    assert torch.allclose(score(x, None, ["two", "a zero"]), kept(x, torch.tensor([2, 0])), rtol=1e-5)
    with pytest.raises(UserError, match=r"^ClipScore: needs a text for each image$"):
        score(x, torch.tensor([2, 0]))


def test_pick_score_is_the_models_own_logit(clip: Path, tmp_path: Path) -> None:
    """As README.md of github.com/yuvalkirstain/PickScore computes it, its processor in a folder of its own."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        model.logit_scale.fill_(4.5)
    model.save_pretrained(tmp_path / "pick")
    score, (x, _) = PickReward(clip=str(tmp_path / "pick"), processor=str(clip)).load(), pictures(3, 40, 64)
    tokens = CLIPTokenizer.from_pretrained(clip)(["two", "a zero"], padding=True, return_tensors="pt")
    x = x.requires_grad_()
    logits = model.eval()(**tokens, pixel_values=score.images.prepare(x)).logits_per_image.diagonal()
    found = score(x, None, ["two", "a zero"])
    assert torch.allclose(found, logits, rtol=1e-4) and float((logits.detach().abs() / 90).max()) < 1.01
    (ours,), (theirs,) = (torch.autograd.grad(values.sum(), x) for values in (found, logits))
    assert bool(theirs.any()) and torch.allclose(ours, theirs, atol=1e-5)
    with pytest.raises(UserError, match=r"^reward.processor: cannot read '.*pick': "):
        PickReward(clip=str(tmp_path / "pick"), processor=str(tmp_path / "pick")).load()


def test_it_rises_along_its_gradient_and_is_frozen(clip: Path) -> None:
    reward, (x, _) = ClipReward(clip=str(clip), prompts=PROMPTS).load(), pictures(1, 8, 8)
    x, labels = x.requires_grad_(), torch.tensor([0, 2])
    before = reward(x, labels)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    assert bool((reward(x + 1e-3 * gradient / gradient.abs().max(), labels) > before).all())
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert reward.double()(x.double(), labels).dtype == torch.float64


def test_the_aesthetic_head(clip: Path, tmp_path: Path) -> None:
    """Linear layers in the order of their numbers, on the unit embedding."""
    torch.manual_seed(3)
    sizes = {"layers.2": (4, 6), "layers.10": (1, 4), "layers.0": (6, WIDTH)}
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in sizes.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in sizes.items()}
    save_file(weights, tmp_path / "head.safetensors")
    reward = AestheticReward(clip=str(clip), head=str(tmp_path / "head.safetensors")).load()
    x, _ = pictures(3, 32, 32)
    features = reward.images(x)
    assert torch.allclose(features.norm(dim=1), torch.ones(2))
    for name in ("layers.0", "layers.2", "layers.10"):
        features = features @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    assert torch.allclose(reward(x, torch.tensor([0, 1])), features[:, 0], rtol=1e-4)


def test_code_beside_a_tokenizer_is_neither_run_nor_asked_about(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks in the terminal where nobody has said whether a tokenizer's own code may run."""
    folder = Path(shutil.copytree(clip, tmp_path / "clip"))
    (folder / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    file, asked = folder / "tokenizer_config.json", []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    settings = json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["strange.Net", None]}}
    for kind in ("CLIPTokenizer", "StrangeTokenizer"):
        file.write_text(json.dumps(settings | {"tokenizer_class": kind}))
        with contextlib.suppress(UserError):  # refused where transformers has no class of this name
            ClipReward(clip=str(folder), prompts=PROMPTS).load()
    assert not asked and not (tmp_path / "ran").exists()


def test_what_cannot_be_judged_or_read(clip: Path, tmp_path: Path) -> None:
    def refusal(call: object, *arguments: object) -> str:
        with pytest.raises(UserError) as error:
            call(*arguments)  # type: ignore[operator]
        assert "\n" not in str(error.value)
        return str(error.value)

    reward = ClipReward(clip=str(clip), prompts=PROMPTS)
    reward.check(teacher())
    ClipReward(clip=str(clip), prompts=PROMPTS[:1]).check(teacher(classes=0))
    assert refusal(reward.check, teacher(shape=(4, 8, 8))) == (
        "reward: clip_score judges images of 1 or 3 channels, the teacher's have 4"
    )
    assert refusal(reward.check, teacher(shape=(3, 5, 8, 8))) == (
        "reward: clip_score judges images (C, H, W), the teacher makes (3, 5, 8, 8)"
    )
    assert refusal(reward.check, teacher(classes=10)) == (
        "reward.prompts: must be one a class (one for an unconditional teacher), 3 given, the teacher has 10 classes"
    )
    of_prompts = teacher(classes=0)
    of_prompts.network.text_encoder = object()  # type: ignore[assignment]
    ClipReward(clip=str(clip)).check(of_prompts)
    assert refusal(reward.check, of_prompts) == (
        "reward.prompts: leave them out; the teacher takes prompts, and each image has its own"
    )
    assert refusal(ClipReward(clip=str(clip)).check, teacher(classes=0)) == (
        "reward.prompts: must be one a class (one for an unconditional teacher), 0 given, the teacher has 0 classes"
    )
    assert "latents and have no decoder" in refusal(reward.check, teacher(latents=True))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(ClipReward(clip=str(empty), prompts=PROMPTS).load).startswith(
        f"reward.clip: cannot read '{empty}': "
    )
    missing = str(tmp_path / "no.safetensors")
    assert refusal(AestheticReward(clip=str(clip), head=missing).load).startswith(
        f"reward.head: cannot read '{missing}'"
    )
    wide = str(tmp_path / "wide.safetensors")
    save_file({"0.weight": torch.ones(2, WIDTH), "0.bias": torch.ones(2)}, wide)
    assert refusal(AestheticReward(clip=str(clip), head=wide).load) == (
        f"reward.head: '{wide}': the layers end in 2 numbers, expected one"
    )
