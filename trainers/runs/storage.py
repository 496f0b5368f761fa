"""The storage of a frozen teacher in bfloat16, where that changes no bit of what it computes under autocast."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.denoiser import Denoiser
from distill.errors import one_line
from distill.generator import Generator
from distill.times import Karras
from trainers.data.batches import Batches
from trainers.io.console import plain
from trainers.recipe.run import Run

CAST = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
"""The modules whose weights autocast casts. Norms, embeddings, tables and bare parameters keep float32."""
TRIAL_LEVELS = 16  # noise levels of the trial


def low_names(run: Run, teacher: Denoiser, batches: Batches, accelerator: Accelerator) -> frozenset[str]:
    """Return the names of the teacher's parameters that are stored in bfloat16. Collective.

    A network that casts its weights needs no trial. Another one is tried, and a line says what was chosen.

    Args:
        run: The recipe.
        teacher: The teacher, which is moved to the device for the trial. Its weights are as before afterwards.
        batches: The batches of this process.
        accelerator: Ranks and device.
    """
    names = frozenset(name for name, _ in teacher.named_parameters())
    if run.precision != "bfloat16":
        return frozenset()
    if teacher.network.casts_weights:
        return names
    low, reason = _cast_names(teacher), "it has no convolution, linear layer or attention"
    if run.sharding is not None and run.sharding.teacher and (accelerator.num_processes > 1 or run.sharding.offload):
        low, reason = frozenset(), "it is sharded, and a trial in bfloat16 would need it whole"
    elif low:
        flaw = _flaw(run, teacher, low, batches, accelerator.device)
        if accelerator.gather(torch.tensor([bool(flaw)], device=accelerator.device)).any():
            low, reason = frozenset(), flaw or "it computes otherwise on another process"
    line = f"its tensors stay in float32: {reason}"
    if low:
        line = f"{len(low)} of {len(names)} tensors are stored in bfloat16, as autocast uses them"
        line += "; the others stay in float32" if low < names else ""
    plain(stderr=True, quiet=not accelerator.is_main_process).print(f"teacher: {line}")
    return low


def store(teacher: Denoiser, low: frozenset[str]) -> None:
    """Store some of the teacher's parameters in bfloat16, in place, so that networks that share them see the change.

    Buffers keep their dtype, since the frequencies of Fourier features need float32.
    """
    for name, parameter in teacher.named_parameters():
        if name in low:
            parameter.data = parameter.data.bfloat16()


def _cast_names(teacher: Denoiser) -> frozenset[str]:
    """Return the names of the parameters that belong to modules of CAST alone."""
    owned = [(isinstance(m, CAST), p) for m in teacher.modules() for p in m.parameters(recurse=False)]
    others = {parameter for cast, parameter in owned if not cast}  # such as a table that a linear layer shares
    cast = {parameter for cast, parameter in owned if cast} - others
    return frozenset(name for name, parameter in teacher.named_parameters() if parameter in cast)


def _flaw(run: Run, teacher: Denoiser, low: frozenset[str], batches: Batches, device: torch.device) -> str:
    """Return why some parameters must stay in float32, in words, or "" if bfloat16 changes no output of the network."""
    kept = {parameter: parameter.data for parameter in teacher.to(device).eval().parameters()}
    expected = _outputs(run, teacher, batches)
    try:
        store(teacher, low)
        found = _outputs(run, teacher, batches)
    except Exception as error:  # the user's code may raise anything
        return f"it fails with weights in bfloat16 ({type(error).__name__}: {one_line(error)})"
    finally:
        for parameter, data in kept.items():
            parameter.data = data
    same = all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    return "" if same else "in bfloat16 its outputs are others, since it uses weights where autocast does not cast them"


@torch.no_grad()
def _outputs(run: Run, teacher: Denoiser, batches: Batches) -> list[Tensor]:
    """Return the outputs of the network for the generator's first samples, and for these at several noise levels."""
    found: list[Tensor] = []
    # Of the network itself: the estimates of x0 hide small differences at low noise.
    hook = teacher.network.register_forward_hook(lambda module, inputs, output: found.append(output))
    batch, path = batches.micro("probe", 0, 0), teacher.path
    noise = batch.random.stream("noise").normal(*batch.noise.shape[1:], dtype=batch.noise.dtype)
    times = path.time(Karras().nsr((torch.arange(TRIAL_LEVELS, dtype=torch.float64) + 0.5) / TRIAL_LEVELS, path)).to(
        noise.device
    )
    with torch.random.fork_rng([noise.device] if noise.device.type == "cuda" else []):
        x = Generator(teacher, *run.entry.at(path))(batch.noise, batch.cond)
        for first in range(0, TRIAL_LEVELS, 4):
            t = times[(first + torch.arange(len(x), device=noise.device)) % TRIAL_LEVELS]
            teacher(path.diffuse(x, t, noise), t, batch.cond)
    hook.remove()
    return found
