"""The path and the prediction kind that the config of a diffusers scheduler describes.

A config says two things: the Gaussian path with the network's prediction, and the way in which a sampler walks along
the path. Only the first counts here. All keys that may change it are understood or refused, so nothing is guessed.
"""

import inspect
from pathlib import Path
from typing import Any

from distill.errors import UserError, one_line, options, require
from distill.paths import ContinuousVP, DiscreteVP, Flow
from distill.paths import Path as NoisePath
from distill.pipeline_folder import read_json
from distill.prediction import Kind
from distill.quiet import quiet_libraries

PREDICTIONS: dict[str, Kind] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FLOW_PREDICTION = "flow_prediction"
GRID_SCHEDULERS = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
"""The schedulers with a grid of betas. Some walk along a flow too, where `use_flow_sigmas` says so."""
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
CONTINUOUS = "continuous"
"""The `timestep_type` of a network of continuous noise levels, which EulerDiscreteScheduler alone reads, and for v."""
FLOW_STEPS = 1000  # the network of a Flow is told 1000 t

NEUTRAL = {"invert_sigmas": False, "snr_shift_scale": 1.0, "timestep_values": None}
"""Keys that change the path or the network's time, each with its one value that does not."""
_GRID = """
    beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr prediction_type num_train_timesteps
    use_flow_sigmas timestep_type
"""
_TIMES = """
    timestep_spacing steps_offset set_alpha_to_one skip_prk_steps interpolation_type sigma_min sigma_max
    final_sigmas_type use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas lambda_min_clipped
    original_inference_steps timestep_scaling shift flow_shift use_dynamic_shifting time_shift_type base_shift max_shift
    base_image_seq_len max_image_seq_len shift_terminal scale_factors upscale_mode
"""
_STEPS = """
    clip_sample clip_sample_range sample_max_value thresholding dynamic_thresholding_ratio variance_type eta
    solver_order solver_type solver_p algorithm_type lower_order_final euler_at_final predict_x0 disable_corrector
    predictor_order corrector_order tau_func stochastic_sampling noise_sampler_seed tensor_format
"""
GRID_KEYS = frozenset(_GRID.split())
SAMPLER_KEYS = frozenset(_TIMES.split() + _STEPS.split())
"""The keys that choose the times that a sampler visits, and its steps between them."""


@quiet_libraries()
def read_scheduler(file: Path, name: Any) -> tuple[NoisePath, Kind]:
    """Return the path and the prediction kind that a scheduler's config describes.

    Args:
        file: The scheduler_config.json.
        name: The class of the scheduler in diffusers.

    Raises:
        UserError: The scheduler, one of its keys or one of their values is not known to describe a Gaussian path and a
            prediction kind of ours.
    """
    config = read_json(file)
    try:
        return _read(config, name)
    except UserError as error:
        raise UserError(f"teacher: '{file}': {error}") from error


def _read(config: dict[str, Any], name: Any) -> tuple[NoisePath, Kind]:
    """Return the path and the prediction kind of a scheduler of the class `name`."""
    known = (*GRID_SCHEDULERS, *FLOW_SCHEDULERS)
    if name not in known:
        raise UserError(f"scheduler must be one of {options(known, name)}, got {name!r:.200}")
    for key, value in config.items():
        if key in NEUTRAL:
            require(value == NEUTRAL[key], f"{key}: must be {NEUTRAL[key]!r}, got {value!r:.80} of {name}")
        elif not key.startswith("_") and key not in GRID_KEYS | SAMPLER_KEYS:
            raise UserError(f"unknown key {key!r:.80} of {name}; if it changes neither path nor prediction, remove it")
    for key in ("shift", "flow_shift"):
        _number(config, key, 0, 1000)
    settings = _defaults(config, name)
    steps, predicted = settings.get("num_train_timesteps"), settings.get("prediction_type", FLOW_PREDICTION)
    if type(steps) is not int or not 1 <= steps <= 100_000:
        raise UserError(f"num_train_timesteps: must be an integer from 1 to 100000, got {steps!r:.80}")
    if name in FLOW_SCHEDULERS or settings.get("use_flow_sigmas"):
        require(
            predicted == FLOW_PREDICTION, f"prediction_type: must be {FLOW_PREDICTION!r} of a flow, got {predicted!r}"
        )
        require(steps == FLOW_STEPS, f"num_train_timesteps: must be {FLOW_STEPS} for a flow, got {steps}")
        return Flow(), "velocity"
    if not isinstance(predicted, str) or predicted not in PREDICTIONS:
        allowed = ", ".join([*PREDICTIONS, FLOW_PREDICTION])
        flow = "; a flow states use_flow_sigmas: true" if predicted == FLOW_PREDICTION else ""
        raise UserError(f"prediction_type must be one of {allowed} under betas, got {predicted!r:.80} of {name}{flow}")
    if _is_continuous(config, name, predicted):
        return ContinuousVP(), "v"
    path = _grid(settings, config, name)
    if predicted == "epsilon" and not path.alphas_cumprod[-1] > 0:
        raise UserError("noise cannot be predicted where no signal is left (zero terminal SNR)")
    return path, PREDICTIONS[predicted]


