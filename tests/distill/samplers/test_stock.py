"""Each sampler asks the network the same, call by call, as the stock pipeline of its family by diffusers' scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill import Condition
from distill.guidance import classifier_free
from distill.pipeline_folder import load_stock_pipeline
from distill.samplers import DDIM, DEIS, DPM2M, DPM3M, DPMSDE, Euler, Guidance, Sampler, SASolver, UniPC
from distill.teachers import load_denoiser
from tests.distill.teachers.test_families import condition, text_encoder

Folder = Callable[[str], Path]
TRAILING = {"timestep_spacing": "trailing"}
GRID: dict[str, tuple[Sampler, str, dict[str, Any]]] = {
    "ddim": (DDIM(), "DDIMScheduler", {"set_alpha_to_one": True, "clip_sample": False}),
    "euler": (Euler(), "EulerDiscreteScheduler", {}),
    "dpm_2m": (DPM2M(), "DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm_3m": (DPM3M(as_published=True), "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc": (UniPC(), "UniPCMultistepScheduler", {}),
    "unipc 3": (UniPC(order=3), "UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": (DEIS(), "DEISMultistepScheduler", {}),
    "deis 3": (DEIS(order=3), "DEISMultistepScheduler", {"solver_order": 3}),
    "sa_solver": (
        SASolver(tau=0.0),
        "SASolverScheduler",
        {"predictor_order": 2, "corrector_order": 2, "tau_func": lambda t: torch.tensor(0.0)},
    ),
}
FLOW: dict[str, tuple[Sampler, str, dict[str, Any]]] = {
    "euler": (Euler(), "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "dpm_2m": (DPM2M(), "DPMSolverMultistepScheduler", {}),
    "unipc": (UniPC(), "UniPCMultistepScheduler", {}),
    "deis": (DEIS(), "DEISMultistepScheduler", {}),
}
COUNT, FLOW_COUNT = 5, 9  # 5 divides 1000, so that no stock step is rounded


class Recorder:
    """The inputs and the times of a network, and what it returned, in the order of its calls."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.calls: list[tuple[Tensor, float]] = []
        network.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
        x = given["hidden_states"] if "hidden_states" in given else args[0]
        t = given["timestep"] if "timestep" in given else args[1]
        self.calls.append((x.detach().clone(), float(torch.as_tensor(t).reshape(-1)[0])))


def by_pipeline(name: str, folder: Path, scheduler: str, settings: dict[str, Any], **call: Any) -> tuple[Any, Any]:
    """Return (calls of the network, the scheduler) of the stock pipeline with a scheduler of diffusers."""
    import diffusers

    pipe = load_stock_pipeline(folder)
    kind = getattr(diffusers, scheduler)
    taken = {key: value for key, value in settings.items() if key != "tau_func"}
    config = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    if name == "sd3" and scheduler != "FlowMatchEulerDiscreteScheduler":
        config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
    pipe.scheduler = kind.from_config({**config, **taken})
    if pipe.scheduler.config.get(
        "use_flow_sigmas"
    ):  # the stock time of the network is cut to an integer: 443.99 to 443
        set_timesteps = pipe.scheduler.set_timesteps

        def keep_times(*args: Any, **given: Any) -> None:
            set_timesteps(*args, **given)
            pipe.scheduler.timesteps = 1000 * pipe.scheduler.sigmas[:-1]

        pipe.scheduler.set_timesteps = keep_times
    if "tau_func" in settings:
        pipe.scheduler.tau_func = settings["tau_func"]
    recorder = Recorder(pipe.unet if hasattr(pipe, "unet") else pipe.transformer)
    count = FLOW_COUNT if name == "sd3" else COUNT
    common = {"num_inference_steps": count, "generator": torch.Generator().manual_seed(5)}
    pipe(**common, **call)
    return recorder.calls, pipe.scheduler


def start(calls: list[tuple[Tensor, float]], nsr: float) -> Tensor:
    """Return the unit noise from which our samplers come to the first input of the pipeline."""
    return calls[0][0][:1] * ((1 + nsr**2) ** 0.5 / nsr if np.isfinite(nsr) else 1.0)


def assert_asked_alike(theirs: list[tuple[Tensor, float]], ours: list[tuple[Tensor, float]], count: int) -> None:
    """Check each of `count` calls: its input and its time."""
    assert len(theirs) == len(ours) == count
    for (x, t), (other, time) in zip(theirs, ours, strict=True):
        assert time == pytest.approx(t, abs=2e-3)
        assert float((x[-1] - other[0]).abs().max()) < 2e-4 * max(1.0, float(x.abs().max()))


