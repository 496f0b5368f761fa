"""The content of denoiser.json, all of which is checked before anything is built from it."""

import dataclasses
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, NotRequired, Union, cast, get_type_hints

from pydantic import Field, create_model, with_config
from typing_extensions import TypedDict

from distill.encoders.latents import Normalisation
from distill.errors import UserError
from distill.paths import PATHS, Path
from distill.prediction import Kind
from distill.records import EXTENSIBLE, STRICT, Positive, read_record

DESCRIPTION = "denoiser.json"
Classes = Annotated[int, Field(ge=0, le=2**24)]
Side = Annotated[int, Field(ge=1, le=2**16)]
Statistic = Annotated[list[float], Field(min_length=1, max_length=2**12)]


def _record(name: str, kind: type[Path]) -> Any:
    """Return the type of the entry `path` for one kind of path: its own fields and their types."""
    hints = get_type_hints(kind)
    fields: dict[str, Any] = {one.name: (hints[one.name], one.default) for one in dataclasses.fields(kind) if one.init}
    return create_model(kind.__name__, __config__=STRICT, **{"name": (Literal[name], ...), **fields})


PATH_RECORDS: Any = Union[tuple(_record(name, kind) for name, kind in PATHS.items())]  # noqa: UP007 (made at run time)


@with_config(STRICT)
class LatentStatistics(TypedDict):
    """The scale of latents, one number for each channel."""

    mean: Statistic
    std: Statistic


@with_config(EXTENSIBLE)
class NetworkRecord(TypedDict):
    """The name and the settings of a network, which the network checks."""

    name: str


@with_config(STRICT)
class Description(TypedDict):
    """The content of denoiser.json."""

    path: Annotated[PATH_RECORDS, Field(discriminator="name")]
    prediction: Kind
    sigma_data: Positive
    shape: NotRequired[Annotated[list[Side], Field(min_length=2, max_length=5)]]
    classes: NotRequired[Classes]
    class_names: NotRequired[list[str]]
    null: NotRequired[Classes | None]
    latents: NotRequired[bool | LatentStatistics]
    network: NotRequired[NetworkRecord]


def read_description(folder: FilePath) -> tuple[Description, Path, dict[str, Any]]:
    """Return the description of a teacher, the path in it, and the further arguments of Denoiser.

    Raises:
        UserError: The file is missing or damaged, or one of its numbers is not valid.
    """
    file = folder / DESCRIPTION
    try:
        description = cast(Description, read_record(file, Description, f"teacher: '{file}'"))
    except FileNotFoundError as error:
        raise UserError(f"teacher: '{file}' is missing; it states path and prediction kind of the network") from error
    settings, latents = description["path"].model_dump(), description.get("latents", False)
    try:
        path = PATHS[settings.pop("name")](**settings)
        stated = Normalisation(tuple(latents["mean"]), tuple(latents["std"])) if isinstance(latents, dict) else latents
    except UserError as error:
        raise UserError(f"teacher: '{file}': {error}") from error
    arguments = {"prediction": description["prediction"], "sigma_data": description["sigma_data"], "latents": stated}
    return description, path, arguments
