"""A one-step generator as a pipeline of its teacher's own class in diffusers.

The folder holds the generator's network, every other component of the teacher's pipeline, and a scheduler whose single
step is exactly the generator. A stock scheduler takes its single step at the last entry of its betas, so the betas are
cut after the generator's grid index T. These generators need no code of ours:

- A generator on the betas that takes unit normal noise, as DMD2's does, is a step of DDIMScheduler.
- A generator on the betas that takes noise times sigma(T), as SiD-LSG's does, is a step of EulerDiscreteScheduler.
- A generator on a flow that starts at t = 1 is a step of FlowMatchEulerDiscreteScheduler.

All others come with one short file, `custom_scheduler.py` or `custom_flow.py`.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from distill.conditions import Condition
from distill.encoders.text_encoder import PipelineTextEncoder
from distill.errors import UserError
from distill.export.format import WITHOUT_CARD, Format, Inputs, Reader, constants
from distill.export.shipped import shipped_source
from distill.export.snippets import call_pipeline
from distill.generator import Generator
from distill.paths import DiscreteVP, Flow
from distill.pipeline_folder import INDEX, class_name, load_stock_pipeline, read_json
from distill.quiet import quiet_libraries
from distill.teachers.families import LatentFamily

PROMPTS = ["a photograph of a red cat", ""]
CUSTOM = (
    "No stock scheduler or pipeline takes this one step, so short files come with the weights and"
    " `trust_remote_code=True` allows diffusers to run them. They need only torch and diffusers: read them first."
)
CHECKER = (
    "The teacher's safety checker is part of the pipeline, and makes images black that it takes for unsafe. The"
    " comparison of the samples was made without it."
)
# Euler's step computes x0 as a difference of numbers 1 / alpha times as large, and so loses this factor in precision. A
# teacher of zero terminal SNR has alpha = 9e-4 at t = 997.
SMALLEST_ALPHA = 0.01
DIFFUSERS_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def family_pipeline(generator: Generator, cond: Condition, teacher: Path | None) -> Format:
    """Return the format of a folder with all components of the pipeline.

    The folder is read as users read it, with prompts or labels, and gives images. They are compared with the images
    that the teacher's autoencoder makes of the generator's samples.

    Args:
        generator: The generator, whose network is of a LatentFamily.
        cond: Not used, since the format encodes prompts or chooses labels itself.
        teacher: The folder of the teacher's pipeline.

    Raises:
        UserError: `teacher` is None.
    """
    network = cast(LatentFamily, generator.denoiser.network)
    if teacher is None:
        raise UserError(f"export: a {type(network).__name__} needs its teacher's folder for the other parts")
    checker = (CHECKER,) if class_name(read_json(teacher / INDEX), "safety_checker") is not None else ()
    autoencoder, stock = network.open_autoencoder(teacher), is_stock(generator)
    if network.text:
        cond = Condition(PipelineTextEncoder(teacher, type(network)).encode(PROMPTS))
    else:
        cond = Condition(labels=torch.tensor([0, network.classes - 1]))
    return Format(
        cond=cond,
        write=partial(write_family, generator, teacher),
        read=lambda folder: sampled(network, load_stock_pipeline(folder, trust_remote_code=not stock)),
        snippet=lambda source: call_pipeline(source, stock, call_for_two(network)),
        loading="This is a stock diffusers pipeline: no code comes with the weights." if stock else CUSTOM,
        limits=(
            f"One step without guidance: call the pipeline with the arguments above ({arguments(network)}).",
            *checker,
            *((WITHOUT_CARD,) if stock else ()),
        ),
        library="diffusers",
        batches=(2,),
        shown=lambda samples: autoencoder.decode(samples).clamp(-1, 1),
    )


def is_stock(generator: Generator) -> bool:
    """Return whether diffusers computes this generator without code of ours."""
    if isinstance(generator.denoiser.path, Flow):
        return generator.t == generator.scale == 1
    return stock_scheduler(generator) is not None


@quiet_libraries()
def write_family(generator: Generator, source: Path, folder: Path) -> None:
    """Write `generator` in float32, with the other components of the pipeline in `source`."""
    network = cast(LatentFamily, generator.denoiser.network)
    given = {network.part: network.model}
    pipe = load_stock_pipeline(source, **given, dtype=torch.float32)
    scheduler = stock_scheduler(generator)
    if scheduler is not None:
        given["scheduler"] = scheduler
    pipe.register_modules(**given)  # the network too: diffusers ignores a given component that is optional, as Wan has
    pipe.save_pretrained(folder)
    if scheduler is None:
        _write_custom_scheduler(generator, folder)
        _write_pipeline(folder, "custom_pipeline", "OneStepFamilyPipeline", type(pipe).__name__)
    elif not is_stock(generator):
        _write_custom_flow(generator, type(pipe).__name__, folder)


def stock_scheduler(generator: Generator) -> Any:
    """Return the stock scheduler whose single step is this generator, or None if there is none.

    On a flow it is the same scheduler for every start, since the pipeline chooses the start.
    """
    import diffusers

    path, t, scale = generator.denoiser.path, generator.t, generator.scale
    if isinstance(path, Flow):
        return diffusers.FlowMatchEulerDiscreteScheduler()  # without a shift, which would move the start
    if not isinstance(path, DiscreteVP):
        return None
    last = torch.tensor([t], dtype=torch.float64)
    settings = {
        "trained_betas": _betas(path)[: round(t) + 1],
        "num_train_timesteps": round(t) + 1,
        "prediction_type": DIFFUSERS_PREDICTIONS[generator.denoiser.prediction],
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # not used with this spacing, but some pipelines insist on it
    }
    if scale == 1:
        return diffusers.DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=True)
    if (
        cast(LatentFamily, generator.denoiser.network).takes_scaled_noise
        and scale == float(path.sigma(last))
        and float(path.alpha(last)) > SMALLEST_ALPHA
    ):
        return diffusers.EulerDiscreteScheduler(**settings)
    return None


def _betas(path: DiscreteVP) -> list[float]:
    """Return the betas as diffusers computes them, in float32, which JSON keeps exactly."""
    signal = torch.cat([torch.ones(1, dtype=torch.float64), path.alphas_cumprod.cpu()])
    return cast(list[float], (1 - signal[1:] / signal[:-1]).float().tolist())


def _write_custom_scheduler(generator: Generator, folder: Path) -> None:
    """Replace the scheduler by scheduler/onestep.py and its config."""
    c = constants(generator)
    scaled = "init_noise_sigma" if cast(LatentFamily, generator.denoiser.network).takes_scaled_noise else "input_scale"
    config = {"_class_name": "OneStepScheduler", "timestep": c["timestep"], scaled: c["scale"]}
    config |= {"from_x_t": c["from_x_t"], "from_output": c["from_output"]}
    for file in (folder / "scheduler").iterdir():
        file.unlink()
    (folder / "scheduler" / "onestep.py").write_text(shipped_source("custom_scheduler"))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config, indent=2) + "\n")
    _edit_index(folder, scheduler=["onestep", "OneStepScheduler"])


def _write_custom_flow(generator: Generator, pipeline: str, folder: Path) -> None:
    """Write pipeline.py, a subclass of the stock pipeline that starts at t from scaled noise.

    The class and the numbers are written into its source, because the stock constructor takes no such numbers.
    """
    numbers = {"START = 1.0": f"START = {generator.t!r}", "SCALE = 1.0": f"SCALE = {float(generator.scale)!r}"}
    _write_pipeline(folder, "custom_flow", "OneStepFlowPipeline", pipeline, numbers)


def _write_pipeline(
    folder: Path, source: str, name: str, stock: str, changes: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write pipeline.py.

    Args:
        folder: The folder of the export.
        source: The name of the source in distill.export.shipped.
        name: The class in it, which model_index.json then names.
        stock: The stock pipeline that it is derived from.
        changes: Text to replace in the source.
    """
    code = shipped_source(source)
    for old, new in {"StableDiffusion3Pipeline": stock, **changes}.items():
        code = code.replace(old, new)
    (folder / "pipeline.py").write_text(code, "utf-8")
    _edit_index(folder, _class_name=["pipeline", name])


