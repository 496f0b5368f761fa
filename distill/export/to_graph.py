"""The whole generator as one graph that needs none of its code: torch.export's .pt2, and ONNX.

Unit normal noise [B, C, H, W] and the condition -> samples [B, C, H, W], unclamped; preconditioning and time are
constants of the graph, the batch is dynamic.
"""

from __future__ import annotations

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

PROGRAM, MODEL = "generator.pt2", "model.onnx"
OPSET = 20
BATCHES = (1, 2, 5)  # one is a case of its own to a tracer
MOST = 63  # diffusers' Upsample2D takes another way from a batch of 64 on
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class OneStep(nn.Module):
    """The generator's arithmetic around its network, with its five constants."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.network = generator.denoiser.network
        self.constants = constants(generator)

    def forward(self, noise: Tensor, cond: ConditionLike = None) -> Tensor:
        c = self.constants
        x_t = c["scale"] * noise
        time = noise.new_full((noise.shape[0],), c["timestep"])  # len() would fix the batch
        output = cast(Tensor, self.network(c["input_scale"] * x_t, time, Condition.of(cond)))
        return c["from_x_t"] * x_t + c["from_output"] * output


def torch_export_format(generator: Generator, cond: Condition, _: Path | None = None) -> Format:
    """A program of torch.export, which is called as the generator is: (noise, cond)."""

    def write(folder: Path) -> None:
        folder.mkdir()
        with _quietly():
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
    """A model for onnxruntime; its inputs are `noise`, and `labels` or the names of the conditions."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx: needs {', '.join(missing)}; pip install 'distill-onestep[onnx]'")

    def write(folder: Path) -> None:
        from onnxscript.optimizer import fold_constants, remove_unused_nodes

        folder.mkdir()
        names = ["noise", *conditions(generator, cond, "np")]
        with _quietly():
            program = torch.onnx.export(
                _trace(generator, cond),
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=["sample"],
                dynamic_shapes=_sizes(cond, "batch"),  # the program has them; here for the name
                optimize=False,  # its rewriting drops the 1e-15 of Sana's attention, and divides 0 by 0
                verbose=False,
            )
            assert program is not None
            fold_constants(program.model)
            remove_unused_nodes(program.model)
            program.save(folder / MODEL)  # weights beyond protobuf's 2 GB go to a file beside it

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
    given = inputs(generator, cond, batch=2)
    batch = torch.export.Dim("batch", min=1, max=MOST)
    arguments = (given.noise, given.cond.plain) if cond else (given.noise,)
    program = torch.export.export(OneStep(generator), arguments, dynamic_shapes=_sizes(cond, batch))
    for node in list(program.graph.nodes):
        node.meta.pop("stack_trace", None)  # names files of this machine
        if node.target is torch.ops.aten.squeeze.dim and node.args[0].meta["val"].shape[node.args[1]] != 1:
            node.replace_all_uses_with(node.args[0])  # PixArt's changes nothing, and ONNX's refuses that
            program.graph.erase_node(node)
    return program


def _sizes(cond: Condition, batch: Any) -> tuple[Any, ...]:
    """That the first dimension of noise and condition is `batch`, in the form of the arguments."""
    sizes = {name: {0: batch} for name in cond}
    return ({0: batch}, *([sizes["labels"] if cond.labels is not None else sizes] if cond else []))


def _read_program(folder: Path) -> Reader:
    with _quietly():
        program: Any = torch.export.load(folder / PROGRAM).module()

    def sample(given: Inputs) -> Tensor:
        x: Tensor = program(given.noise, given.cond.plain) if given.cond else program(given.noise)
        return x

    return sample


def _read_model(folder: Path) -> Reader:
    import onnx
    import onnxruntime

    onnx.checker.check_model(folder / MODEL)
    session = onnxruntime.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])

    def sample(given: Inputs) -> Tensor:
        feed = {name: value.numpy() for name, value in {"noise": given.noise, **given.cond}.items()}
        return torch.from_numpy(session.run(None, feed)[0])

    return sample


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporters warn of among themselves."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)
