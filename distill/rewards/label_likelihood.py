"""The log likelihood of the label under a classifier, as a reward."""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from distill.annotations import LocalPath
from distill.conditions import Condition, ConditionLike
from distill.denoiser import Denoiser
from distill.errors import require
from distill.metrics import Classifier
from distill.rewards.reward import Reward


class LogLikelihood(nn.Module):
    """The log likelihood log p(label | x), [B] and at most 0, for a classifier that returns logits [B, K]."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor, cond: ConditionLike) -> Tensor:
        labels = Condition.of(cond)["labels"]
        return cast(Tensor, self.classifier(x).log_softmax(1).gather(1, labels[:, None])[:, 0])


@dataclass(frozen=True, kw_only=True)
class ClassifierReward(Reward):
    """The log likelihood log p(label | x) under a classifier that `distill classifier` trained."""

    classifier: LocalPath  # the folder of the classifier

    name: ClassVar[str] = "log_likelihood"

    def check(self, teacher: Denoiser) -> None:
        super().check(teacher)
        classifier = Classifier.load(self.classifier)
        for what, theirs, ours in (
            ("shape", classifier.shape, teacher.image_shape),
            ("classes", classifier.classes, teacher.network.classes),
        ):
            require(theirs == ours, f"reward.classifier: '{self.classifier}' has {what} {theirs}, the teacher {ours}")

    def load(self) -> nn.Module:
        return LogLikelihood(Classifier.load(self.classifier))
