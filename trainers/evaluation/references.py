"""The real images of a protocol: their statistics, computed through the cache or read from a published file."""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from distill.errors import UserError, one_line
from distill.metrics import MOST_KEPT, Extractor, Moments, Reference
from distill.pickles.files import read_pickle
from distill.pickles.reader import Object
from distill.saved_files import open_regular, open_tensors, tensor_bytes
from trainers.data import Dataset
from trainers.data.cache import Cache
from trainers.io.atomic import atomic_file
from trainers.io.console import plain

SHARD = 2_500  # images in a shard of features, which is what a kill loses
READ_AT_ONCE = 250  # images
MOST_FEATURES = 2**12  # the largest D of published statistics
_FORMAT = "distill reference 1"
_HOST = "https://nvlabs-fi-cdn.nvidia.com"
PUBLISHED = {
    **{
        f"{name}.npz": f"{_HOST}/edm/fid-refs/{name}.npz"
        for name in ("cifar10-32x32", "ffhq-64x64", "afhqv2-64x64", "imagenet-64x64")
    },
    **{f"{name}.pkl": f"{_HOST}/edm2/dataset-refs/{name}.pkl" for name in ("img64", "img512")},
}
"""The statistics that EDM (of FID) and EDM2 (of FID and FD-DINOv2) publish, by the name of the file."""
_RESOLUTION = re.compile(r"(?<!\d)(\d{2,4})x(\d{2,4})(?!\d)|(?<![a-z])img(\d{2,4})(?!\d)")


@dataclass(frozen=True, eq=False)
class Stored:
    """A reference as a file holds it.

    Attributes:
        reference: The statistics.
        protocol: The name of the extractor.
        resolution: (H, W) of the images. None where the file does not say it.
        content: The hash of the images. None in published files.
    """

    reference: Reference
    protocol: str
    resolution: tuple[int, int] | None
    content: str | None = None


def compute_reference(dataset: Dataset, extractor: Extractor, cache: str, quiet: bool = False) -> Stored:
    """Return the statistics of a data set, from features in the cache. Processes divide the work.

    A call that was killed continues. Of more than MOST_KEPT images that many features at random are kept.

    Args:
        dataset: The data, with images.
        extractor: The extractor. Its name must be a function of all that its features depend on.
        cache: The folder of the cache.
        quiet: Whether to print no progress.

    Raises:
        UserError: The data set has no images, or the extractor takes none of its shape.
    """
    if dataset.read is None:
        raise UserError(f"evaluation: needs real images, data: {dataset.name} has none; name a reference")

    def make(first: int, last: int) -> dict[str, Tensor]:
        parts = torch.arange(first, last).split(READ_AT_ONCE)
        found = [extractor.extract(dataset.images(part)).features.float().cpu() for part in parts]
        return {"features": torch.cat(found)}

    content = dataset.pixels_hash()
    origin = {"extractor": extractor.name, "content": content, "shape": list(dataset.shape)}
    tables = Cache(Path(cache).expanduser(), plain(stderr=True, quiet=quiet))
    table = tables.table("features", origin, dataset.count, SHARD, make)
    moments = Moments.of(table.shards[0]["features"])
    for shard in table.shards[1:]:
        moments = moments.merge(Moments.of(shard["features"]))
    if dataset.count <= MOST_KEPT:
        features = torch.cat([shard["features"] for shard in table.shards])
    else:
        features = table.rows(dataset.order(0, torch.arange(MOST_KEPT)))["features"]
    reference = Reference(dataset.name, moments, dataset.count, features)
    return Stored(reference, extractor.name, _two(dataset.shape), content)


def write_reference(stored: Stored, file: Path) -> None:
    """Write a reference as a safetensors file, which `read_reference` reads."""
    reference = stored.reference
    tensors = {"mean": reference.moments.mean, "covariance": reference.moments.covariance}
    if reference.features is not None:
        tensors["features"] = reference.features
    facts = {
        "format": _FORMAT,
        "protocol": stored.protocol,
        "name": reference.name,
        "count": reference.count,
        "resolution": stored.resolution,
        "content": stored.content,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as staging:
        staging.write_bytes(tensor_bytes(tensors, {"reference": json.dumps(facts)}))


def read_reference(file: Path, protocol: str) -> Stored:
    """Read the statistics of real images.

    Args:
        file: A .safetensors file of `distill reference`, an .npz file with `mu` and `sigma` as EDM publishes it, or a
            .pkl file with those of several protocols as EDM2 does. Nothing in it runs.
        protocol: The name of the extractor, such as fid or fd_dinov2.

    Raises:
        UserError: The file is missing or damaged, or it is of another protocol.
    """
    readers = {".safetensors": _read_ours, ".npz": _read_npz, ".pkl": _read_pickled}
    if file.suffix not in readers:
        raise UserError(f"reference: '{file}' must end in {', '.join(readers)}")
    if not file.is_file():
        raise UserError(f"reference: no file '{file}'; {_how_to_get(file)}")
    try:
        stored = readers[file.suffix](file, protocol)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError) as error:
        raise UserError(f"reference: cannot read '{file}': {one_line(error):.200}") from None
    except (SafetensorError, zipfile.BadZipFile) as error:
        raise UserError(f"reference: cannot read '{file}': {one_line(error):.200}") from None
    if stored.protocol != protocol:
        raise UserError(f"reference: '{file}' is of {stored.protocol}, the protocol is {protocol}")
    return stored


