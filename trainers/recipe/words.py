"""Data as a person names them on a command line: by a path, by the name of a source, or as in a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.networks.network import Network
from trainers.data import Dataset
from trainers.recipe.run import DataAlone
from trainers.recipe.strict_yaml import build, override


def data_settings(given: str | Mapping[str, Any] | None, network: Network, teacher: str | Path) -> Any:
    """Return the value of a recipe's key `data`.

    Args:
        given: Pictures or prompts by their path, which are read as the network takes them, or the data as in a recipe.
            None for no images.
        network: The network.
        teacher: The name of the teacher in messages.

    Raises:
        UserError: The network takes prompts, and none are given.
    """
    if given is None:
        if network.text_encoder is not None:
            raise UserError(f"--data: the teacher '{teacher}' takes prompts; name a file of them")
        return {"name": "data_free", "shape": list(network.shape), "classes": network.classes}
    words, path = _words(given)
    if path is None:
        return words
    if network.text_encoder is not None:
        return {"name": "prompts", "path": path}
    size = list(network.shape[1:])
    resolution = size[0] if len(set(size)) == 1 else size
    return _pictures(path, resolution, "L" if network.shape[0] == 1 else "RGB", labelled=network.classes > 0)


def open_given(given: str, resolution: int | None = None, mode: str = "RGB") -> Dataset:
    """Open real images that no network takes.

    Args:
        given: Pictures by their path, or the data as in a recipe: `digits`, or `{name: images, ...}`.
        resolution: The side in pixels to which pictures are cropped and resized. Needed with a path.
        mode: RGB, or L for grey pictures.

    Raises:
        UserError: There are no such images.
    """
    words, path = _words(given)
    if path is not None:
        if resolution is None:
            raise UserError(f"--resolution: say to how many pixels the pictures in '{path}' are resized")
        words = _pictures(path, resolution, mode, labelled=False)
    return build(DataAlone, {"data": words}).data.load()


def _words(given: str | Mapping[str, Any]) -> tuple[Any, str | None]:
    """Return the data as in a recipe, and their path. The path is None for a mapping and for the name of a source."""
    words = override({}, [f"data={given}"])["data"] if isinstance(given, str) else given
    path = None if isinstance(words, Mapping) or not Path(str(words)).exists() else str(words)
    return words, path


def _pictures(path: str, resolution: int | list[int], mode: str, labelled: bool) -> dict[str, Any]:
    """Return the settings of pictures. Their labels are read if `labelled`."""
    labels = {} if labelled else {"label_column": None}
    return {"name": "images", "path": path, "resolution": resolution, "mode": mode, **labels}
