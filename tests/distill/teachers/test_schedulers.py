"""A scheduler's config is understood in full, or it is refused by name in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from distill import ContinuousVP, Denoiser, DiscreteVP, UserError
from distill.networks.network import PlainNetwork
from distill.paths import Flow
from distill.teachers.schedulers import FLOW_SCHEDULERS, GRID_SCHEDULERS, read_scheduler

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def read(folder: Path, name: Any, **config: Any) -> tuple[Any, str]:
    file = folder / "scheduler_config.json"
    file.write_text(json.dumps(config))
    return read_scheduler(file, name)


@pytest.mark.parametrize("name", GRID_SCHEDULERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_grids_are_those_of_diffusers(name: str, prediction: str, tmp_path: Path) -> None:
    """Every config that diffusers writes is known, and gives its betas."""
    made = getattr(diffusers, name)(beta_start=0.001, beta_end=0.015, prediction_type=prediction)
    made.save_pretrained(tmp_path)
    path, kind = read_scheduler(tmp_path / "scheduler_config.json", name)
    assert isinstance(path, DiscreteVP) and kind == {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[prediction]
    exact = torch.cumprod(1 - made.betas.double(), 0)
    assert float((path.alphas_cumprod / exact - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_flows(name: str, tmp_path: Path) -> None:
    getattr(diffusers, name)(shift=3.0).save_pretrained(tmp_path)
    assert read_scheduler(tmp_path / "scheduler_config.json", name) == (Flow(), "velocity")
    assert read(tmp_path, "UniPCMultistepScheduler", **FLOW) == (Flow(), "velocity")


def test_published_configs_with_keys_of_other_samplers(tmp_path: Path) -> None:
    """Stable Diffusion XL's, which names settings of PNDM and DDIM beside those of Euler."""
    config = {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    }
    assert read(tmp_path, "EulerDiscreteScheduler", **config) == (DiscreteVP(), "eps")


CONTINUOUS = {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 700.0}


@pytest.mark.parametrize("karras", [True, False])
def test_continuous_levels_are_those_of_diffusers(karras: bool, tmp_path: Path) -> None:
    """The network is told the same time, and its output is read to the same x0, as in diffusers' own step."""
    config = CONTINUOUS | {"use_karras_sigmas": karras}
    path, kind = read(tmp_path, "EulerDiscreteScheduler", **config)
    assert (path, kind) == (ContinuousVP(), "v")
    x0, noise = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    asked: list[Tensor] = []

    def network(x: Tensor, time: Tensor, cond: Any) -> Tensor:
        asked.extend([x, time])
        return (x + time).sin()

    denoiser = Denoiser(PlainNetwork(network), path, kind)
    scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(5)
    for step, time in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[step].double()
        sample = x0 + sigma.float() * noise
        x_in = scheduler.scale_model_input(sample, time)
        theirs = scheduler.step(network(x_in, time, None), time, sample).pred_original_sample
        t = path.time(sigma[None])
        ours = denoiser(path.diffuse(x0, t, noise), t)
        assert torch.allclose(asked[-2], x_in, atol=1e-6) and float(asked[-1]) == pytest.approx(float(time), abs=1e-6)
        assert torch.allclose(ours, theirs, atol=1e-5)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "continuous levels of noise": (
        "EulerDiscreteScheduler",
        CONTINUOUS | {"prediction_type": "epsilon"},
        "timestep_type: must be 'discrete', got 'continuous' of EulerDiscreteScheduler with 'epsilon'",
    ),
    "the same under another sampler": ("DDIMScheduler", CONTINUOUS, "timestep_type: must be 'discrete', got"),
    "other levels": (
        "EulerDiscreteScheduler",
        CONTINUOUS | {"timestep_type": ["continuous"]},
        "timestep_type: must be 'discrete' or 'continuous', got ['continuous']",
    ),
    "EDM": ("EDMEulerScheduler", {}, "got 'EDMEulerScheduler'"),
    "another variance": ("CogVideoXDDIMScheduler", {}, "got 'CogVideoXDDIMScheduler'"),
    "a shifted variance": ("DDIMScheduler", {"snr_shift_scale": 3.0}, "snr_shift_scale: must be 1.0"),
    "inverted": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas: must be False, got True"),
    "no scheduler": ("DDPMPipeline", {}, "got 'DDPMPipeline'"),
    "an own scheduler": (["own", "My"], {}, "got ['own', 'My']"),
    "none": (None, {}, "got None"),
    "an unknown key": ("DDIMScheduler", {"logsnr_shift": 2.0}, "unknown key 'logsnr_shift' of DDIMScheduler"),
    "a flow without its path": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction"},
        "a flow states use_flow_sigmas: true",
    ),
    "a path of flows for noise": (
        "UniPCMultistepScheduler",
        FLOW | {"prediction_type": "epsilon"},
        "of a flow, got 'epsi",
    ),
    "a flow that DDIM does not walk": ("DDIMScheduler", FLOW, "use_flow_sigmas: is true, and DDIMScheduler does not"),
    "a flow of other times": (
        "FlowMatchEulerDiscreteScheduler",
        {"num_train_timesteps": 500},
        "num_train_timesteps: must be 1000 for a flow, got 500",
    ),
    "a rescaling that is not read": (
        "PNDMScheduler",
        {"rescale_betas_zero_snr": True},
        "PNDMScheduler does not read it",
    ),
    "a prediction in a list": ("DDIMScheduler", {"prediction_type": ["epsilon"]}, "got ['epsilon']"),
    "a truth in words": ("DDIMScheduler", {"rescale_betas_zero_snr": "false"}, "must be true or false, got 'false'"),
}
NUMBERS: dict[str, list[Any]] = {
    "beta_start": [float("nan"), float("inf"), 0, -0.1, 1.5, "0.1", None, True, [0.1], 10**400],
    "beta_end": [float("nan"), float("inf"), 0, 1.5, "0.1", None, {}, 1e-9],
    "num_train_timesteps": [0, -1, 1000.0, "1000", None, True, float("nan"), 10**9, [1000]],
    "trained_betas": [[], [0.1], "0.1", 0.5, [[0.1] * 1000], [float("nan")] * 1000, [0.0] * 1000, [1.0] * 1000],
    "beta_schedule": ["cubic", None, 3, ["linear"]],
}
for key, values in NUMBERS.items():
    for value in values:
        REFUSED[f"{key} {value!r:.20}"] = ("DDIMScheduler", {key: value}, "")
for value in (float("nan"), float("-inf"), 0, -3.0, "3", None, 1e9):
    REFUSED[f"shift {value!r}"] = (
        "FlowMatchEulerDiscreteScheduler",
        {"shift": value},
        "shift: must be a number above 0",
    )


@pytest.mark.parametrize("what", REFUSED)
def test_refusals(what: str, tmp_path: Path) -> None:
    name, config, message = REFUSED[what]
    with pytest.raises(UserError) as error:
        read(tmp_path, name, **config)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 1200
    assert str(error.value).startswith(f"teacher: '{tmp_path / 'scheduler_config.json'}': ")
