"""The base classes of the families of diffusers pipelines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from torch import Tensor

from distill.conditions import Condition
from distill.encoders.autoencoder import DiffusersAutoencoder
from distill.errors import UserError, options
from distill.networks.network import Network
from distill.pipeline_folder import pixels_per_latent
from distill.quiet import quiet_libraries
from distill.saved_files import set_permissions

Conditions = dict[str, Tensor]
"""Text conditions [N, ...], by name."""


class Family(Network):
    """The network of a family of pipelines.

    The class states everything that all checkpoints of the family share. The rest is read from each checkpoint's files.

    Attributes:
        pipelines: The class names of the family's pipelines in model_index.json.
        network_class: The class name of the network in diffusers.
        part: The component of the pipeline that is the network.
        text: Whether the condition is made from prompts.
        latents: Whether samples are latents.
        model: The network, of its class in diffusers.
    """

    pipelines: ClassVar[tuple[str, ...]]
    network_class: ClassVar[str]
    part: ClassVar[str] = "transformer"
    text: ClassVar[bool] = False
    latents: ClassVar[bool] = True
    casts_weights: ClassVar[bool] = True
    model: Any

    def __init__(self, model: Any, **choices: Any) -> None:
        raise NotImplementedError

    @classmethod
    def encode(cls, pipe: Any, prompts: list[str]) -> Conditions:
        """Return the text conditions of N prompts.

        Args:
            pipe: The stock pipeline, of which only the tokenizers and text encoders are loaded.
            prompts: N prompts.
        """
        raise NotImplementedError

    def save_part(self, place: Path) -> None:
        """Write config and weights of the network to `place`, its folder in a pipeline."""
        with quiet_libraries():
            self.model.save_pretrained(place)
        set_permissions(place)

    def open_autoencoder(self, folder: Path) -> DiffusersAutoencoder:
        """Return the autoencoder in the pipeline's `folder`."""
        return DiffusersAutoencoder(folder, channels=self.shape[0])

    @classmethod
    def pixels_per_latent(cls, folder: Path) -> int:
        """Return the number of pixels for each latent along a side, from the config of the autoencoder in `folder`."""
        return pixels_per_latent(folder)

    @classmethod
    def encode_null(cls, pipe: Any) -> Conditions:
        """Return the text condition that the pipeline's own guidance uses for no prompt, [1, ...]."""
        return cls.encode(pipe, [""])


