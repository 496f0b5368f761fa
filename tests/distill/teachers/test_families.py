"""A pipeline's folder is the teacher that the pipeline itself samples: asked the same, and read to the same x0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import Condition, Denoiser, UserError
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.paths import DiscreteVP
from distill.pipeline_folder import load_stock_pipeline
from distill.teachers import load_denoiser
from distill.teachers.families import LatentFamily
from distill.teachers.pipeline import family_of
from tests.pipelines import PIPELINES

Folder = Callable[[str], Path]
PROMPT = "a red cat"
TEXT = [name for name in PIPELINES if not name.startswith(("ddpm", "dit"))]
LATENT = [name for name in PIPELINES if not name.startswith("ddpm")]


def text_encoder(folder: Path) -> PipelineTextEncoder:
    return PipelineTextEncoder(folder, family_of(folder))


def condition(name: str, folder: Path, count: int = 2) -> Condition:
    """Return the condition of one prompt, or of class 3, for `count` samples."""
    if name not in TEXT:
        return Condition(labels=torch.full((count,), 3)) if name == "dit" else Condition()
    return Condition(text_encoder(folder).encode([PROMPT])).map(lambda value: value.expand(count, *value.shape[1:]))


def recorded(name: str, folder: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (x, the time that the network was given, output) at each step of the stock pipeline.

    It is called as users do, but for the guidance.
    """
    pipe, seen = load_stock_pipeline(folder), []
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def look(module: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        x = given["hidden_states"] if "hidden_states" in given else args[0]
        seen.append((x, given["timestep"] if "timestep" in given else args[1], output[0]))

    network.register_forward_hook(look, with_kwargs=True)
    common = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(5)}
    if name == "dit":
        pipe(class_labels=[3], guidance_scale=1.0, output_type="np", **common)
    elif name in TEXT:
        sizes = {"use_resolution_binning": False} if name.startswith(("pixart", "sana")) else {}
        network_family: Any = load_denoiser(folder).network
        guidance = network_family.guidance if name.startswith("flux") else network_family.unguided
        height, width = network_family.pixels
        pipe(PROMPT, height=height, width=width, guidance_scale=guidance, output_type="latent", **sizes, **common)
    else:
        pipe(output_type="np", **common)
    return seen


@pytest.mark.parametrize("name", PIPELINES)
def test_the_network_is_asked_as_by_its_pipeline(name: str, pipelines: Folder) -> None:
    folder = pipelines(name)
    denoiser = load_denoiser(folder)
    network: Any = denoiser.network
    cond = condition(name, folder, 1)
    calls = recorded(name, folder)
    assert len(calls) >= 3
    for x, seen_time, output in calls:
        if name.startswith("flux"):
            rows = network.shape[1]
            x, output, seen_time = network.samples(x, rows), network.samples(output, rows), 1000 * seen_time
        if name.startswith("sana"):
            seen_time = seen_time / network.config["timestep_scale"]
        ours = network(x, torch.as_tensor(seen_time, dtype=torch.float32).reshape(-1).expand(len(x)), cond)
        assert float((ours - output[:, : ours.shape[1]]).abs().max()) < 2e-6


@pytest.mark.parametrize("name", PIPELINES)
def test_x0_is_the_schedulers(name: str, pipelines: Folder) -> None:
    folder = pipelines(name)
    denoiser = load_denoiser(folder)
    cond = condition(name, folder)
    x = torch.randn(2, *denoiser.network.shape, generator=torch.Generator().manual_seed(1))
    for t in times(denoiser):
        at = torch.full((2,), t, dtype=torch.float64)
        output = denoiser.network(x, denoiser.path.network_time(at).float(), cond)
        theirs = schedulers_x0(folder, output, t, x)
        ours = denoiser(x, at, cond)
        assert float((ours - theirs).detach().abs().max() / theirs.detach().abs().max()) < 1e-5


def times(denoiser: Denoiser) -> list[float]:
    if isinstance(denoiser.path, DiscreteVP):
        last = len(denoiser.path.alphas_cumprod) - 1
        return [0, 1, last // 2, last - 1, last]
    return [1e-3, 0.25, 0.5, 0.999, 1.0]


def schedulers_x0(folder: Path, output: Tensor, t: float, x: Tensor) -> Tensor:
    """Return x0 by diffusers' own arithmetic, under the pipeline's config."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    if "shift" in config or config["prediction_type"] == "flow_prediction":
        scheduler: Any = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[t], device="cpu")  # one step from sigma = t to 0 ends at x0
        return scheduler.step(output, scheduler.timesteps[0], x).prev_sample
    scheduler = DDIMScheduler.from_config({**config, "clip_sample": False, "thresholding": False})
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    return scheduler.step(output, int(t), x).pred_original_sample


@pytest.mark.parametrize("name", TEXT)
def test_conditions_and_null(name: str, pipelines: Folder) -> None:
    """Conditions have the names that the network takes, every one changes its output, and null is none of a prompt."""
    folder = pipelines(name)
    network: Any = load_denoiser(folder).network
    encoder = text_encoder(folder)
    cond, other = (Condition(encoder.encode([prompt])) for prompt in (PROMPT, "a blue hat"))
    null = encoder.encode_null()
    assert cond.keys() == other.keys() == null.keys() == network.conditions.keys()
    assert {key: len(value.shape) for key, value in cond.items()} == {
        key: 1 + len(shape) for key, shape in network.conditions.items()
    }
    assert cond["prompt"].shape[1:] == null["prompt"].shape[1:]
    x, time = torch.randn(1, *network.shape, generator=torch.Generator().manual_seed(2)), torch.tensor([500.0])
    base = network(x, time, cond)
    for key in cond.keys() - {"mask"}:
        assert not torch.equal(network(x, time, Condition(cond | {key: other[key]})), base)
    with pytest.raises(UserError, match=r"^condition: \w+ takes (mask, |pooled, )?prompt, got none$"):
        network(x, time, Condition())


@pytest.mark.parametrize("name", LATENT)
def test_taps_give_grids(name: str, pipelines: Folder) -> None:
    denoiser = load_denoiser(pipelines(name))
    network: Any = denoiser.network
    assert isinstance(network, LatentFamily) and denoiser.latents
    x = torch.randn(2, *network.shape, generator=torch.Generator().manual_seed(3))
    t = denoiser.path.time(torch.ones(2, dtype=torch.float64))
    cond = network.example(2)
    (features,) = denoiser.features(x, t, cond, "middle")
    assert features.ndim == 4 and features.shape[0] == 2 and features.shape[2] == features.shape[3]
    x0, seen = denoiser.with_features(x, t, cond, "middle")
    assert torch.equal(seen, features) and torch.equal(x0, denoiser(x, t, cond))
