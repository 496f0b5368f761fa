"""The real images of a protocol: their statistics, computed through the cache or read from a published file."""

import json
import math
import re
import reprlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, with_config
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import TypedDict

from distill.errors import UserError, one_line, require
from distill.metrics import MOST_KEPT, Extractor, Moments, Reference
from distill.pickles.files import read_pickle
from distill.pickles.reader import Object
from distill.public_text import printable
from distill.records import STRICT, parse_record
from distill.saved_files import open_archive, open_tensors, tensor_bytes
from distill.weights import is_finite
from trainers.data import Dataset
from trainers.data.cache import Cache
from trainers.io.atomic import atomic_file
from trainers.io.console import plain

SHARD = 2_500  # images in a shard of features, which is what a kill loses
READ_AT_ONCE = 250  # images
MOST_FEATURES = 2**12  # the largest D in a file
_LONGEST_HEADER = 2**14  # bytes before the numbers of an array
_HEADER = re.compile(
    rb"\{'descr': '(<f[48])', 'fortran_order': (True|False), 'shape': \((\d{1,15}),(?: (\d{1,15}))?\), \} *\n"
)
_FORMAT: Literal["distill reference 1"] = "distill reference 1"
_Side = Annotated[int, Field(ge=1, lt=2**20)]
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


@with_config(STRICT)
class ReferenceFacts(TypedDict):
    """The facts in the header of a file of `write_reference`."""

    format: Literal["distill reference 1"]
    protocol: str
    name: str
    count: Annotated[int, Field(ge=2, lt=2**63)]
    resolution: tuple[_Side, _Side] | None
    content: str | None


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
    _check_moments(moments, f"{extractor.name} of {dataset.name}")
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
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"reference: cannot read '{file}': {one_line(error):.200}") from None
    _check_moments(stored.reference.moments, f"'{file}'")
    if stored.protocol != protocol:
        raise UserError(f"reference: '{file}' is of {printable(stored.protocol)}, the protocol is {protocol}")
    return stored


def check_reference(stored: Stored, file: Path, shape: tuple[int, ...], width: int, dataset: Dataset) -> None:
    """Raise UserError when the statistics are of other images or features than those that are compared with them.

    Args:
        stored: The statistics.
        file: Their file, for the message.
        shape: The shape (C, H, W) of the samples.
        width: The number of features of a sample.
        dataset: The data, which may have no images.
    """
    if (given := len(stored.reference.moments.mean)) != width:
        raise UserError(f"reference: '{file}' is of {given:,} features, the samples have {width:,}")
    if stored.resolution is not None and stored.resolution != _two(shape):
        theirs = "x".join(map(str, stored.resolution))
        raise UserError(f"reference: '{file}' is of {theirs} pixels, the samples have {'x'.join(map(str, shape[1:]))}")
    if None not in (stored.content, dataset.read) and stored.content != dataset.pixels_hash():
        raise UserError(f"reference: '{file}' is of other images than data: {dataset.name}")


def _check_moments(moments: Moments, what: str) -> None:
    """Raise UserError if no features can have these moments. `what` says whose they are."""
    try:
        moments.check()
    except UserError as error:
        raise UserError(f"reference: {what}: {error}") from None


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
        facts = parse_record((opened.metadata() or {}).get("reference", ""), ReferenceFacts)
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
        forms = {name: (part.get_dtype(), *part.get_shape()) for name, part in parts.items()}
        most = min(facts["count"], MOST_KEPT)
        match {"features": ("F32", 0, *forms.get("mean", ())[1:]), **forms}:
            case {"mean": ("F64", d), "covariance": ("F64", *sides), "features": ("F32", kept, width), **rest} if (
                not rest and sides == [d, d] and width == d and 0 < d <= MOST_FEATURES and kept <= most
            ):
                tensors = {name: opened.get_tensor(name) for name in forms}
            case _:
                wanted = f"mean [D] and covariance [D, D] of F64, features [at most {most:,}, D] of F32"
                raise ValueError(f"its tensors are {forms!s:.90}, expected {wanted}")
    features = tensors["features"] if kept else None
    require(features is None or is_finite(features), f"reference: '{file}' holds features that are not finite")
    reference = Reference(
        printable(facts["name"], 200), _moments(tensors["mean"], tensors["covariance"]), facts["count"]
    )
    return Stored(replace(reference, features=features), facts["protocol"], facts["resolution"], facts["content"])


