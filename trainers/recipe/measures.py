"""The settings of what a run measures of its samples, while it trains and after."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from distill.annotations import LocalPath
from distill.errors import UserError
from distill.metrics import FeatureSettings, read_protocol
from distill.rewards import AestheticReward, ClipReward, HpsReward, ImageReward, PickReward
from distill.rewards.text_score import PictureReward
from trainers.recipe.limits import not_negative, positive, require

Metric = Literal["frechet", "inception_score", "kid", "precision", "recall", "label_agreement"]
Score = Literal["clip_score", "pick_score", "hps", "image_reward", "aesthetic"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The models that score samples for their prompts (docs/text_to_image.md)."""

    clip_score: ClipReward | None = None
    pick_score: PickReward | None = None
    hps: HpsReward | None = None
    image_reward: ImageReward | None = None
    aesthetic: AestheticReward | None = None

    def __post_init__(self) -> None:
        for name, reward in self.named().items():
            if getattr(reward, "prompts", ()):
                raise UserError(f"{name}.prompts: leave them out; each sample has its own")

    def named(self) -> dict[str, PictureReward]:
        """Return the models that are given, by the name of the score."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: reward for name, reward in given.items() if reward is not None}


class Asked(TypedDict, total=False):
    """The settings of an evaluation that a caller asks for in place of the recipe's. None leaves the recipe's.

    Attributes:
        classifier: The folder of a classifier, in whose features everything is measured.
        protocol: A published protocol, such as fid50k.
        reference: The file of the statistics of real images.
    """

    classifier: str | Path | None
    protocol: str | None
    reference: str | Path | None


@dataclass(frozen=True, kw_only=True)
class StopWhen:
    """The rule by which a run ends before its last image: its best evaluation is too long ago."""

    patience: int  # images since the best evaluation, after which the run ends as if these were all its images
    metric: Metric | Score | None = None  # null: that of evaluation.best

    def __post_init__(self) -> None:
        positive(self, "patience")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The measurement of samples under a named protocol (docs/evaluation.md)."""

    every: int = 0  # images between two evaluations of a run; 0: `distill evaluate` alone
    protocol: str | None = None  # a published one, such as fid50k, which sets features and samples
    features: FeatureSettings | None = None  # null: those of the classifier, or principal components of the real images
    samples: int | None = None  # null: 10,000, or those of the protocol
    # null: all that published features and the reference allow; of a classifier and of components the first and the
    # last alone
    metrics: tuple[Metric, ...] | None = None
    best: Metric | Score = "frechet"  # the measure by whose best value best/ holds weights
    stop_when: StopWhen | None = None  # null: a run trains all its images
    scores: Scores = Scores()
    prompts: LocalPath | None = None  # a file of prompts, of which the samples are, in order; null: those of the data
    reference: LocalPath | None = None  # a file of published statistics or of `distill reference`; null: of the data
    # The side in pixels to which samples are resized before published features are taken (Pillow's Lanczos filter), as
    # for FID on COCO. The reference is of this size.
    resize: int | None = None
    batch_size: int | None = None  # samples at once on a process; null: 500, or fewer if they are large
    components: int = 48  # the features are this many principal components of the real images
    classifier: LocalPath | None = None  # a folder of `distill classifier`, whose features and labels replace them

    def __post_init__(self) -> None:
        not_negative(self, "every")
        positive(self, "components", "batch_size", "resize")
        if self.protocol is not None:
            self._follow(*read_protocol(self.protocol))
        if self.samples is None:
            object.__setattr__(self, "samples", 10_000)
        require(self, "samples", rule="at least 2", holds=lambda count: count >= 2)
        for name in ("reference", "resize"):
            if self.features is None and getattr(self, name) is not None:
                raise UserError(f"{name}: needs features, such as protocol: fid50k")
        if self.features is not None and self.classifier is not None:
            raise UserError("classifier: has features of its own; leave out protocol and features")
        if self.metrics is not None and self.best not in (*self.metrics, *self.scores.named()):
            raise UserError(f"best: {self.best} is not among the metrics {', '.join(self.metrics)}")
        if self.stop_when is not None:
            self._check_stop(self.stop_when)

    @property
    def stop_metric(self) -> str:
        """The metric of `stop_when`."""
        chosen = None if self.stop_when is None else self.stop_when.metric
        return self.best if chosen is None else chosen

    def _check_stop(self, rule: StopWhen) -> None:
        """Raise UserError when a rule can never end a run."""
        if not self.every:
            raise UserError("stop_when: needs evaluations; set every")
        if rule.patience < self.every:
            raise UserError(f"stop_when: patience {rule.patience:,} must be at least every, which is {self.every:,}")
        if self.metrics is not None and self.stop_metric not in (*self.metrics, *self.scores.named()):
            raise UserError(f"stop_when: {self.stop_metric} is not among the metrics {', '.join(self.metrics)}")

    def _follow(self, features: FeatureSettings, samples: int) -> None:
        """Take features and samples of the protocol, where they are not given. Raise UserError if others are."""
        if self.features is None:
            object.__setattr__(self, "features", features)
        if type(self.features) is not type(features):
            raise UserError(f"features: {self.protocol} has its own; leave out one of them")
        if self.samples not in (None, samples):
            raise UserError(f"samples: {self.protocol} takes {samples:,}, got {self.samples:,}")
        object.__setattr__(self, "samples", samples)

    def asked(
        self,
        samples: int | None = None,
        classifier: str | Path | None = None,
        protocol: str | None = None,
        reference: str | Path | None = None,
    ) -> "Evaluation":
        """Return these settings with a number of samples and the settings of Asked in their place.

        Raises:
            UserError: They do not go together.
        """
        if classifier is not None and protocol is not None:
            raise UserError("classifier: has features of its own; leave out the protocol")
        asked = self
        default: dict[str, Any] = {"metrics": None, "best": "frechet"}  # other features may not allow the recipe's
        if classifier is not None:
            plain = replace(asked, protocol=None, features=None, reference=None, resize=None, **default)
            asked = replace(plain, classifier=str(classifier))
        if protocol is not None:
            named, _ = read_protocol(protocol)
            kept = self.features if type(self.features) is type(named) else named  # with its file of weights
            asked = replace(asked, protocol=protocol, features=kept, samples=None, classifier=None, **default)
        if reference is not None:
            asked = replace(asked, reference=str(reference))
        return asked if samples is None else replace(asked, protocol=None, samples=samples)

    @property
    def count(self) -> int:
        """The number of samples."""
        assert self.samples is not None
        return self.samples


@dataclass(frozen=True, kw_only=True)
class Health:
    """The comparison of the generator's samples with the teacher's while a run trains (docs/health.md)."""

    every: int | None = None  # images between two of them; null: a hundredth of the run, or 4 x samples; 0: none
    # The teacher makes as many, once. null: 256, or fewer if they are large or the run is short.
    samples: int | None = None

    def __post_init__(self) -> None:
        not_negative(self, "every")
        require(self, "samples", rule="at least 4", holds=lambda count: count >= 4)
