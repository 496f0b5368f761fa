"""Checkpoints as EDM and EDM2 are published: pickles of modules as records of torch_utils.persistence.

The names that such a pickle calls exist here only while one is written.
"""

from __future__ import annotations

import collections
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from distill.teachers import EDM2Net, EDMNet

PERSISTENCE, UTIL = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")
SOURCE = "raise SystemExit('the source of the checkpoint ran')"
AUTHORS = {"EDM2UNet": "UNet", "MPBlock": "Block"}  # the names of the authors' classes, where ours differ


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> Any:
    raise AssertionError("called while writing")


class EasyDict(dict[str, Any]):
    """What the authors keep settings in."""


for function, module in ((_reconstruct_persistent_obj, PERSISTENCE), (EasyDict, UTIL)):
    function.__module__, function.__qualname__ = module.__name__, function.__name__
    setattr(module, function.__name__, function)


class Record:
    """Pickled as an object of a persistent class is."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name, self.state, self.meta = class_name, state, {}

    def __reduce__(self) -> Any:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": self.state}
        return _reconstruct_persistent_obj, ({**meta, **self.meta},)


def record(module: nn.Module, class_name: str | None = None, **arguments: Any) -> Any:
    """A module and all inside as records; containers of torch stay themselves, as with the authors."""
    children = {name: record(child) for name, child in module._modules.items() if child is not None}
    if type(module) is nn.ModuleDict:
        container = nn.ModuleDict()
        container._modules = collections.OrderedDict(children)
        return container
    return Record(
        class_name or AUTHORS.get(type(module).__name__, type(module).__name__),
        training=False,
        _parameters=collections.OrderedDict(module._parameters),
        _buffers=collections.OrderedDict({**module._buffers, "unset": None}),
        _modules=collections.OrderedDict(children),
        _non_persistent_buffers_set=set(),
        _backward_hooks=collections.OrderedDict(),
        _is_full_backward_hook=None,
        skip_scale=np.sqrt(0.5),
        _init_args=(),
        _init_kwargs=arguments,
    )


def checkpoint(network: EDMNet | EDM2Net, **arguments: Any) -> dict[str, Any]:
    """What the authors' files hold; `arguments` join those of the constructor."""
    given = {**network.settings, "use_fp16": True, **arguments}
    edm = isinstance(network, EDMNet)
    return {
        "ema": record(network, "EDMPrecond" if edm else "Precond", **given),
        "loss_fn": Record("EDMLoss", P_mean=-1.2, P_std=1.2, sigma_data=0.5),
        "augment_pipe": Record("AugmentPipe", wavelets=np.ones((2, 3), np.float32)) if edm else None,
        "dataset_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", use_labels=True),
    }


def stability(scale: Any = None, bias: Any = None) -> Any:
    """The encoder of EDM2's latents as the authors keep it: two arrays, and nothing of the autoencoder."""
    mean, std = np.float32([5.81, 3.25, 0.12, -2.15]), np.float32([4.17, 4.62, 3.71, 3.28])
    scale = np.float32(0.5) / std if scale is None else scale
    bias = np.float32(0) - mean * scale if bias is None else bias
    return Record("StabilityVAEEncoder", vae_name="sd", scale=scale, bias=bias, batch_size=8, _vae=None)


@contextmanager
def names() -> Iterator[None]:
    """The names of the authors' code, for as long as something is pickled."""
    packages = {"torch_utils": ModuleType("torch_utils"), "dnnlib": ModuleType("dnnlib")}
    made = {**packages, PERSISTENCE.__name__: PERSISTENCE, UTIL.__name__: UTIL}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def dump(data: Any, protocol: int = 4) -> bytes:
    """The pickle of `data`."""
    with names():
        return pickle.dumps(data, protocol)


def write(data: Any, file: Path, protocol: int = 4) -> Path:
    file.write_bytes(data if isinstance(data, bytes) else dump(data, protocol))
    return file
