"""Pipelines in the forms in which people hold them: loaded, or refused in one line that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import UserError
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.teachers import check_pipeline, load_denoiser
from distill.teachers.families import FAMILIES

Folder = Callable[[str], Path]
UNET = "unet/diffusion_pytorch_model"


@pytest.fixture
def sd(pipelines: Folder, tmp_path: Path) -> Path:
    shutil.copytree(pipelines("sd15"), tmp_path / "sd")
    return tmp_path / "sd"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(folder: Path, imported: bool = True) -> str:
    """Return the one line with which the folder is refused by the import, or as a teacher."""
    with pytest.raises(UserError) as error:
        check_pipeline(folder)
        load_denoiser(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)


def halve(folder: Path, variant: str = "fp16") -> None:
    """Give every part of a pipeline float16 weights under the name of a variant alone."""
    for file in list(folder.rglob("*.safetensors")):
        half = {name: value.half() if value.is_floating_point() else value for name, value in load_file(file).items()}
        save_file(half, file.with_suffix(f".{variant}.safetensors"), {"format": "pt"})
        file.unlink()


def test_weights_of_a_variant_alone(sd: Path, pipelines: Folder) -> None:
    """Network, autoencoder and text encoder are read from *.fp16.safetensors, into float32."""
    halve(sd)
    check_pipeline(sd)
    loaded, exact = load_denoiser(sd), load_denoiser(pipelines("sd15"))
    for name, value in exact.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    ours, theirs = (
        PipelineTextEncoder(folder, FAMILIES["StableDiffusionPipeline"]).encode(["a red cat"])["prompt"]
        for folder in (sd, pipelines("sd15"))
    )
    assert ours.dtype == torch.float32 and float((ours - theirs).abs().max()) < 0.05
    decoder = loaded.network.autoencoder
    assert decoder is not None and decoder.decode(torch.zeros(1, 4, 8, 8)).dtype == torch.float32


def test_weights_without_a_variant_come_first(sd: Path, pipelines: Folder) -> None:
    shutil.copyfile(sd / f"{UNET}.safetensors", sd / f"{UNET}.non_ema.safetensors")
    edited = load_file(sd / f"{UNET}.non_ema.safetensors")
    save_file({name: 0 * value for name, value in edited.items()}, sd / f"{UNET}.non_ema.safetensors")
    exact = load_denoiser(pipelines("sd15")).state_dict()
    assert all(torch.equal(value, exact[name]) for name, value in load_denoiser(sd).state_dict().items())


def test_several_variants(sd: Path) -> None:
    (sd / f"{UNET}.safetensors").rename(sd / f"{UNET}.fp16.safetensors")
    shutil.copyfile(sd / f"{UNET}.fp16.safetensors", sd / f"{UNET}.non_ema.safetensors")
    assert refusal(sd).endswith(
        "holds diffusion_pytorch_model.fp16.safetensors, diffusion_pytorch_model.non_ema.safetensors; keep the one that"
        " you want"
    )


def lora(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"unet.mid_block.attentions.0.to_q.lora_A.weight": torch.ones(2, 2)}, folder / name)


FORMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickles alone": (
        lambda sd: (sd / f"{UNET}.safetensors").rename(sd / f"{UNET}.bin"),
        "diffusion_pytorch_model.bin is a pickle, which may run code; where you trust it, write it anew: diffusers.",
    ),
    "another name": (
        lambda sd: (sd / f"{UNET}.safetensors").rename(sd / "unet/model.safetensors"),
        "it holds model.safetensors, and no diffusion_pytorch_model.safetensors",
    ),
    "no weights": (lambda sd: (sd / f"{UNET}.safetensors").unlink(), "no .safetensors file; download the whole model"),
    "no vae": (lambda sd: shutil.rmtree(sd / "vae"), ": vae/ is missing; download the whole pipeline again"),
    "no unet": (lambda sd: shutil.rmtree(sd / "unet"), ": unet/ is missing; download"),
    "no scheduler": (lambda sd: shutil.rmtree(sd / "scheduler"), ": scheduler/ is missing; download"),
    "no tokenizer": (lambda sd: shutil.rmtree(sd / "tokenizer"), ": tokenizer/ is missing; download"),
    "no text encoder": (lambda sd: shutil.rmtree(sd / "text_encoder"), ": text_encoder/ is missing; download"),
    "a null text encoder": (
        lambda sd: (
            edit(sd / "model_index.json", text_encoder=[None, None]),
            shutil.rmtree(sd / "text_encoder"),
        ),
        ": text_encoder/ is missing; download",
    ),
    "a LoRA beside the parts": (
        lambda sd: lora(sd, "pytorch_lora_weights.safetensors"),
        "pytorch_lora_weights.safetensors is an adapter, which a teacher does not load; merge it into the network",
    ),
    "a LoRA of another name": (lambda sd: lora(sd, "my_style.safetensors"), "my_style.safetensors is an adapter"),
    "a LoRA in the network": (lambda sd: lora(sd / "unet", "x.safetensors"), "unet/x.safetensors is an adapter"),
    "a LoRA in a part": (
        lambda sd: lora(sd / "text_encoder", "y.safetensors"),
        "text_encoder/y.safetensors is an adapter",
    ),
    "a LoRA in a folder": (lambda sd: lora(sd / "loras", "z.safetensors"), "loras/z.safetensors is an adapter"),
    "a LoRA of PEFT": (
        lambda sd: lora(sd / "unet/default", "adapter_model.safetensors"),
        "unet/default/adapter_model.safetensors is an adapter",
    ),
    "a word": (
        lambda sd: save_file({"emb_params": torch.ones(1, 16)}, sd / "cat.safetensors"),
        "cat.safetensors is an adapter",
    ),
    "no index": (
        lambda sd: (sd / "model_index.json").unlink(),
        "holds no model_index.json; ",
    ),
    "an own pipeline": (
        lambda sd: edit(sd / "model_index.json", _class_name=["pipeline", "MyPipeline"]),
        "... (10 in all, which docs/teachers.md lists), got ['pipeline', 'MyPipeline']",
    ),
    "no class of a pipeline": (lambda sd: edit(sd / "model_index.json", _class_name={"a": 1}), "got {'a': 1}"),
    "no size": (
        lambda sd: edit(sd / "unet/config.json", sample_size=None),
        "sample_size must be one number in the config of the unet, got None; state the pixels to a side by --res",
    ),
    "a size in words": (lambda sd: edit(sd / "unet/config.json", sample_size="8"), "sample_size must be one number"),
    "channels in words": (lambda sd: edit(sd / "unet/config.json", in_channels="four"), "cannot read"),
    "blocks that are no list": (lambda sd: edit(sd / "vae/config.json", block_out_channels=8), "lists no blocks"),
    "an index that is nested deep": (
        lambda sd: (sd / "model_index.json").write_text("[" * 200_000),
        "model_index.json' is damaged: it is no JSON: recursion limit exceeded",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_line_says_what_to_do(form: str, sd: Path) -> None:
    change, message = FORMS[form]
    change(sd)
    assert message in refusal(sd)


def test_a_size_may_be_stated(sd: Path) -> None:
    edit(sd / "unet/config.json", sample_size=None)
    (sd / "distill.json").write_text('{"resolution": 16}')
    assert load_denoiser(sd).network.shape == (4, 8, 8)


def test_a_network_alone(sd: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    (sd / "unet").rename(tmp_path / "checkpoint-500" / "unet_ema")
    with pytest.raises(UserError) as error:
        check_pipeline(tmp_path / "checkpoint-500")
    assert "unet_ema' is a network alone (UNet2DConditionModel); put it into the pipeline that it" in str(error.value)


def test_files_in_place_of_folders(sd: Path, tmp_path: Path) -> None:
    one, adapter, text = tmp_path / "model.safetensors", tmp_path / "style.safetensors", tmp_path / "notes.txt"
    shutil.copyfile(sd / f"{UNET}.safetensors", one)
    lora(tmp_path, adapter.name)
    text.write_text("")
    for file, message in (
        (one, "is one file; diffusers makes a folder of it"),
        (adapter, "is an adapter; load it into its pipeline, and merge it: pipe.fuse_lora()"),
        (text, "is a file; a teacher is a folder"),
    ):
        with pytest.raises(UserError) as error:
            load_denoiser(file)
        assert str(error.value).startswith(f"teacher: '{file}' {message}")


@pytest.mark.parametrize("size", [None, "8", 0, [8], [8, 8, 8], 8.5])
def test_pixels_without_a_size(size: Any, pipelines: Folder, tmp_path: Path) -> None:
    shutil.copytree(pipelines("ddpm"), tmp_path / "ddpm")
    edit(tmp_path / "ddpm/unet/config.json", sample_size=size)
    assert "unet: sample_size must be one or two numbers in its config.json" in refusal(tmp_path / "ddpm")
    edit(tmp_path / "ddpm/unet/config.json", sample_size=[8, 4])
    assert load_denoiser(tmp_path / "ddpm").network.shape == (3, 8, 4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scaling_factor", float("nan")),
        ("scaling_factor", 0),
        ("scaling_factor", -0.18),
        ("scaling_factor", "0.18215"),
        ("scaling_factor", None),
        ("scaling_factor", True),
        ("scaling_factor", 10**400),
        ("shift_factor", float("inf")),
        ("shift_factor", [0.1]),
        ("latents_mean", 0.5),
        ("latents_mean", ["0", "0", "0", "0"]),
        ("latents_std", [1.0, 0.0, 1.0, 1.0]),
    ],
)
def test_numbers_of_an_autoencoder(key: str, value: Any, sd: Path) -> None:
    edit(sd / "vae/config.json", **{key: value})
    assert f": vae: {key}: must be a " in refusal(sd)


@pytest.mark.parametrize(("value", "shown"), [("Infinity", "inf"), ("1e6", "1000000.0"), ("NaN", "nan"), ("0", "0")])
def test_guidance_is_within_reason(value: str, shown: str, sd: Path) -> None:
    (sd / "distill.json").write_text(f'{{"guidance": {value}, "resolution": 16}}')
    assert f"distill.json: guidance: must be positive or null, got {shown}" in refusal(sd)
