"""A one-step generator under a diffusers pipeline's own class: every part of the teacher's pipeline but its network and
scheduler, and a scheduler whose single step is the generator exactly.

With one step at grid index T a stock scheduler lands on the betas' last entry, so they are cut after T. Two published
conventions of the input are stock: unit noise (DMD2; DDIM) and pure noise of time T (SiD-LSG; Euler). Flow matching is
stock where it starts, at t = 1. Anything else takes the few lines of `custom_scheduler.py` or `custom_flow.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.generator import Generator
from distill.paths import DiscreteVP, Flow
from distill.prediction import coefficients
from distill.teachers import Codec, TextEncoder
from distill.teachers.families import Family
from distill.teachers.parts import load_stock

PROMPTS = ["a photograph of a red cat", ""]
KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def write_family(generator: Generator, source: Path, folder: Path) -> bool:
    """Write `generator`, float32, with the other parts of the pipeline in `source`; returns whether it is all stock.

    Raises UserError for an entry that the pipeline cannot be made to compute.
    """
    network = cast(Family, generator.denoiser.network)
    pipe = load_stock(source, **{network.part: network.model, "dtype": torch.float32})
    scheduler = stock_scheduler(generator)
    if scheduler is not None:
        pipe.register_modules(scheduler=scheduler)
    pipe.save_pretrained(folder)
    flow = isinstance(generator.denoiser.path, Flow)
    if flow and not generator.t == generator.scale == 1:
        _write_custom_flow(generator, type(pipe).__name__, folder)
    elif scheduler is None:
        _write_custom_scheduler(generator, folder)
    else:
        return True
    return False


def stock_scheduler(generator: Generator) -> Any:
    """The stock scheduler whose one step is this generator, on a flow from wherever the pipeline starts; None where
    there is none."""
    import diffusers

    path, t, scale = generator.denoiser.path, generator.t, generator.scale
    if isinstance(path, Flow):
        return diffusers.FlowMatchEulerDiscreteScheduler()  # without shift: a start is where it is said to be
    if not isinstance(path, DiscreteVP):
        return None
    last = torch.tensor([t], dtype=torch.float64)
    settings = {
        "trained_betas": _betas(path)[: round(t) + 1],
        "num_train_timesteps": round(t) + 1,
        "prediction_type": KINDS[generator.denoiser.prediction],
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # unused with this spacing, but pipelines ask for it
    }
    if scale == 1:
        return diffusers.DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=True)
    if _multiplies(generator.denoiser) and scale == float(path.sigma(last)) and float(path.alpha(last)) > 0:
        return diffusers.EulerDiscreteScheduler(**settings)
    return None


def _multiplies(denoiser: Denoiser) -> bool:
    """Whether the pipeline multiplies its noise by the scheduler's init_noise_sigma; DiT's does not."""
    return cast(Family, denoiser.network).text


def _betas(path: DiscreteVP) -> list[float]:
    """As diffusers computes them: float32, which survive JSON exactly."""
    signal = torch.cat([torch.ones(1, dtype=torch.float64), path.alphas_cumprod.cpu()])
    return cast(list[float], (1 - signal[1:] / signal[:-1]).float().tolist())


def _write_custom_scheduler(generator: Generator, folder: Path) -> None:
    """scheduler/onestep.py in place of the scheduler."""
    denoiser, t = generator.denoiser, torch.tensor([generator.t], dtype=torch.float64)
    c = coefficients(denoiser.prediction, denoiser.path, t, t, denoiser.sigma_data)
    scaled = "init_noise_sigma" if _multiplies(denoiser) else "input_scale"
    numbers = {
        "timestep": float(denoiser.path.network_time(t)),
        scaled: float(generator.scale),
        "from_x_t": float(c.from_x_t),
        "from_output": float(c.from_output),
    }
    for file in (folder / "scheduler").iterdir():
        file.unlink()
    code = Path(__file__).with_name("custom_scheduler.py").read_text()
    (folder / "scheduler" / "onestep.py").write_text(code)
    config = {"_class_name": "OneStepScheduler", **numbers}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n")
    _edit_index(folder, scheduler=["onestep", "OneStepScheduler"])


def _write_custom_flow(generator: Generator, pipeline: str, folder: Path) -> None:
    """pipeline.py: the stock pipeline that starts at t from scaled noise."""
    code = Path(__file__).with_name("custom_flow.py").read_text()
    for name, value in (("StableDiffusion3Pipeline", pipeline), ("START = 1.0", f"START = {generator.t!r}")):
        code = code.replace(name, value)
    code = code.replace("SCALE = 1.0", f"SCALE = {float(generator.scale)!r}")
    (folder / "pipeline.py").write_text(code)
    _edit_index(folder, _class_name=["pipeline", "OneStepPipeline"])


def _edit_index(folder: Path, **changes: Any) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}, indent=2) + "\n")


@torch.no_grad()
def family_difference(generator: Generator, source: Path, folder: Path, stock: bool, seed: int = 0) -> float:
    """The largest absolute difference in [-1, 1] between images of the reloaded `folder`, called with prompts or labels
    as users do, and those that the teacher's own autoencoder makes of `generator`'s samples, from equal noise."""
    network = cast(Family, generator.denoiser.network)
    asked: dict[str, Any] = {"prompt": PROMPTS} if network.text else {"class_labels": [0, network.classes - 1]}
    cond = TextEncoder(source).encode(PROMPTS) if network.text else torch.tensor(asked["class_labels"])
    z = torch.randn(2, *network.shape, generator=torch.Generator().manual_seed(seed))
    ours = Codec(source).decode(generator(z, cond)).clamp(-1, 1)
    pipe = load_stock(folder, trust_remote_code=not stock)
    noise = torch.Generator().manual_seed(seed)
    try:
        images = pipe(**asked, **network.call(), **network.latents(z), generator=noise, output_type="np").images
    except Exception as error:  # the reader of the folder is diffusers, with exceptions of its own for each flaw
        raise UserError(f"export: diffusers cannot use the exported folder: {' '.join(str(error).split())}") from error
    return float((2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1 - ours).abs().max())
