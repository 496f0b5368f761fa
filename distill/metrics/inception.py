"""The Inception network of 2015, in whose features the FID of the papers is measured.

The architecture and the resizing of TensorFlow 1 are torch-fidelity's. Its package imports torchvision, of which some
machines have no build, and these two modules of it do not. Its own reader of weights would run code in them, so that
the weights are read here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from distill.errors import UserError, one_line, require
from distill.installed import install_command
from distill.metrics.extractor import Extracted, content_hash
from distill.metrics.images import as_bytes
from distill.pickles.files import read_saved
from distill.saved_files import load_tensors, open_regular
from distill.weights import fits, is_finite

INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_WEIGHTS}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BYTES = 95_628_359
_SIZE = 299
_AT_ONCE = 128  # images in one pass, which bounds the memory

Resize = Literal["tensorflow", "clean"]


class Inception:
    """The Inception network as an extractor, with 2,048 features and 1,008 logits without their bias.

    Images are rounded to 8 bits, and grey ones are repeated to three channels.

    Args:
        weights: The file of the weights. None for the published ones where torch keeps downloads.
        resize: How images become 299 pixels wide: `tensorflow` by the bilinear interpolation of TensorFlow 1, as FID,
            EDM and StyleGAN have it, or `clean` by Pillow's bicubic one (clean-fid, arXiv:2104.11222).
        name: The name of the protocol. The hash of the weights follows it if they are not the published ones.

    Raises:
        UserError: The weights are missing or are no Inception network, or torch-fidelity is not installed.
    """

    labels: Tensor | None = None
    logits = True

    def __init__(self, weights: str | Path | None = None, resize: Resize = "tensorflow", name: str = "fid") -> None:
        library = _import_library()
        file = Path(weights) if weights is not None else default_weights()
        _check_file(file, weights is None)
        content = _read_weights(file)
        try:
            network = _build(library, content, name)
        except RuntimeError as error:
            raise UserError(f"Inception: '{file}' holds other weights: {one_line(error):.200}") from None
        state = network.state_dict()
        for key, value in state.items():
            given = content.get(key, value).dtype
            require(fits(given, value.dtype), f"Inception: '{file}' holds {given} in {key}, expected {value.dtype}")
            require(is_finite(value), f"Inception: '{file}' holds numbers that are not finite, in {key}")
        layers = dict(network.named_children())
        self.head: nn.Linear = layers.pop("fc")
        self.trunk = nn.Sequential(*layers.values())  # they stand in the order in which they are called
        self._tensorflow_resize = library.interpolate_bilinear_2d_like_tensorflow1x
        self.resize = resize
        self.name = name if _sha256(file) == SHA256 else f"{name}-{content_hash(state)}"

    def to(self, device: torch.device) -> Inception:
        """Move the network to a device, and return the extractor."""
        self.trunk.to(device)
        self.head.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor, labelled: bool = False) -> Extracted:
        """Return features [N, 2048] and logits [N, 1008], float32, of images [N, 1 or 3, H, W] in [-1, 1]."""
        parts = as_bytes(images, "Inception").split(_AT_ONCE)
        weight = self.head.weight
        with torch.autocast(weight.device.type, enabled=False):  # the features of all numbers are of float32
            found = [self.trunk(self._resized(part.to(weight.device))).flatten(1) for part in parts]
            features = torch.cat(found)
            return Extracted(features, logits=features @ weight.T)

    def _resized(self, pixels: Tensor) -> Tensor:
        """Return the input of the network, float32 [N, 3, 299, 299] in [-1, 1), of pixels uint8 [N, 3, H, W]."""
        size, x = (_SIZE, _SIZE), pixels.float()
        if self.resize == "clean":
            x = interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 255)
        else:
            x = self._tensorflow_resize(x, size, align_corners=False)
        return (x - 128) / 128


def default_weights() -> Path:
    """Return the file in which torch keeps the published weights, where torch-fidelity downloads them to as well."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS


def _check_file(file: Path, published: bool) -> None:
    """Raise UserError, with the command that fetches the weights, if a file of weights is missing.

    Args:
        file: The file.
        published: Whether it must hold the published weights, whose hash is known.
    """
    if not file.is_file():
        fetch = f"`curl -L --create-dirs -o {file} {URL}` fetches them ({BYTES // 10**6} MB)"
        raise UserError(f"Inception: no weights '{file}'; {fetch}")
    if published and _sha256(file) != SHA256:
        raise UserError(f"Inception: '{file}' is damaged: its SHA-256 is not {SHA256}; remove it and fetch it again")


def _read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights, .safetensors or torch's. Nothing in it runs."""
    try:
        content = load_tensors(file) if file.suffix == ".safetensors" else read_saved(file)
    except Exception as error:  # a damaged file raises many types
        raise UserError(f"Inception: cannot read '{file}': {one_line(error):.200}") from None
    named = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    require(named, f"Inception: '{file}' holds no tensors by name")
    return cast(dict[str, Tensor], content)


def _build(library: Any, content: Mapping[str, Tensor], name: str) -> Any:
    """Return the network with its weights.

    Its constructor downloads weights, or reads a file whose pickle may run anything. The download is replaced by the
    tensors that were read, in the module that we have imported for ourselves.
    """
    with patch.object(library, "load_state_dict_from_url", lambda *_, **__: content):
        return library.FeatureExtractorInceptionV3(name, ["2048"])


def _sha256(file: Path) -> str:
    """Return the SHA-256 of a file."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _import_library() -> Any:
    """Import the module of torch-fidelity that holds the network, without the package around it.

    Raises:
        UserError: It is not installed.
    """
    package = "torch_fidelity"
    module = f"{package}.feature_extractor_inceptionv3"
    if package in sys.modules:
        return importlib.import_module(module)
    if (found := importlib.util.find_spec(package)) is None:
        raise UserError(f"Inception: needs torch-fidelity; `{install_command('eval')}` installs it")
    # An empty package in its place, so that its modules are found and its own code does not run. It is taken away
    # again, so that the package itself can still be imported.
    stand_in = ModuleType(package)
    stand_in.__path__ = list(found.submodule_search_locations or ())
    sys.modules[package] = stand_in
    try:
        return importlib.import_module(module)
    finally:
        del sys.modules[package]
