"""The base class of every network that a Denoiser calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from distill.conditions import Condition
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.encoders.protocols import Autoencoder, TextEncoder


class Network(nn.Module):
    """A network and all that anyone asks of its kind. A kind of network is one subclass in one file.

    Attributes:
        shape: (C, *spatial) of a sample.
        classes: The number of class labels without that of the null condition; 0 where labels are not its condition.
        null: The null condition of one sample, without a batch dimension; None where the network has none.
        conditions: The shape of each text condition of one sample, by name; empty without text conditions.
        taps: Short names of submodules whose output an objective may read (see Denoiser.features).
        text_encoder: The encoder of its prompts; None where it takes none.
        autoencoder: The autoencoder of its latents; None where its samples are pixels or nothing decodes them.
        pipeline_export: The writer in `distill.export.to_diffusers` that exports it; None where no pipeline takes it.
        authors_class: The class in the authors' code that loads its weights; None where there is none.
    """

    shape: tuple[int, ...] = ()
    classes: int = 0
    null: Condition | None = None
    conditions: Mapping[str, tuple[int, ...]] = {}
    taps: Mapping[str, str] = {}
    text_encoder: TextEncoder | None = None
    autoencoder: Autoencoder | None = None
    pipeline_export: ClassVar[str | None] = None
    authors_class: ClassVar[str | None] = None

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        """Return the prediction [B, C, *spatial] for `x` [B, C, *spatial], `time` [B] and the condition [B, ...]."""
        raise NotImplementedError

    def tapped(self, output: Any) -> Tensor:
        """Return the features [B, C, *spatial] in the `output` of a tapped submodule: of a tuple the first entry."""
        features: Tensor = output[0] if isinstance(output, tuple) else output
        return features

    def example(self, count: int) -> Condition:
        """Return some condition [count, ...] with which to try the network: classes in turn, random embeddings."""
        if self.classes:
            return Condition(labels=torch.arange(count) % self.classes)
        generator = torch.Generator().manual_seed(0)
        made = Condition()
        for name, shape in self.conditions.items():
            if name == "mask":  # no padding
                made[name] = torch.ones(count, *shape, dtype=torch.int64)
            else:
                made[name] = torch.randn(count, *shape, generator=generator)
        return made

    @property
    def has_null(self) -> bool:
        """Whether it knows a null condition; that of prompts is known once the text encoder has made it."""
        return self.null is not None or self.text_encoder is not None

    @property
    def null_label(self) -> int | None:
        """The label of the null condition; None where it is no label."""
        return None if self.null is None or self.null.labels is None else int(self.null.labels)

    @property
    def adapter_part(self) -> str | None:
        """The component of a pipeline into which diffusers loads adapters for it; None where it loads none."""
        return None

    @property
    def own_class(self) -> str | None:
        """The name of the user's own class, "my_package.my_module:MyNet", that it wraps; None where it wraps none."""
        return None

    @property
    def display_name(self) -> str:
        """The name of its class, for messages."""
        return type(self).__name__

    def description(self) -> dict[str, Any] | None:
        """Return the entry `network` of denoiser.json; None for the kind that needs none.

        Raises:
            UserError: A teacher's folder cannot hold this kind of network.
        """
        raise UserError(
            f"teacher: denoiser.json cannot name a {self.display_name}; a network of your own goes into OwnNet"
        )

    def save(self, folder: Path) -> None:
        """Write the weights to a teacher's `folder`."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path, description: Mapping[str, Any], weights: bool = True) -> Network:
        """Read the network of a teacher's `folder` whose denoiser.json holds `description`, float32, in eval mode.

        Without `weights` it is on the meta device, and no file of weights need be there.

        Raises:
            UserError: The folder is damaged, or it holds another network.
        """
        raise NotImplementedError


class PlainNetwork(Network):
    """A module of no particular kind behind the interface; `Denoiser` wraps what is no Network in one.

    The module is called as module(x, time, cond) with the condition in its plain form: labels, a mapping, or None.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def display_name(self) -> str:
        return type(self.module).__name__

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        output: Tensor = self.module(x, time, cond.plain)
        return output


def null_label(label: int | None) -> Condition | None:
    """Return the null condition that is the label `label`; None for None."""
    # on the CPU also where networks are built on the meta device: its value must stay known
    return None if label is None else Condition(labels=torch.tensor(label, device="cpu"))
