"""TeacherRun, the frozen dataclass of a teacher's training, whose fields are the keys of a recipe."""

from dataclasses import dataclass
from typing import Any, Literal

from distill.annotations import LocalPath
from distill.errors import UserError
from distill.lora import Lora
from distill.loss_weights import Weight
from distill.paths import EDM, Path
from distill.prediction import Kind
from distill.teachers import network_kind
from distill.times import LogNormal, Times
from trainers.recipe.limits import positive, require
from trainers.recipe.run import Experiment, Optimizer, Run

FRESH: dict[str, Any] = {
    "path": EDM(),
    "prediction": "edm",
    "sigma_data": 0.5,
    "times": LogNormal(),
    "weight": "edm",
}
"""The values of a fresh network where the recipe leaves them out."""
OF_START = ("network", "path", "prediction", "sigma_data")
"""The keys that follow from a teacher that is fine-tuned."""


@dataclass(frozen=True, kw_only=True)
class TeacherRun(Experiment):
    """The training of a teacher by denoising: of a fresh network, or of a teacher that is fine-tuned."""

    trains: Literal["teacher"] = "teacher"
    start: LocalPath | None = None  # the folder of the teacher or of the diffusers pipeline that is fine-tuned
    # The config of a fresh UNet2DModel, or the settings of the network that `name` names: edm, edm2 or a class of your
    # own, module:Class. Shape and classes follow from the data. null: the network of `start`.
    network: dict[str, Any] | None = None
    path: Path | None = None  # the path from images to noise; null: that of `start`, or edm
    prediction: Kind | None = None  # the quantity that the network predicts; null: that of `start`, or edm
    # The standard deviation of the data, for EDM's scales and weight. null: that of `start`, or 0.5.
    sigma_data: float | None = None
    times: Times | None = None  # the law of the noise levels at which the network trains; null: the usual one
    # The weight of the denoising loss by noise level. null: edm, or for `start` the plain error of what it predicts.
    weight: Weight | None = None
    uncertainty: bool = False  # whether the loss has the learned uncertainty of EDM2's networks in it, as theirs has
    label_dropout: float = 0.0  # the probability that a condition becomes the null condition, for guidance
    optimizer: Optimizer = Optimizer(lr=1e-3, betas=(0.9, 0.99))  # the optimizer of the network
    lora: Lora | None = None  # adapters that train in place of the weights of `start`, and are merged in the end

    def __post_init__(self) -> None:
        if self.start is None:
            if self.network is None:
                raise UserError("network: is missing, and so is start, the folder of a teacher to fine-tune")
            if self.lora is not None:
                raise UserError("lora: adapters train on the weights of a teacher; name it as start")
            network_kind(self.network)
            for name, value in FRESH.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value)
        elif given := [name for name in OF_START if getattr(self, name) is not None]:
            raise UserError(f"{given[0]}: follows from start, which is fine-tuned; leave it out")
        super().__post_init__()
        positive(self, "sigma_data")
        require(self, "label_dropout", rule="at least 0 and below 1", holds=lambda rate: 0 <= rate < 1)
        if self.path is not None and self.times is not None:
            self.times.check(self.path)


EXPERIMENTS: dict[str, type[Run] | type[TeacherRun]] = {"generator": Run, "teacher": TeacherRun}
"""The kinds of runs, by the key `trains` of their recipes."""
