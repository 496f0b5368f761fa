"""Lines of Python for cards: a loaded generator is called, and its samples become images."""

from __future__ import annotations

from torch import Tensor

from distill.conditions import Condition
from distill.export.format import BATCH
from distill.generator import Generator

RANDOM = {"torch": "torch.randn({})", "np": "np.random.standard_normal(({})).astype(np.float32)"}
EMBEDDINGS = "  # in place of what the text encoders give"


def noise(generator: Generator, library: str) -> str:
    """BATCH times unit normal noise, of "torch" or "np"."""
    sizes = ", ".join(map(str, (BATCH, *generator.denoiser.network.shape)))
    return f"noise = {RANDOM[library].format(sizes)}\n"


def conditions(generator: Generator, cond: Condition, library: str) -> dict[str, str]:
    """Name -> an expression for BATCH conditions like `cond`, of "torch" or "np"; labels have the name "labels"."""
    if cond.labels is not None:
        return {"labels": f"{library}.arange({BATCH}) % {generator.denoiser.network.classes}"}
    return {name: _ones(value, library) for name, value in cond.items()}


def call(generator: Generator, cond: Condition) -> str:
    """Calls `generator`, a torch function of noise and condition."""
    given = conditions(generator, cond, "torch")
    lines, argument = "", ", labels" if given else ""
    if given and cond.labels is None:
        entries = "".join(f'    "{name}": {value},{EMBEDDINGS}\n' for name, value in given.items())
        lines, argument = f"prompts = {{\n{entries}}}\n", ", prompts"
    elif given:
        lines = f"labels = {given['labels']}\n"
    call = f"with torch.no_grad():\n    samples = generator(noise{argument})\n"
    return noise(generator, "torch") + lines + call + finish(generator, "clamp")


def finish(generator: Generator, clamp: str) -> str:
    """Turns `samples` into `images`, or `latents`; `clamp` is the method's name."""
    if generator.denoiser.latents:
        return "latents = samples  # the teacher's decoder makes images of them\n"
    shape = [BATCH, *generator.denoiser.network.shape]
    return f"images = samples.{clamp}(-1, 1) / 2 + 0.5  # {shape}, in [0, 1]\n"


def _ones(value: Tensor, library: str) -> str:
    sizes = ", ".join(map(str, (BATCH, *value.shape[1:])))
    kind = str(value.dtype).removeprefix("torch.").replace("bool", "bool_" if library == "np" else "bool")
    return f"{library}.ones(({sizes}), dtype={library}.{kind})"