def _read_npz(file: Path, protocol: str) -> Stored:
    """Read the moments that EDM publishes: `mu` and `sigma` of Inception's features."""
    with open_archive(file) as archive:
        moments = _moments(_array(archive, "mu"), _array(archive, "sigma"))
    return Stored(Reference(printable(file.stem, 200), moments, None), "fid", _named_resolution(file))


def _array(archive: zipfile.ZipFile, name: str) -> Tensor:
    """Read an array of floating-point numbers of an .npz file. numpy would evaluate its header, of any length."""
    with archive.open(f"{name}.npy") as member:
        start = member.read(8)
        size = int.from_bytes(member.read(2 if start[6:] == b"\1\0" else 4), "little")
        found = _HEADER.fullmatch(member.read(min(size, _LONGEST_HEADER)))
        if found is None or start[:6] != b"\x93NUMPY":
            raise ValueError(f"{name} is no array of float32 or float64 numbers with one or two dimensions")
        dtype, order, *sides = (part.decode() for part in found.groups() if part is not None)
        return _tensor(tuple(map(int, sides)), order == "True", dtype, lambda count: member.read(count + 1))


def _read_pickled(file: Path, protocol: str) -> Stored:
    """Read the moments that EDM2 publishes: {protocol: {"mu", "sigma"}}. Nothing in the pickle runs."""
    content = read_pickle(file, "reference")
    if not isinstance(content, dict) or protocol not in content:
        held = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"reference: '{file}' holds {printable(held, 100)}, expected {protocol}")
    match content[protocol]:
        case {"mu": mean, "sigma": covariance}:
            moments = _moments(_pickled_array(mean), _pickled_array(covariance))
            return Stored(Reference(printable(file.stem, 200), moments, None), protocol, _named_resolution(file))
        case other:
            raise ValueError(f"{type(other).__name__} under {protocol}, expected mu and sigma")


def _pickled_array(record: Any) -> Tensor:
    """Return the array in the record of a numpy array."""
    match record:
        case Object(
            state=(
                _,
                tuple(shape),
                Object(args=(str(code), *_), state=(_, "<" | "=", *_)),
                bool(fortran),
                bytes(content),
            )
        ):
            return _tensor(shape, fortran, f"<{code}", lambda count: content)
        case _:
            raise ValueError(f"{type(record).__name__} where an array of numbers was expected")


def _tensor(shape: tuple[Any, ...], fortran: bool, dtype: str, read: Callable[[int], bytes]) -> Tensor:
    """Return an array of statistics, float64.

    Args:
        shape: Its shape, as the file claims it.
        fortran: Whether its first dimension is the fastest.
        dtype: Its dtype, as numpy writes it.
        read: (count) -> its bytes, or count + 1 of them if there are more.

    Raises:
        ValueError: It is no array of at most MOST_FEATURES squared numbers, or it has more or fewer than it claims.
    """
    sides = len(shape) in (1, 2) and all(type(n) is int and 0 < n <= MOST_FEATURES for n in shape)
    if dtype not in ("<f4", "<f8") or not sides:
        raise ValueError(
            f"an array {dtype:.20} {reprlib.repr(shape)}, expected at most [{MOST_FEATURES}, {MOST_FEATURES}]"
        )
    content = read(size := math.prod(shape) * int(dtype[2]))
    if len(content) != size:
        raise ValueError("an array is cut short" if len(content) < size else "an array goes on behind its end")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(array.astype(np.float64))
