"""The text encoder of a pipeline: its identity, its null condition, and when it is in memory."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill import UserError
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.teachers import load_denoiser
from distill.teachers.families.sdxl import SDXL
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


def test_identity_is_of_what_encodes(pipelines: Folder, tmp_path: Path) -> None:
    """A safety checker or a version in the index leaves the embeddings in the cache good. Other parts do not."""
    folder = shutil.copytree(pipelines("sdxl"), tmp_path / "sdxl")
    index, before = folder / "model_index.json", text_encoder(folder).identity
    content = json.loads(index.read_text())
    same = {"_diffusers_version": "9", "safety_checker": [None, None], "vae": ["diffusers", "AutoencoderTiny"], "x": 1}
    index.write_text(json.dumps(dict(reversed((content | same).items())), indent=4))
    assert text_encoder(folder).identity == before
    changes = {
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "GPT2Tokenizer"],
        "force_zeros_for_empty_prompt": False,
        "_class_name": "StableDiffusionPipeline",
    }
    found = {before}
    for key, value in changes.items():
        assert content[key] != value
        index.write_text(json.dumps(content | {key: value}))
        found.add(PipelineTextEncoder(folder, SDXL).identity)
    index.write_text(json.dumps(content))
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    assert len(found | {text_encoder(folder).identity}) == 6


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "text_encoder_2", "scheduler"])
def test_a_part_of_a_strange_library_is_not_imported(
    part: str, pipelines: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a module on the Python path, nor one of the standard library, nor a file in the part's own folder."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    folder = shutil.copytree(pipelines("sdxl"), tmp_path / "sdxl")
    for file in (tmp_path / "site" / "strange_part.py", folder / part / "inside.py"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Part: pass\n")
    content = json.loads((folder / "model_index.json").read_text())
    for library in ("strange_part", "this", "inside"):
        (folder / "model_index.json").write_text(json.dumps(content | {part: [library, "Part"]}))
        with pytest.raises(UserError) as refused:
            PipelineTextEncoder(folder, SDXL).encode(["a cat"])
        assert "\n" not in str(refused.value) and library in str(refused.value)
        assert library not in sys.modules and not (tmp_path / "ran").exists()


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
