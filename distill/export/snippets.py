"""Python lines for cards, which call a loaded generator and turn its samples into images."""

from torch import Tensor

from distill.conditions import Condition
from distill.export.format import BATCH, Source, seen_classes
from distill.generator import Generator

RANDOM = {"torch": "torch.randn({})", "np": "np.random.standard_normal(({})).astype(np.float32)"}
EMBEDDINGS = "  # in place of what the text encoders give"


def noise(generator: Generator, library: str) -> str:
    """Return a line that draws unit normal noise for BATCH samples, with the `library` "torch" or "np"."""
    sizes = ", ".join(map(str, (BATCH, *generator.denoiser.network.shape)))
    return f"noise = {RANDOM[library].format(sizes)}\n"


def conditions(generator: Generator, cond: Condition, library: str) -> dict[str, str]:
    """Return expressions for BATCH conditions like `cond`, by name, with the `library` "torch" or "np".

    Labels have the name "labels".
    """
    if cond.labels is not None:
        if generator.denoiser.network.unseen:
            seen, make = seen_classes(generator), {"torch": "tensor"}.get(library, "array")
            return {"labels": f"{library}.{make}({[seen[i % len(seen)] for i in range(BATCH)]})"}
        return {"labels": f"{library}.arange({BATCH}) % {generator.denoiser.network.classes}"}
    return {name: _ones(value, library) for name, value in cond.items()}


def call(generator: Generator, cond: Condition) -> str:
    """Return lines that call `generator`, a function of noise and a condition in torch."""
    given = conditions(generator, cond, "torch")
    lines, argument = "", ", labels" if given else ""
    if given and cond.labels is None:
        entries = "".join(f'    "{name}": {value},{EMBEDDINGS}\n' for name, value in given.items())
        lines, argument = f"prompts = {{\n{entries}}}\n", ", prompts"
    elif given:
        lines = f"labels = {given['labels']}\n"
    call = f"with torch.no_grad():\n    samples = generator(noise{argument})\n"
    return noise(generator, "torch") + lines + call + finish(generator, "clamp")


def call_pipeline(source: Source, stock: bool, call: str) -> str:
    """Return lines that load the diffusers pipeline in `source` as `pipe`, and then the line `call`."""
    trust = "" if stock else ", trust_remote_code=True"
    load = f"pipe = DiffusionPipeline.from_pretrained({source.quoted}{trust})"
    return f"from diffusers import DiffusionPipeline\n{load}\n{call}\n"


def finish(generator: Generator, clamp: str) -> str:
    """Return a line that turns `samples` into `images` or `latents`. `clamp` is the name of the clamping method."""
    if generator.denoiser.latents:
        return "latents = samples  # the teacher's decoder makes images of them\n"
    shape = [BATCH, *generator.denoiser.network.shape]
    return f"images = samples.{clamp}(-1, 1) / 2 + 0.5  # {shape}, in [0, 1]\n"


def _ones(value: Tensor, library: str) -> str:
    """Return an expression for ones of the shape and dtype of `value`, with BATCH rows."""
    sizes = ", ".join(map(str, (BATCH, *value.shape[1:])))
    kind = str(value.dtype).removeprefix("torch.").replace("bool", "bool_" if library == "np" else "bool")
    return f"{library}.ones(({sizes}), dtype={library}.{kind})"
