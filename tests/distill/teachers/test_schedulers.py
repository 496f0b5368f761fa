"""A scheduler's config is understood in full, or it is refused by name in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from distill import DiscreteVP, UserError
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
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "continuous noise levels": (
        "EulerDiscreteScheduler",
        CONTINUOUS,
        "timestep_type: must be 'discrete', got 'continuous' of EulerDiscreteScheduler",
    ),
    "the same under another sampler": ("DDIMScheduler", CONTINUOUS, "timestep_type: must be 'discrete'"),
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
