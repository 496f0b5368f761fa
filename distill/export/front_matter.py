"""The YAML at the top of a model card, by which the Hugging Face hub sorts, links and shows a model."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from distill.errors import require
from distill.export.facts import CardFacts
from distill.export.format import Format
from distill.generator import Generator

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

UNKNOWN = "unknown"  # the hub's own identifier for a licence that is not known


def check_license(license: str | None) -> None:
    """Raise UserError when a licence cannot be an identifier of the hub.

    Args:
        license: The identifier. None for no licence.
    """
    require(
        license is None or re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license) is not None,
        "--license: must be an identifier of huggingface.co/docs/hub/repositories-licenses, such as apache-2.0,"
        f" got {license!r}",
    )


def front_matter(facts: CardFacts, generator: Generator, form: Format) -> str:
    """Return the metadata of a card as YAML, without the lines of dashes around them.

    Args:
        facts: The facts about the training.
        generator: The generator that is exported.
        form: Its export format.
    """
    from huggingface_hub import ModelCardData

    task, base = _task(generator, form), _repository(facts.base_model)
    tags = ["one-step-generation", "diffusion-distillation", str(facts.objective.get("name", "distilled"))]
    data = ModelCardData(
        license=facts.license or UNKNOWN,
        base_model=base,
        base_model_relation=form.relation if base is not None and "/" in base else None,
        datasets=[facts.data] if facts.data is not None and "/" in facts.data else None,
        library_name=form.library,
        pipeline_tag=task,
        tags=[*tags, "lora"] if form.relation == "adapter" else tags,
        widget=[picture.widget for picture in facts.pictures if picture.prompt is not None] or None,
        model_name=facts.name,
        eval_results=_results(facts, task or "other") or None,
    )
    if data.eval_results is None:
        data.pop("model_name")  # otherwise it would stand alone, under a key that the hub does not know
    return str(data.to_yaml()) + "\n"


def _task(generator: Generator, form: Format) -> str | None:
    """Return the hub's name of the task of a generator. None where the hub has no such task."""
    image = len(generator.denoiser.network.shape) == 3
    if form.cond.labels is None and form.cond:
        return "text-to-image" if image else "text-to-video"
    return "unconditional-image-generation" if image else None


def _repository(name: str | None) -> str | None:
    """Return a name that the hub accepts for a repository. None for any other, which the hub would refuse."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not listed

    try:
        if name is not None:
            validate_repo_id(name)
        return name
    except HFValidationError:
        return None


def _results(facts: CardFacts, task: str) -> list[EvalResult]:
    """Return the finite numbers of the student in the hub's form.

    The names of data set and metric hold the protocol and the number of samples, without which no number compares.
    """
    from huggingface_hub import EvalResult

    metrics = facts.metrics or {}
    protocol = str(metrics.get("protocol", "protocol not named"))
    count = f", {metrics['samples']:,} samples" if "samples" in metrics else ""
    return [
        EvalResult(
            task_type=task,
            dataset_type=facts.data or "custom",
            dataset_name=f"{facts.data or 'custom'}: {protocol}",
            metric_type="fid" if name == "frechet" and protocol.startswith(("fid", "clean_fid")) else name,
            metric_value=value,
            metric_name=f"{name}, {protocol}{count}",
        )
        for name, value in metrics.get("student", {}).items()
        if math.isfinite(value)
    ]