class LatentFamily(Family):
    """A network of latents: (x [B, C, H, W], time [B], condition) -> [B, C, H, W].

    Attributes:
        unguided: The value of the pipeline's `guidance_scale` with which it evaluates the network once, unguided.
        takes_scaled_noise: Whether the pipeline multiplies its noise by the scheduler's `init_noise_sigma`.
        output: The field of the pipeline's result that holds the samples.

    Args:
        model: The network, of its class in diffusers.
        size: The height and width of a latent. None means the pipeline's default.
        factor: The number of pixels for each latent along a side.
        guidance: The guidance scale that a network with embedded guidance takes as an input.

    Raises:
        UserError: The network cannot make latents of this size.
    """

    pipeline_export = "family"
    text = True
    unguided: ClassVar[float] = 1.0
    takes_scaled_noise: ClassVar[bool] = True
    output: ClassVar[str] = "images"

    def __init__(self, model: Any, size: tuple[int, int] | None = None, factor: int = 8, guidance: float = 3.5) -> None:
        from diffusers.loaders import PeftAdapterMixin

        Network.__init__(self)
        self.model = model
        self.adapter_part = self.part if isinstance(model, PeftAdapterMixin) else None
        self.size = self.default_size() if size is None else size
        self.factor = factor
        self.pixels = (factor * self.size[0], factor * self.size[1])  # height and width of an image
        if any(side % self.patch for side in self.size):
            raise UserError(f"resolution: must be a multiple of {factor * self.patch}, got {list(self.pixels)}")
        self.guidance = guidance
        self.shape = (self.channels, *self.size)
        self.conditions = self.condition_shapes()
        self.taps = self.find_taps()

    @property
    def config(self) -> Mapping[str, Any]:
        """The network's config."""
        return cast(Mapping[str, Any], self.model.config)

    def evaluate(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the output of the network in diffusers for these inputs."""
        return cast(Tensor, self.model(*inputs, **named, return_dict=False)[0])

    @property
    def channels(self) -> int:
        """The number of channels of a sample."""
        return int(self.config["in_channels"])

    def default_size(self) -> tuple[int, int]:
        """Return the height and width of the latents that the pipeline makes by default."""
        size = self.config["sample_size"]
        if type(size) is not int or size < 1:
            raise UserError(
                f"sample_size must be one number in the config of the {self.part}, got {size!r}; state the pixels to a"
                " side by --resolution of the import, or as resolution in distill.json"
            )
        return size, size

    def find_taps(self) -> dict[str, str]:
        """Return the taps: the middle block of a transformer."""
        return {"encoder": (middle := f"model.transformer_blocks.{self.depth // 2}"), "middle": middle}

    @property
    def depth(self) -> int:
        """The number of transformer blocks."""
        return len(self.model.transformer_blocks)

    def shape_at(self, height: int, width: int) -> tuple[int, ...]:
        if not self.text:  # DiT's is square, and of one size
            return super().shape_at(height, width)
        if height % (step := self.factor * self.patch) or width % step:
            raise UserError(f"{self.display_name} takes multiples of {step} pixels alone")
        if (most := step * self.config.get("pos_embed_max_size", 2**20)) < max(height, width):
            raise UserError(f"{self.display_name} takes at most {most} pixels a side")
        return *self.shape[:-2], height // self.factor, width // self.factor

    def tapped(self, output: Any, size: tuple[int, ...]) -> Tensor:
        """Return the features [B, C, H, W] in the output of a block.

        The image tokens are the last tokens of the output, row by row. Text tokens may come before them.
        """
        tokens: Tensor = output[-1] if isinstance(output, tuple) else output
        height, width = (side // self.patch for side in size)
        return cast(Tensor, tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width)))

    @property
    def patch(self) -> int:
        """The side of the square of latents that one token stands for."""
        return int(self.config["patch_size"])

    def embeddings(self, x: Tensor, cond: Condition) -> Condition:
        """Return the text condition on the device and in the dtype of `x`. Masks stay whole numbers.

        Raises:
            UserError: The names in the condition are not those that the network takes.
        """
        if cond.keys() != self.conditions.keys():
            taken, given = options(sorted(self.conditions)), options(sorted(cond))
            raise UserError(f"condition: {type(self).__name__} takes {taken}, got {given}")
        return cond.to(x.device, x.dtype)

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each text condition of one sample, for prompts of the usual number of tokens."""
        return {}

    def call(self) -> dict[str, Any]:
        """Return the arguments for one unguided step of the stock pipeline at this size, beside the prompts."""
        size = {"height": self.pixels[0], "width": self.pixels[1]}
        return {"num_inference_steps": 1, "guidance_scale": self.unguided, **size}

    def pipeline_noise(self, z: Tensor) -> dict[str, Tensor]:
        """Return the argument that gives unit normal noise `z` [B, C, H, W] to the stock pipeline."""
        return {"latents": z}


class UNetFamily(LatentFamily):
    """A family whose network is a U-Net, whose features are grids already."""

    part = "unet"
    patch = 1

    def find_taps(self) -> dict[str, str]:
        """Return the taps: the last block of the encoder, and the middle block."""
        return {"encoder": f"model.down_blocks.{len(self.model.down_blocks) - 1}", "middle": "model.mid_block"}

    def tapped(self, output: Any, size: tuple[int, ...]) -> Tensor:
        return Network.tapped(self, output, size)
