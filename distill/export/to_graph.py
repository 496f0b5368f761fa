"""A one-step generator as one graph that needs none of its code: torch.export's .pt2, or ONNX.

The graph maps unit normal noise [B, C, H, W] and a condition to samples [B, C, H, W], which are not clamped to [-1, 1].
The preconditioning and the time are constants of the graph. The batch size is dynamic.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.conditions import Condition, ConditionLike
from distill.errors import UserError
from distill.export.format import Format, Inputs, Reader, Source, constants, inputs
from distill.export.snippets import call, conditions, finish, noise
from distill.generator import Generator
from distill.installed import install_command

PROGRAM, MODEL = "generator.pt2", "model.onnx"
OPSET = 20
BATCHES = (1, 2, 5)  # tracers may treat a batch of one differently
MOST = 63  # diffusers' Upsample2D takes another branch from a batch of 64 on, which a trace cannot hold
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class OneStep(nn.Module):
    """A generator as a module to trace: its network, and the arithmetic around it with its five constants."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.network = generator.denoiser.network
        self.constants = constants(generator)

    def forward(self, noise: Tensor, cond: ConditionLike = None) -> Tensor:
        c = self.constants
        x_t = c["scale"] * noise
        time = noise.new_full((noise.shape[0],), c["timestep"])  # len(noise) would fix the batch
        output = cast(Tensor, self.network(c["input_scale"] * x_t, time, Condition.of(cond)))
        return c["from_x_t"] * x_t + c["from_output"] * output


def torch_export_format(generator: Generator, cond: Condition, _: Path | None = None) -> Format:
    """Return the format of a program of torch.export, which is called as the generator is, with (noise, cond)."""

    def write(folder: Path) -> None:
        folder.mkdir()
        with _without_warnings():
            torch.export.save(_trace(generator, cond), folder / PROGRAM)

    def snippet(source: Source) -> str:
        load = f'import torch\n{source.folder}generator = torch.export.load(f"{{folder}}/{PROGRAM}").module()\n'
        return load + call(generator, cond)

    return Format(
        cond=cond,
        write=write,
        read=_read_program,
        snippet=snippet,
        loading="It needs torch alone, of the version it was written with or a newer one.",
        limits=(f"A batch is 1 to {MOST} samples.",),
        batches=BATCHES,
    )


def onnx_format(generator: Generator, cond: Condition, _: Path | None = None) -> Format:
    """Return the format of an ONNX model for onnxruntime.

    Its inputs are `noise`, and `labels` or the text conditions by name.

    Raises:
        UserError: A package that writes or reads ONNX is not installed.
    """
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx: needs {', '.join(missing)}; `{install_command('onnx')}`")

    def write(folder: Path) -> None:
        from onnxscript.optimizer import fold_constants, remove_unused_nodes

        folder.mkdir()
        names = ["noise", *conditions(generator, cond, "np")]
        with _without_warnings():
            program = torch.onnx.export(
                _trace(generator, cond),
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=["sample"],
                dynamic_shapes=_dynamic_shapes(cond, "batch"),  # again, to give the dimension its name
                optimize=False,  # see below
                verbose=False,
            )
            assert program is not None
            # The exporter's own optimiser also rewrites arithmetic. In Sana's linear attention it drops the 1e-15 in
            # the denominator, and then divides 0 by 0. So only its two steps that keep all values run here.
            fold_constants(program.model)
            remove_unused_nodes(program.model)
            program.save(folder / MODEL)  # puts weights beyond the 2 GB of protobuf into a file beside it

    def snippet(source: Source) -> str:
        given = conditions(generator, cond, "np")
        feed = "".join(f', "{name}": {value}' for name, value in given.items())
        return (
            f"import numpy as np\nimport onnxruntime\n{source.folder}"
            f'session = onnxruntime.InferenceSession(f"{{folder}}/{MODEL}")\n{noise(generator, "np")}'
            f'samples = session.run(None, {{"noise": noise{feed}}})[0]\n{finish(generator, "clip")}'
        )

    return Format(
        cond=cond,
        write=write,
        read=_read_model,
        snippet=snippet,
        loading=f"It needs onnxruntime alone (opset {OPSET}).",
        library="onnx",
        batches=BATCHES,
    )


def _trace(generator: Generator, cond: Condition) -> torch.export.ExportedProgram:
    """Trace the generator under conditions like `cond`, for any batch size from 1 to MOST."""
    given = inputs(generator, cond, batch=2)
    batch = torch.export.Dim("batch", min=1, max=MOST)
    arguments = (given.noise, given.cond.plain) if cond else (given.noise,)
    program = torch.export.export(OneStep(generator), arguments, dynamic_shapes=_dynamic_shapes(cond, batch))
    for node in list(program.graph.nodes):
        node.meta.pop("stack_trace", None)  # it names files of this machine
        # PixArt squeezes a dimension whose size is not 1. torch then returns its input, but ONNX's Squeeze fails at
        # that size, so such a node is removed.
        if node.target is torch.ops.aten.squeeze.dim and node.args[0].meta["val"].shape[node.args[1]] != 1:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    return program


def _dynamic_shapes(cond: Condition, batch: Any) -> tuple[Any, ...]:
    """Return the dynamic dimensions of the arguments: the first of the noise, and of every condition, is `batch`."""
    sizes = {name: {0: batch} for name in cond}
    return ({0: batch}, *([sizes["labels"] if cond.labels is not None else sizes] if cond else []))


def _read_program(folder: Path) -> Reader:
    """Return a reader of the .pt2 file."""
    with _without_warnings():
        program: Any = torch.export.load(folder / PROGRAM).module()
    return lambda given: program(given.noise, given.cond.plain) if given.cond else program(given.noise)


def _read_model(folder: Path) -> Reader:
    """Return a reader of the ONNX file, by onnxruntime on the CPU."""
    import onnx
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # it reports the names and hashes of models to its maker
    onnx.checker.check_model(folder / MODEL)
    session = onnxruntime.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])

    def sample(given: Inputs) -> Tensor:
        feed = {name: value.numpy() for name, value in {"noise": given.noise, **given.cond}.items()}
        return torch.from_numpy(session.run(None, feed)[0])

    return sample


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the warnings of torch's exporters, which concern their own internals and no user of ours."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)