def _edit_index(folder: Path, **changes: Any) -> None:
    """Change entries of model_index.json."""
    file = folder / "model_index.json"
    file.write_text(json.dumps({**read_json(file), **changes}, indent=2) + "\n")


def call_for_two(network: LatentFamily) -> str:
    """Return the Python line that makes two images of prompts or labels by a pipeline `pipe`."""
    asked = f"prompt={PROMPTS}" if network.text else f"class_labels=[0, {network.classes - 1}]"
    return f"images = pipe({asked}, {arguments(network)}).{network.output}"


def arguments(network: LatentFamily) -> str:
    """Return the other arguments of the pipeline's single step."""
    return ", ".join(f"{name}={value!r}" for name, value in network.call().items())


def sampled(network: LatentFamily, pipe: Any) -> Reader:
    """Return a reader that calls `pipe` with prompts or labels, as users do, but without what changes its images.

    These are a safety checker, which may answer falsely for a student's early images, and SDXL's watermark.
    """
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.register_modules(safety_checker=None)
    if getattr(pipe, "watermark", None) is not None:
        pipe.watermark = None

    @quiet_libraries()
    def sample(given: Inputs) -> Tensor:
        labels, prompts = given.cond.labels, PROMPTS[: len(given.noise)]
        asked: dict[str, Any] = {"prompt": prompts} if labels is None else {"class_labels": labels.tolist()}
        noise = {**network.pipeline_noise(given.noise), "generator": torch.Generator().manual_seed(given.seed)}
        images = getattr(pipe(**asked, **network.call(), **noise, output_type="np"), network.output)
        return 2 * torch.from_numpy(images).movedim(-1, 1) - 1  # [B, *spatial, C] -> [B, C, *spatial]

    return sample