def check_reference(stored: Stored, file: Path, shape: tuple[int, ...], dataset: Dataset) -> None:
    """Raise UserError when the statistics are of other images than those that are compared with them.

    Args:
        stored: The statistics.
        file: Their file, for the message.
        shape: The shape (C, H, W) of the samples.
        dataset: The data, which may have no images.
    """
    if stored.resolution is not None and stored.resolution != _two(shape):
        theirs = "x".join(map(str, stored.resolution))
        raise UserError(f"reference: '{file}' is of {theirs} pixels, the samples have {'x'.join(map(str, shape[1:]))}")
    if None not in (stored.content, dataset.read) and stored.content != dataset.pixels_hash():
        raise UserError(f"reference: '{file}' is of other images than data: {dataset.name}")


def _how_to_get(file: Path) -> str:
    """Return how a missing file of statistics can be had."""
    if file.name in PUBLISHED:
        return f"`curl --create-dirs -o {file} {PUBLISHED[file.name]}` fetches it"
    return f"`distill reference DATA --out {file.with_suffix('.safetensors')}` computes one"


def _two(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return (H, W) of a shape (C, H, W), or None for samples that are no images."""
    return (shape[1], shape[2]) if len(shape) == 3 else None


def _named_resolution(file: Path) -> tuple[int, int] | None:
    """Return (H, W) in the name of a published file: cifar10-32x32.npz, img512.pkl."""
    found = _RESOLUTION.search(file.stem)
    if found is None:
        return None
    height, width, side = found.groups()
    return (int(side), int(side)) if side else (int(height), int(width))


def _moments(mean: Tensor, covariance: Tensor) -> Moments:
    """Return published moments. Their number of images is not known, and the distance does not depend on it."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu {list(mean.shape)} and sigma {list(covariance.shape)}, expected [D] and [D, D]")
    return Moments(mean, covariance, 2)


def _read_ours(file: Path, protocol: str) -> Stored:
    """Read a file of `write_reference`."""
    with open_tensors(file) as opened:
        facts = json.loads((opened.metadata() or {})["reference"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
    if facts["format"] != _FORMAT:
        raise ValueError(f"its format is {facts['format']!r:.40}, expected {_FORMAT!r}")
    moments, features = _moments(tensors["mean"], tensors["covariance"]), tensors.get("features")
    if features is not None and features.shape[1:] != moments.mean.shape:
        raise ValueError(f"features {list(features.shape)}, expected [N, {len(moments.mean)}]")
    reference = Reference(str(facts["name"]), moments, int(facts["count"]), features)
    resolution = facts["resolution"] and (int(facts["resolution"][0]), int(facts["resolution"][1]))
    return Stored(reference, str(facts["protocol"]), resolution, str(facts["content"]))


def _read_npz(file: Path, protocol: str) -> Stored:
    """Read the moments that EDM publishes: `mu` and `sigma` of Inception's features."""
    with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
        moments = _moments(_array(archive, "mu"), _array(archive, "sigma"))
    return Stored(Reference(file.stem, moments, None), "fid", _named_resolution(file))


def _array(archive: zipfile.ZipFile, name: str) -> Tensor:
    """Read an array of floating-point numbers of an .npz file, after a look at its header."""
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
        return _tensor(shape, fortran, str(dtype.str), lambda count: member.read(count))


def _read_pickled(file: Path, protocol: str) -> Stored:
    """Read the moments that EDM2 publishes: {protocol: {"mu", "sigma"}}. Nothing in the pickle runs."""
    content = read_pickle(file)
    if not isinstance(content, Mapping) or protocol not in content:
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"reference: '{file}' holds {held:.100}, expected {protocol}")
    moments = _moments(_pickled_array(content[protocol]["mu"]), _pickled_array(content[protocol]["sigma"]))
    return Stored(Reference(file.stem, moments, None), protocol, _named_resolution(file))


def _pickled_array(record: Any) -> Tensor:
    """Return the array in the record of a numpy array."""
    if not isinstance(record, Object):
        raise ValueError(f"{type(record).__name__} where an array was expected")
    _, shape, dtype, fortran, content = record.state
    order = {"<": "<", "=": "<"}[dtype.state[1]]
    return _tensor(tuple(shape), bool(fortran), order + str(dtype.args[0]), lambda count: bytes(content[:count]))


def _tensor(shape: tuple[int, ...], fortran: bool, dtype: str, read: Any) -> Tensor:
    """Return an array of statistics, float64.

    Args:
        shape: Its shape, as the file claims it.
        fortran: Whether its first dimension is the fastest.
        dtype: Its dtype, as numpy writes it.
        read: (count) -> that many bytes.

    Raises:
        ValueError: It is no array of at most MOST_FEATURES squared numbers, or it is cut short.
    """
    if dtype not in ("<f4", "<f8") or not 1 <= len(shape) <= 2 or not all(0 < n <= MOST_FEATURES for n in shape):
        raise ValueError(f"an array {dtype} {list(shape)!s:.60}, expected at most [{MOST_FEATURES}, {MOST_FEATURES}]")
    numbers = int(np.prod(shape))
    content = read(numbers * int(dtype[2]))
    if len(content) != numbers * int(dtype[2]):
        raise ValueError("an array is cut short")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(array.astype(np.float64))
