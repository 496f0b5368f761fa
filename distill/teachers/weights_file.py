"""The weights of a network that diffusers lacks, in one safetensors file under the network's own names."""

from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from distill.errors import UserError, one_line
from distill.saved_files import load_tensors, save_tensors

WEIGHTS = "network.safetensors"


def save_weights(module: nn.Module, folder: Path) -> None:
    """Write the state dict of `module` to `folder`, with floating-point tensors in float32."""
    state = {name: value.detach() for name, value in module.state_dict().items()}
    floats = {name: value.float() for name, value in state.items() if value.is_floating_point()}
    save_tensors({name: value.contiguous() for name, value in (state | floats).items()}, folder / WEIGHTS)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read the state dict in `folder`, mapped into memory.

    Raises:
        UserError: The file is missing or damaged.
    """
    file = folder / WEIGHTS
    try:
        return load_tensors(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"teacher: cannot read '{file}': {one_line(error)}") from error
