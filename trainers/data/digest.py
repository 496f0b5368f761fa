"""The comparison of a data set with the digest in a checkpoint, by which a resume notices that the data are others."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from distill.errors import UserError
from trainers.data.dataset import Dataset
from trainers.data.labels import in_order

TOLERANCE = 0.02  # between two means; the pixels lie in [-1, 1]
COMPARED = ("count", "shape", "classes", "labels", "prompts", "samples")  # other names of classes train the same
SHOWN = ("count", "shape", "classes")  # the values of the others say nothing to people


def accepted_data(before: Any, dataset: Dataset, name: str, allow: Iterable[str] = ()) -> list[str]:
    """Return a line if the data differ from those of the checkpoint.

    Args:
        before: The digest in the checkpoint. None in checkpoints of earlier versions, of which the order of the classes
            alone is known.
        dataset: The data as they were opened.
        name: The name of the run.
        allow: The keys whose change the user accepts. `data`, or a key in it, accepts other data.

    Raises:
        UserError: The data differ, and the user has not accepted it.
    """
    if isinstance(before, Mapping):
        differing = [_difference(key, before[key], dataset.digest[key]) for key in _differing(before, dataset)]
    else:
        differing = _order_since(dataset.class_names or ())
    if not differing:
        return []
    found = f"data: '{dataset.name}' is not what '{name}' was trained on: {', '.join(differing)}"
    if not any(key.partition(".")[0] == "data" for key in allow):
        raise UserError(f"{found}; this would change what is trained; --allow data accepts it")
    return [f"changed since the checkpoint: {found}"]


def data_changes(before: Any, dataset: Dataset) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two data sets as one pair (before, after) of facts, under "data", or nothing.

    Labels, prompts and samples are shown by the beginning of a hash.

    Args:
        before: The digest in the checkpoint.
        dataset: The data as they were opened.
    """
    if not isinstance(before, Mapping):
        return {"data": ("classes by letter", "classes by number")} if _order_since(dataset.class_names or ()) else {}
    differing = _differing(before, dataset)
    old, new = ({key: _fact(key, digest[key]) for key in differing} for digest in (before, dataset.digest))
    return {"data": (old, new)} if differing else {}


def _differing(before: Mapping[str, Any], dataset: Dataset) -> list[str]:
    """Return the keys in which the data differ from a digest."""
    now = dataset.digest
    return [key for key in COMPARED if key in before and key in now and not _equal(before, now, key)]


def _fact(key: str, value: Any) -> Any:
    """Return the value of a digest's key as it is kept in the history of a run."""
    return value if key in SHOWN else hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _order_since(names: Sequence[str]) -> list[str]:
    """Return words if classes are numbered by value, which earlier versions numbered by letter: 1, 10, 2."""
    by_letter = sorted(names)
    if list(names) == by_letter or list(names) != in_order(names):
        return []
    return [f"classes in the order {', '.join(names[:3])}, not {', '.join(by_letter[:3])}"]


def _equal(before: Mapping[str, Any], now: Mapping[str, Any], key: str) -> bool:
    """Return whether two digests agree in a key. A digest that is damaged there does not."""
    if key != "samples":
        return bool(before[key] == now[key])
    if before.get("count") != now["count"] or before.get("shape") != now["shape"]:
        return True  # other samples are read; the count or the shape says that the data differ
    if before[key] == now[key]:  # also where a sample is not finite, which is null in both
        return True
    try:
        one, two = torch.tensor(before[key], dtype=torch.float64), torch.tensor(now[key], dtype=torch.float64)
        return one.shape == two.shape and bool(((one - two).abs() <= TOLERANCE).all())
    except (TypeError, ValueError, RuntimeError):
        return False


def _difference(key: str, before: Any, now: Any) -> str:
    """Return in words how two digests differ in a key."""
    if key in SHOWN:
        return f"{key} {now}, not {before}"
    return "other pixels" if key == "samples" else f"other {key}"
