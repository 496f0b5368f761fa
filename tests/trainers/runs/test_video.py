"""A family of videos is one class: a tiny Wan trains, resumes, draws and leaves as its own pipeline."""

from pathlib import Path
from typing import Any

import datasets
import diffusers
import pytest
import torch
import transformers
from torch import Tensor

import trainers
from distill.conditions import Condition
from distill.discriminator import feature_shape
from distill.encoders.autoencoder import DiffusersAutoencoder
from distill.teachers.families import FAMILIES
from distill.teachers.families.family import Conditions, LatentFamily
from distill.tiny.parts import t5
from tests.tiny import recipe

FRAMES, LATENT_FRAMES = 5, 2  # the autoencoder halves the frames twice, and keeps the first


class WanAutoencoder(DiffusersAutoencoder):
    """The autoencoder of Wan: videos [B, 3, 4 f - 3, 8 h, 8 w] to latents [B, 16, f, h, w]."""

    classes = ("AutoencoderKLWan",)

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        _, frames, height, width = shape
        return 3, 4 * (frames - 1) + 1, 8 * height, 8 * width


class Wan(LatentFamily):
    """Wan 2.1 (arXiv:2503.20314): a rectified flow of the latents of a video, with the embeddings of UMT5."""

    pipelines = ("WanPipeline",)
    network_class = "WanTransformer3DModel"
    output = "frames"

    def __init__(self, model: Any, **choices: Any) -> None:
        super().__init__(model, **choices)
        self.shape = (self.channels, LATENT_FRAMES, *self.size)

    @property
    def patch(self) -> int:
        return int(self.config["patch_size"][1])

    @property
    def depth(self) -> int:
        return len(self.model.blocks)

    def default_size(self) -> tuple[int, int]:
        return 4, 2

    def find_taps(self) -> dict[str, str]:
        return {"middle": (middle := f"model.blocks.{self.depth // 2}"), "encoder": middle}

    def tapped(self, output: Any, size: tuple[int, ...]) -> Tensor:
        grid = size[0], *(side // self.patch for side in size[1:])
        return output.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-any-return]

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"prompt": (512, self.config["text_dim"])}

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        return self.evaluate(x, time, self.embeddings(x, cond)["prompt"])

    def call(self) -> dict[str, Any]:
        return {**super().call(), "num_frames": FRAMES}

    def open_autoencoder(self, folder: Path) -> DiffusersAutoencoder:
        return WanAutoencoder(folder, channels=self.shape[0])

    @classmethod
    def pixels_per_latent(cls, folder: Path) -> int:
        return 8

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        return {"prompt": pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)[0]}


@pytest.fixture
def wan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a tiny random Wan, whose family is known."""
    monkeypatch.setitem(FAMILIES, "WanPipeline", Wan)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    torch.manual_seed(0)
    tokenizer, _ = t5()
    texts = {"vocab_size": len(tokenizer), "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    network = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "freq_dim": 32, "ffn_dim": 32}
    diffusers.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.UMT5EncoderModel(transformers.UMT5Config(**texts)),
        vae=diffusers.AutoencoderKLWan(base_dim=4, num_res_blocks=1, dim_mult=[1, 1, 1, 1]),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=diffusers.WanTransformer3DModel(**network, num_layers=2, rope_max_seq_len=32),
    ).save_pretrained(tmp_path / "wan")
    return tmp_path / "wan"


def test_a_family_of_videos(wan: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    settings = recipe(
        wan,
        objective="fgm",
        data={"name": "prompts", "path": str(tmp_path / "prompts.txt")},
        cache=str(tmp_path / "cache"),
        entry={"t": 1.0},
        images=8,
        batch_size=4,
        log_every=4,
        checkpoint_every=4,
        samples_every=8,
    )
    trained = trainers.train(settings, tmp_path / "run")
    assert trained.teacher is not None and trained.teacher.network.shape == (16, 2, 4, 2)
    assert feature_shape(trained.teacher, "middle") == (24, 2, 2, 1)  # what a discriminator reads
    assert trained.sample(2, prompts=["a cat"]).shape == (2, 3, FRAMES, 32, 16)
    assert (tmp_path / "run/samples").is_dir()
    assert trained.export() < 1e-4
    card = (tmp_path / "run/export/README.md").read_text()
    assert "num_frames=5" in card and ").frames" in card
    assert trained.export(format="safetensors") < 1e-4
    assert trainers.resume(tmp_path / "run", images=16).images == 16
