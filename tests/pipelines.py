"""The tiny pipelines of distill.tiny in the tests: written once, and called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.tiny.pipelines import BUILDERS, build
from tests.tiny import once


def call(name: str, **changes: Any) -> dict[str, Any]:
    """Return arguments for calling the pipeline `name`: one image after 2 steps, from a fixed seed."""
    common = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(7), "output_type": "np"}
    if name.startswith("ddpm"):
        return {**common, **changes}
    common["guidance_scale"] = 2.0
    if name == "dit":
        return {**common, "class_labels": [3], **changes}
    common["prompt"] = "a red cat"
    if not name.startswith("sd") or name == "sd3":
        common["max_sequence_length"] = 16
    if name.startswith(("pixart", "sana")):  # neither sizes nor words are turned into others
        common |= {"use_resolution_binning": False, "clean_caption": False}
    if name.startswith("sana"):
        common |= {"height": 32, "width": 32, "complex_human_instruction": None}
    if name.startswith("flux") or name == "pixart_alpha_1024":
        common |= {"height": 16, "width": 16}
    return {**common, **changes}


def save(name: str, folder: Path) -> None:
    """Write the pipeline `name` as diffusers saves it."""
    build(name).save_pretrained(folder)


PIPELINES: dict[str, Callable[[Path], None]] = {name: partial(save, name) for name in BUILDERS}


@pytest.fixture(scope="session")
def pipelines(shared: Path) -> Callable[[str], Path]:
    """Return the folder of the tiny pipeline of a name, written when a test first asks for it."""
    return lambda name: once(shared, f"pipeline_{name}", PIPELINES[name])
