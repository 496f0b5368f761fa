"""Weights for the Inception network that stand in for the published ones, which are too large for a test."""

import zlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from distill.metrics.inception import _build, _import_library


def write_stand_in(file: Path, seed: int = 0) -> Path:
    """Write random weights that are a function of the seed and of their names, as the golden file was made with."""
    state = {name: _draw(name, value, seed) for name, value in _outline().items()}
    torch.save(state, file)
    return file


def _outline() -> dict[str, Tensor]:
    """The state dict of the network, whose constructor cannot do without weights."""
    library = _import_library()
    with patch.object(library.FeatureExtractorInceptionV3, "load_state_dict"):
        state: dict[str, Tensor] = _build(library, {}, "fid").state_dict()
    return state


def _draw(name: str, like: Tensor, seed: int) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros_like(like)
    generator = np.random.RandomState(zlib.crc32(f"{seed} {name}".encode()))
    drawn = generator.standard_normal(tuple(like.shape)).astype(np.float32)
    if name.endswith("running_var"):
        drawn = (0.5 + 0.1 * np.abs(drawn)).astype(np.float32)
    elif name.endswith(("running_mean", "bias")):
        drawn = 0.1 * drawn
    elif name.endswith("bn.weight"):
        drawn = 1 + 0.1 * drawn
    else:
        drawn = drawn * np.float32(np.sqrt(2 / np.prod(like.shape[1:])))
    return torch.from_numpy(np.ascontiguousarray(drawn, dtype=np.float32))
