"""The text encoder of a pipeline: its identity, its null condition, and when it is in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill import UserError
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.teachers import load_denoiser
from distill.teachers.pipeline import family_of

Folder = Callable[[str], Path]


def text_encoder(folder: Path) -> PipelineTextEncoder:
    return PipelineTextEncoder(folder, family_of(folder))


def test_identities_tell_encoders_apart(pipelines: Folder) -> None:
    networks = [load_denoiser(pipelines(name)).network for name in ("sd15", "sdxl", "sd3")]
    assert len({network.text_encoder.identity for network in networks if network.text_encoder}) == 3
    assert len({network.autoencoder.identity for network in networks if network.autoencoder}) >= 2
    with pytest.raises(UserError, match=r": a DDPM takes no prompts$"):
        text_encoder(pipelines("ddpm"))


def test_sdxls_null_is_zeros_where_the_checkpoint_says_so(pipelines: Folder) -> None:
    null = text_encoder(pipelines("sdxl")).encode_null()
    assert all(not value.any() for value in null.values())


def test_it_is_loaded_at_its_first_use_and_freed(pipelines: Folder) -> None:
    """The identity needs no weights; the encoder that is read again gives the same embeddings."""
    encoder = text_encoder(pipelines("sd15"))
    assert encoder.identity and encoder._pipe is None
    first = encoder.encode(["a cat", "a dog"])["prompt"]
    assert encoder._pipe is not None and not first.requires_grad and not torch.equal(first[0], first[1])
    assert encoder._pipe.unet is None and encoder._pipe.vae is None
    encoder.free()
    assert encoder._pipe is None
    assert torch.equal(encoder.encode(["a dog"])["prompt"][0], first[1])