@pytest.mark.parametrize("name", GRID)
def test_on_a_grid_of_steps(name: str, pipelines: Folder) -> None:
    """Stable Diffusion's tiny likeness, at the stock spacing `trailing`, without guidance."""
    sampler, scheduler, settings = GRID[name]
    folder = pipelines("sd15")
    call = {"prompt": "a red cat", "guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "latent"}
    denoiser = load_denoiser(folder)
    shape: Any = denoiser.network
    call["height"], call["width"] = shape.pixels
    calls, used = by_pipeline("sd15", folder, scheduler, {**settings, **TRAILING}, **call)
    times = [float(t) for t in used.timesteps]
    ours = type(sampler)(**{**vars(sampler), "times": tuple(times)})
    levels = ours.levels(denoiser.path)
    recorder = Recorder(denoiser.network)
    ours.sample(denoiser, start(calls, float(levels.nsr[0])), condition("sd15", folder, 1))
    assert_asked_alike(calls, recorder.calls, COUNT)


@pytest.mark.parametrize("name", FLOW)
def test_on_a_flow(name: str, pipelines: Folder) -> None:
    """Stable Diffusion 3's tiny likeness, without guidance, from pure noise."""
    sampler, scheduler, settings = FLOW[name]
    folder = pipelines("sd3")
    denoiser = load_denoiser(folder)
    shape: Any = denoiser.network
    call = {"prompt": "a red cat", "guidance_scale": 1.0, "output_type": "latent"}
    call["height"], call["width"] = shape.pixels
    calls, used = by_pipeline("sd3", folder, scheduler, settings, **call)
    times = tuple(float(sigma) for sigma in used.sigmas[:FLOW_COUNT])
    ours = type(sampler)(**{**vars(sampler), "times": times})
    levels, recorder = ours.levels(denoiser.path), Recorder(denoiser.network)
    # A flow's own sample is x_t, ours is divided by sqrt(alpha^2 + sigma^2).
    first = calls[0][0][:1] / float(np.hypot(1 - times[0], times[0]))
    z = start([(first, 0.0)], float(levels.nsr[0]))
    ours.sample(denoiser, z, condition("sd3", folder, 1))
    assert_asked_alike(calls, recorder.calls, FLOW_COUNT)


def test_the_published_spacings() -> None:
    """`uniform` is diffusers' `trailing` on a grid, and with `shift` that of SD3 on a flow."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    from distill.paths import DiscreteVP, Flow

    for count in (1, 4, 7, 50):
        stock: Any = DDIMScheduler(timestep_spacing="trailing")
        stock.set_timesteps(count)
        ours = DDIM(evaluations=count, spacing="uniform").levels(DiscreteVP()).times
        assert ours.tolist() == [float(t) for t in stock.timesteps]
        flow: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
        flow.set_timesteps(sigmas=np.linspace(1, 1 / count, count))
        ours = Euler(evaluations=count, spacing="uniform", shift=3.0).levels(Flow()).times
        assert torch.allclose(ours, flow.sigmas[:-1].double(), atol=1e-6)


def test_noise_of_the_sde_solver_is_the_schedulers(pipelines: Folder) -> None:
    """With the scheduler's own noise in place of ours, SDE-DPM-Solver++ takes its steps."""
    import diffusers

    from distill import VP
    from tests.distill.samplers.mixture import mixture

    teacher, count = mixture(VP(), torch.float32), 8
    ours = DPMSDE(evaluations=count)
    levels = ours.levels(teacher.path)
    stock: Any = diffusers.DPMSolverMultistepScheduler(prediction_type="sample", algorithm_type="sde-dpmsolver++")
    stock.set_timesteps(count)
    stock.sigmas, stock.timesteps = levels.nsr, torch.arange(count)
    stock.set_begin_index(0)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    given = {f"step {k}": torch.randn(5, 2, generator=torch.Generator().manual_seed(k)) for k in range(count)}

    class Given:
        """Random numbers that hand out the noise of the test."""

        def __init__(self, name: str = "") -> None:
            self.name = name

        def stream(self, name: str) -> Given:
            return Given(name)

        def normal(self, *shape: int, dtype: torch.dtype) -> Tensor:
            return given[self.name]

    first = float(levels.nsr[0])
    x = z * first / (1 + first**2) ** 0.5
    for index in range(count):
        x0 = teacher(x, levels.time(index, x))
        x = stock.step(x0, index, x, variance_noise=given[f"step {index}"]).prev_sample
    mine = ours.sample(teacher, z, random=Given())  # type: ignore[arg-type]
    assert torch.allclose(mine, x, atol=1e-5)


def test_rescaled_guidance_is_the_pipelines(pipelines: Folder) -> None:
    """Stable Diffusion's pipeline with guidance_scale and guidance_rescale, and a negative prompt, by DDIM."""
    folder = pipelines("sd15")
    denoiser = load_denoiser(folder)
    network: Any = denoiser.network
    height, width = network.pixels
    asked = {"prompt": "a red cat", "negative_prompt": "a blue hat", "height": height, "width": width}
    settings = {"set_alpha_to_one": True, "clip_sample": False, **TRAILING}
    null = Condition(text_encoder(folder).encode(["a blue hat"])).map(lambda value: value[0])
    network.null = null
    for rescale in (0.0, 0.7):
        call = {**asked, "guidance_scale": 4.0, "guidance_rescale": rescale, "output_type": "latent"}
        calls, used = by_pipeline("sd15", folder, "DDIMScheduler", settings, **call)
        guided = Guidance(cfg=4.0, rescale=rescale).guide(denoiser)
        sampler = DDIM(times=tuple(float(t) for t in used.timesteps))
        seen: list[Tensor] = []
        handle = denoiser.network.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(inputs[0])
        )
        z = start(calls, float(sampler.levels(denoiser.path).nsr[0]))
        sampler.sample(guided, z, condition("sd15", folder, 1))
        handle.remove()
        assert len(seen) == 2 * COUNT  # with and without the prompt
        for (x, _), other in zip(calls, seen[::2], strict=True):
            assert float((x[-1] - other[0]).abs().max()) < 2e-4
        if not rescale:
            plain = sampler.sample(classifier_free(denoiser, 4.0, denoiser.null), z, condition("sd15", folder, 1))
            assert torch.equal(sampler.sample(guided, z, condition("sd15", folder, 1)), plain)
