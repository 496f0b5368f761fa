"""The JSON files of a checkpoint and of other averaged weights, as types that distill.records reads."""

from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import Field, with_config
from typing_extensions import TypedDict

from distill.records import EXTENSIBLE, STRICT, Count, read_record
from trainers.recipe.run import MOST_FAKE_UPDATES

SHA256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@with_config(STRICT)
class OldNew(TypedDict):
    """The values of a key before and after a change."""

    old: Any
    new: Any


@with_config(STRICT)
class Change(TypedDict):
    """The changes of one resume: the images at which they took effect, and the changed keys of the recipe.

    Beside the dotted keys of the recipe there are `processes`, and `data` where the content of the data is another one.
    """

    images: Count
    changed: dict[str, OldNew]


@with_config(EXTENSIBLE)
class Digest(TypedDict):
    """The digest of the data, of which `trainers.data.digest` reads the rest."""

    class_names: NotRequired[list[str]]
    unseen: NotRequired[list[Count]]


@with_config(EXTENSIBLE)
class PaceState(TypedDict):
    """The decisions about the pace of a run, as `trainers.engine.pace.Pace` makes them."""

    waits: bool
    level: Annotated[int, Field(ge=1, le=MOST_FAKE_UPDATES)]
    samples: Count


@with_config(EXTENSIBLE)
class State(TypedDict):
    """The content of state.json, as `trainers.checkpoints.checkpoint.state_description` makes it."""

    format: int
    images: Count
    processes: Annotated[int, Field(ge=1, le=2**20)]
    counters: dict[str, dict[str, Count]]
    unfinished: list[str]
    teacher: str | None
    recipe: dict[str, Any]
    shape: NotRequired[list[Annotated[int, Field(ge=1)]]]  # older checkpoints lack these
    classes: NotRequired[Count]
    data: NotRequired[Digest | None]
    updates: NotRequired[dict[str, Count]]
    changes: NotRequired[list[Change]]
    ended: NotRequired[str]
    pace: NotRequired[PaceState]


@with_config(EXTENSIBLE)
class ListedFile(TypedDict):
    """The size in bytes and the SHA-256 of a file, in manifest.json."""

    bytes: Count
    sha256: SHA256


Manifest = dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], ListedFile]
"""The content of manifest.json: the files of a checkpoint by name, none of which leads out of the folder."""


@with_config(EXTENSIBLE)
class Best(TypedDict):
    """The content of best/metrics.json: a line of metrics.jsonl and the hash of the teacher."""

    images: Count
    frechet: NotRequired[float]  # without one where scores alone are measured
    teacher: str | None
    changes: NotRequired[list[Change]]


@with_config(STRICT)
class PosthocPart(TypedDict):
    """A snapshot in an average that was made from several."""

    images: Count
    std: float
    coefficient: float


@with_config(STRICT)
class Posthoc(TypedDict):
    """The content of posthoc.json: an average that `distill ema` has made."""

    images: Count
    std: Annotated[float, Field(gt=0)]
    left: Annotated[float, Field(ge=0)]
    teacher: str | None
    snapshots: list[PosthocPart]


def read_best(folder: Path) -> dict[str, Any]:
    """Return the content of metrics.json in best/.

    Raises:
        FileNotFoundError: There is none.
        UserError: It is damaged.
    """
    # Of measures other than the distance, some may be no number.
    return cast(dict[str, Any], read_record(folder / "metrics.json", Best, finite=False))
