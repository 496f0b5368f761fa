"""A small classifier of a data set, for the features and labels of a protocol or for a reward."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import torch
from pydantic import Field, with_config
from safetensors import SafetensorError
from torch import Tensor, nn
from typing_extensions import TypedDict

from distill.errors import UserError, one_line, require
from distill.metrics.extractor import Extracted, content_hash
from distill.metrics.images import Shape, checked_images
from distill.records import STRICT, read_record
from distill.saved_files import load_tensors, tensor_bytes
from distill.weights import fill

CLASSIFIER_FILE, CLASSIFIER_WEIGHTS = "classifier.json", "classifier.safetensors"
_CHUNK = 500  # images in one pass, which bounds the memory


@with_config(STRICT)
class ClassifierRecord(TypedDict):
    """The content of classifier.json."""

    shape: Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=3, max_length=3)]
    classes: Annotated[int, Field(ge=1, le=2**20)]
    width: Annotated[int, Field(ge=1, le=2**16)]
    data: str
    accuracy: Annotated[float, Field(allow_inf_nan=True)]  # NaN where nobody has measured it


class Classifier(nn.Module):
    """A classifier of three convolutions, two of which halve the image, and one layer of features before the logits.

    Each feature is connected to every position of the last convolution, so images should have at most about 64x64
    pixels.

    Args:
        shape: The shape (C, H, W) of the images.
        classes: The number of classes.
        width: The number of features.
        data: The name of the data set that it was trained on.
        accuracy: Its accuracy in [0, 1] on images that were held out.

    Raises:
        UserError: The shape is not (C, H, W).
    """

    def __init__(
        self, shape: Shape, classes: int, width: int = 128, data: str = "", accuracy: float = float("nan")
    ) -> None:
        super().__init__()
        self.shape, self.classes, self.width, self.data, self.accuracy = shape, classes, width, data, accuracy
        require(len(shape) == 3, f"classifier: takes images (C, H, W), got {list(shape)}")
        channels, height, length = shape
        positions = -(-height // 4) * -(-length // 4)
        self.body = nn.Sequential(*_convolution(channels, 32, 1), *_convolution(32, 64, 2), *_convolution(64, 64, 2))
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(64 * positions, width), nn.SiLU())
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the features [B, width] of images `x` [B, C, H, W] in [-1, 1]. The logits are linear in them."""
        return cast(Tensor, self.neck(self.body(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of images `x` [B, C, H, W] in [-1, 1], differentiable in `x`."""
        return cast(Tensor, self.head(self.features(x)))

    @property
    def hash(self) -> str:
        """The first six hexadecimal digits of the SHA-256 of the weights."""
        return content_hash(self.state_dict())

    def save(self, folder: str | Path) -> None:
        """Write `classifier.safetensors` and `classifier.json` to `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CLASSIFIER_WEIGHTS).write_bytes(tensor_bytes(self.state_dict()))
        fields = {name: getattr(self, name) for name in ("shape", "classes", "width", "data", "accuracy")}
        (folder / CLASSIFIER_FILE).write_text(json.dumps(fields, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Classifier:
        """Load the classifier in `folder`, frozen and in eval mode.

        Raises:
            UserError: The folder is missing, or it does not hold a classifier of this class.
        """
        folder = Path(folder)
        require(folder.is_dir(), f"classifier: no folder '{folder}'; `distill classifier RECIPE` trains one")
        file, weights = folder / CLASSIFIER_FILE, folder / CLASSIFIER_WEIGHTS
        try:
            fields = read_record(file, ClassifierRecord, f"classifier: '{file}'", finite=False)
            state = load_tensors(weights)
        except (OSError, SafetensorError) as error:
            raise UserError(f"classifier: cannot read '{folder}': {one_line(error)}") from error
        with torch.device("meta"):
            classifier = cls(**{**fields, "shape": tuple(fields["shape"])})
        try:
            fill(classifier, state)
        except UserError as error:
            raise UserError(f"classifier: '{weights}': {error}") from error
        return classifier.requires_grad_(False).eval()


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """A classifier as an extractor. It computes in float32, one chunk of images at a time."""

    classifier: Classifier

    @property
    def name(self) -> str:
        """The name with the hash of the weights, such as `classifier-3f2a91`, so that no two classifiers share one."""
        return f"classifier-{self.classifier.hash}"

    @property
    def shape(self) -> Shape:
        return self.classifier.shape

    @property
    def labels(self) -> Tensor:
        return torch.arange(self.classifier.classes)

    @property
    def logits(self) -> bool:
        return False  # a score by a classifier of one's own compares with no other

    def to(self, device: torch.device) -> ClassifierFeatures:
        self.classifier.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor, labelled: bool = False) -> Extracted:
        """Return features [N, width], float64, and predicted labels of images [N, C, H, W]."""
        device, found = next(self.classifier.parameters()).device, []
        for part in checked_images(images, self.shape).split(_CHUNK):
            found.append(self.classifier.features(part.float().to(device)))
        features = torch.cat(found)
        predicted = self.classifier.head(features).argmax(dim=1).cpu() if labelled else None
        return Extracted(features.double(), predicted)


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
