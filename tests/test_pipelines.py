"""The tiny pipelines are what diffusers saves and loads."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from tests.pipelines import PIPELINES, build, call


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that asks the network for anything fails."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def modules(pipeline: diffusers.DiffusionPipeline) -> list[torch.nn.Module]:
    """The networks of a pipeline."""
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]


@pytest.mark.parametrize("name", PIPELINES)
def test_reload(name: str, pipelines: Callable[[str], Path]) -> None:
    """The saved folder loads, and samples the images of the pipeline that was saved, bit for bit."""
    built = build(name)
    loaded = diffusers.DiffusionPipeline.from_pretrained(pipelines(name), local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    for part in modules(loaded):
        for parameter in part.parameters():  # a mapped file may lie askew in memory, which changes a sum's last bit
            parameter.data = parameter.data.clone()
    assert type(loaded) is type(built)
    images = [pipeline(**call(name)).images for pipeline in (built, loaded)]
    assert np.isfinite(images[0]).all()
    assert images[0].std() > 0.05, "an image that is flat or clipped shows nothing"
    assert np.array_equal(images[0], images[1])


@pytest.mark.parametrize("name", PIPELINES)
def test_small(name: str) -> None:
    """Few parameters, none of them zero."""
    parts = modules(build(name))
    parameters = [parameter for part in parts for parameter in part.parameters()]
    assert sum(parameter.numel() for parameter in parameters) < 250_000
    assert all(parameter.count_nonzero() == parameter.numel() for parameter in parameters)
    assert all(parameter.dtype == torch.float32 for parameter in parameters)
    assert not any(module.training for part in parts for module in part.modules())


@pytest.mark.parametrize("name", [name for name in PIPELINES if not name.startswith(("ddpm", "dit"))])
def test_prompt(name: str) -> None:
    """Prompts of the same length that differ in one letter give different images: every letter is read."""
    pipeline = build(name)
    images = [pipeline(**call(name, prompt=prompt)).images for prompt in ("a red cat", "a red car")]
    assert np.abs(images[0] - images[1]).max() > 1e-4
