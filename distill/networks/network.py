"""The base class of every network that a Denoiser calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from distill.conditions import Condition
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.encoders.protocols import Autoencoder, TextEncoder


class Network(nn.Module):
    """A network, and everything that the other code asks about its kind.

    A kind of network is one subclass in one file.

    Attributes:
        shape: (C, *spatial) of a sample.
        classes: The number of class labels without the null condition's. It is 0 if the network takes no labels.
        class_names: The names of the classes, by number. None where they have none. The null condition has no name.
        unseen: The classes of which the data that it was trained on have no sample.
        null: The null condition of one sample, without a batch dimension, or None if there is none.
        conditions: The shape of each text condition of one sample, by name. It is empty if there are none.
        taps: Short names, and the submodules whose output an objective may read under them (see Denoiser.features).
        text_encoder: The encoder of prompts, or None if the network takes no prompts.
        autoencoder: The autoencoder of latents, or None if samples are pixels or no autoencoder is known.
        adapter_part: The pipeline component into which diffusers loads adapters for this network, or None if it loads
            none.
        own_class: The name of the user's class in this wrapper, such as "my_package.my_module:MyNet", or None.
        pipeline_export: The key of its writer in `distill.export.to_diffusers`, or None if no pipeline takes it.
        authors_class: The name of the class in the authors' code that loads its weights, or None if there is none.
        casts_weights: Whether autocast, or the network's own code, casts its weights wherever it uses them. They may
            then be stored and sent in low precision. A network of a user's own may compute norms, times or positions
            from its weights, which therefore stay in float32.
        predicts_uncertainty: Whether it has a head that predicts the uncertainty of its denoising loss (`logvar`).
    """

    shape: tuple[int, ...] = ()
    classes: int = 0
    class_names: tuple[str, ...] | None = None
    unseen: tuple[int, ...] = ()
    null: Condition | None = None
    conditions: Mapping[str, tuple[int, ...]] = {}
    taps: Mapping[str, str] = {}
    text_encoder: TextEncoder | None = None
    autoencoder: Autoencoder | None = None
    adapter_part: str | None = None
    own_class: str | None = None
    pipeline_export: ClassVar[str | None] = None
    authors_class: ClassVar[str | None] = None
    casts_weights: ClassVar[bool] = False
    predicts_uncertainty: ClassVar[bool] = False

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        """Return the prediction [B, C, *spatial] for `x` [B, C, *spatial], `time` [B] and the condition [B, ...]."""
        raise NotImplementedError

    def logvar(self, time: Tensor) -> Tensor:
        """Return the uncertainty u [B], the log of the expected denoising loss, at `time` [B]."""
        raise NotImplementedError

    def shape_at(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape (C, *spatial) of a sample whose image has another size than that of `shape`.

        Args:
            height: The height of the image, in pixels.
            width: Its width.

        Raises:
            UserError: The network takes no samples of this size.
        """
        raise UserError(f"{self.display_name} takes samples of one size alone")

    def tapped(self, output: Any, size: tuple[int, ...]) -> Tensor:
        """Return the features [B, C, *spatial] in the output of a tapped submodule.

        Args:
            output: The output. If it is a tuple, the features are its first entry.
            size: The spatial dimensions of the samples that the network was called with.
        """
        return cast(Tensor, output[0] if isinstance(output, tuple) else output)

    def example(self, count: int) -> Condition:
        """Return a condition [count, ...] to try the network with: the classes in turn, or random embeddings."""
        if self.classes:
            return Condition(labels=torch.arange(count) % self.classes)
        generator = torch.Generator().manual_seed(0)
        sizes = {name: (count, *shape) for name, shape in self.conditions.items()}
        # a mask is of ones, because no token is padding
        return Condition(
            (name, torch.ones(size, dtype=torch.int64) if name == "mask" else torch.randn(size, generator=generator))
            for name, size in sizes.items()
        )

    @property
    def has_null(self) -> bool:
        """True if the network has a null condition.

        A network with a text encoder has one, also before the encoder has computed it.
        """
        return self.null is not None or self.text_encoder is not None

    @property
    def null_label(self) -> int | None:
        """The label of the null condition, or None if the null condition is no label."""
        return None if self.null is None or self.null.labels is None else int(self.null.labels)

    @property
    def display_name(self) -> str:
        """The name of the network's class, for messages."""
        return type(self).__name__

    def description(self) -> dict[str, Any] | None:
        """Return the entry `network` of denoiser.json, or None for UNet2DModel, which has no entry.

        Raises:
            UserError: A teacher's folder cannot hold this kind of network.
        """
        raise UserError(
            f"teacher: denoiser.json cannot name a {self.display_name}; a network of your own goes into OwnNet"
        )

    def save(self, folder: Path) -> None:
        """Write the weights to the teacher's `folder`."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, description: Mapping[str, Any], weights: bool = True) -> Network:
        """Load the network of a teacher's folder, in float32 and eval mode.

        Args:
            folder: The teacher's folder.
            description: The content of its denoiser.json.
            weights: False puts the network on the meta device, and then no file of weights is needed.

        Raises:
            UserError: The folder is damaged, or it holds another network.
        """
        raise NotImplementedError


class PlainNetwork(Network):
    """A wrapper that makes a Network of any module. `Denoiser` wraps every module that is not a Network.

    The module is called as module(x, time, cond), with the condition in its plain form: labels, a mapping, or None.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def display_name(self) -> str:
        return type(self.module).__name__

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        return cast(Tensor, self.module(x, time, cond.plain))


def null_label(label: int | None) -> Condition | None:
    """Return the null condition made of `label`, or None without a label."""
    # on the CPU even inside `torch.device("meta")`, because its value must stay known
    return None if label is None else Condition(labels=torch.tensor(label, device="cpu"))
