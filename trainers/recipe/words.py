"""Data as a person names them on a command line: by a path, by the name of a source, or as in a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.networks.network import Network
from trainers.recipe.strict_yaml import override


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
    words = override({}, [f"data={given}"])["data"] if isinstance(given, str) else given
    if isinstance(words, Mapping):
        return words
    if given is None:
        if network.text_encoder is not None:
            raise UserError(f"--data: the teacher '{teacher}' takes prompts; name a file of them")
        return {"name": "data_free", "shape": list(network.shape), "classes": network.classes}
    if not Path(str(given)).exists():
        return given  # the name of a source, such as digits
    if network.text_encoder is not None:
        return {"name": "prompts", "path": str(given)}
    size = list(network.shape[1:])
    resolution = size[0] if len(set(size)) == 1 else size
    labels = {} if network.classes else {"label_column": None}
    mode = "L" if network.shape[0] == 1 else "RGB"
    return {"name": "images", "path": str(given), "resolution": resolution, "mode": mode, **labels}