def _is_continuous(config: dict[str, Any], name: str, predicted: str) -> bool:
    """Return whether the network is told ln(sigma) / 4 in place of the index of a step."""
    kind = config.get("timestep_type", "discrete")
    read = name == "EulerDiscreteScheduler" and predicted == "v_prediction"
    if kind == "discrete" or (kind == CONTINUOUS and read):
        return bool(kind == CONTINUOUS)
    also = f" or {CONTINUOUS!r}" if read else ""
    raise UserError(f"timestep_type: must be 'discrete'{also}, got {kind!r:.80} of {name} with {predicted!r}")


def _defaults(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the config with the defaults of the scheduler's class for the keys that it leaves out.

    Raises:
        UserError: The config switches something on that the class does not read.
    """
    import diffusers

    signature = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {key: one.default for key, one in signature.items() if one.default is not inspect.Parameter.empty}
    for key in ("rescale_betas_zero_snr", "use_flow_sigmas") if name in GRID_SCHEDULERS else ():
        value = config.get(key, False)
        require(isinstance(value, bool), f"{key}: must be true or false, got {value!r:.80}")
        if value and key not in defaults:
            raise UserError(f"{key}: is true, and {name} does not read it; name a scheduler that does")
    return {**defaults, **config}


def _grid(settings: dict[str, Any], config: dict[str, Any], name: str) -> DiscreteVP:
    """Return the grid of a scheduler's betas, as diffusers computes them."""
    import diffusers

    steps, betas = settings["num_train_timesteps"], settings["trained_betas"]
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != steps:
            raise UserError(f"trained_betas: must be null or a list of num_train_timesteps = {steps} numbers")
        if not all(_is_number(beta) and 0 < beta <= 1 for beta in betas) or 1 in betas[:-1]:
            raise UserError("trained_betas: must be numbers above 0 and below 1, of which the last may be 1")
    low, high = (_number(settings, key, 0, 1) for key in ("beta_start", "beta_end"))
    require(low <= high or betas is not None, f"beta_start: must not be above beta_end, got {low:g} and {high:g}")
    schedule, rescaled = settings["beta_schedule"], settings.get("rescale_betas_zero_snr", False)
    if betas is None and not rescaled and schedule in ("linear", "scaled_linear"):
        return DiscreteVP(low, high, schedule, steps)
    try:
        scheduler = getattr(diffusers, name).from_config(config)
        found = tuple(scheduler.betas.double().tolist())
    except Exception as error:  # diffusers raises its own kinds for each flaw of a config
        raise UserError(f"{name}: {one_line(error)}") from error
    return DiscreteVP(betas=found)


def _number(settings: dict[str, Any], key: str, low: float, high: float) -> float:
    """Return the number `key`, or raise UserError unless low < number < high. Where there is none, it is 0.5."""
    value = settings.get(key, 0.5)
    if not _is_number(value) or not low < value < high:
        raise UserError(f"{key}: must be a number above {low:g} and below {high:g}, got {value!r:.80}")
    return float(value)


def _is_number(value: Any) -> bool:
    """Return whether `value` is a finite number, and no truth value."""
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < 1e300
