"""The facts about a training that the model card of its export states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CardPicture:
    """A picture in the folder of an export.

    Attributes:
        name: The name of its file in the folder, which ends in .png.
        content: The bytes of the PNG.
        prompt: The prompt of the sample. None for a picture without a prompt.
    """

    name: str
    content: bytes
    prompt: str | None = None

    @property
    def widget(self) -> dict[str, Any]:
        """The picture and its prompt in the form that the hub shows beside a model."""
        return {"text": self.prompt, "output": {"url": self.name}}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The facts about the training that a card states. Mappings hold plain YAML values.

    Attributes:
        name: The name of the run, which is the title of the card.
        objective: The settings of the objective as in a recipe, with its name under "name".
        teacher: The name of the teacher.
        teacher_sha256: The SHA-256 of the teacher's files.
        images: The number of samples that the generator has trained on.
        average: A few words on the average over the training that the weights are.
        metrics: The results of an evaluation in the form of evaluation.json: `protocol`, `samples`, the numbers of the
            `student` and of the `teacher` by name, `teacher_evaluations`, `teacher_cfg`, `teacher_autoguidance` and
            `halves`. All but `student` may be missing. None if nothing was measured.
        versions: The versions of the libraries, by name.
        recipe: The recipe of the run, as YAML.
        changes: The settings that changed during the training, as plain values: those of one moment in each entry.
        license: The identifier of a licence on the hub, such as apache-2.0. None where nobody has stated one.
        base_model: The teacher's id on the hub, or a name without a path. None for no name.
        data: The id of the data set on the hub, or its name without a path. None without data.
        pictures: The pictures of samples. The card shows those without a prompt, and the hub those with one.
    """

    name: str
    objective: Mapping[str, Any]
    teacher: str
    teacher_sha256: str
    images: int
    average: str
    metrics: Mapping[str, Any] | None
    versions: Mapping[str, str]
    recipe: str
    changes: Sequence[Mapping[str, Any]] = ()
    license: str | None = None
    base_model: str | None = None
    data: str | None = None
    pictures: Sequence[CardPicture] = ()
