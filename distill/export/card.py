"""README.md of an exported generator: the model card that Hugging Face shows, and what a person needs to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

BATCH = 8


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says about the training. Mappings hold plain YAML values."""

    name: str
    objective: Mapping[str, Any]  # with its name under "name", as in a recipe
    teacher: str
    teacher_sha256: str
    images: int  # trained on
    average: str  # over the training, which the weights are
    metrics: Mapping[str, Any] | None  # as a metric protocol reports them; its name under "protocol"
    versions: Mapping[str, str]  # of the libraries
    recipe: str  # YAML


def cycle(classes: int) -> list[int] | None:
    """BATCH labels that go round the classes; None for an unconditional model."""
    return [i % classes for i in range(BATCH)] if classes else None


def snippet(folder: str, classes: int, stock: bool) -> str:
    """Three lines of Python that load the folder of this name and draw BATCH images."""
    trust = "" if stock else ", trust_remote_code=True"
    labels = f", class_labels={cycle(classes)}" if classes else ""
    return (
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({json.dumps(folder, ensure_ascii=False)}{trust})\n"
        f"images = pipe(batch_size={BATCH}{labels}, num_inference_steps=1).images\n"
    )


def render(facts: CardFacts, folder: str, shape: tuple[int, int, int], classes: int, stock: bool) -> str:
    """The text of README.md for images of `shape` (C, H, W); `stock`: diffusers needs no code from the folder."""
    channels, height, width = shape
    kind = f"conditional on {classes} classes" if classes else "unconditional"
    front = {
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["one-step-generation", "diffusion-distillation", str(facts.objective.get("name", "distilled"))],
    }
    return "\n".join(
        [
            f"---\n{_yaml(front)}---\n",
            f"# {facts.name}\n",
            "A one-step image generator, distilled from a multi-step diffusion or flow model: one evaluation of its"
            f" network turns noise into an image of {channels} x {height} x {width} (channels, height, width), {kind}.",
            f"\n## Use\n\nIn the folder that holds `{folder}`:\n\n```python\n{snippet(folder, classes, stock)}```\n",
            _loading(stock),
            *(["Say which classes you want: without `class_labels` they are random."] if classes else []),
            f"\n## Training\n\nTeacher: `{facts.teacher}`, SHA-256 `{facts.teacher_sha256}`.",
            f"Trained on {facts.images:,} generated images (samples of the global batch) with the objective\n",
            f"```yaml\n{_yaml(dict(facts.objective))}```\n",
            f"The weights are an average over the training: {facts.average}.\n",
            f"## Metrics\n\n{_metrics(facts.metrics)}",
            f"\n## Limits\n\n{_limits(stock)}",
            f"\n## Versions\n\n{', '.join(f'{name} {version}' for name, version in facts.versions.items())}",
            f"\n## Recipe\n\n````yaml\n{facts.recipe.strip()}\n````\n",
        ]
    )


def _loading(stock: bool) -> str:
    if stock:
        return "This is a stock diffusers pipeline: no code comes with the weights."
    return (
        "No stock diffusers pipeline computes this generator, so `pipeline.py` comes with the weights and"
        " `trust_remote_code=True` allows diffusers to run it. It is short and needs only torch and diffusers:"
        " read it first."
    )


def _limits(stock: bool) -> str:
    more = "The pipeline accepts a larger `num_inference_steps`, and its images are then wrong." if stock else ""
    return (
        f"- One step only: `num_inference_steps=1`. {more}".rstrip() + "\n"
        "- The images were compared with the training generator's in float32 on the CPU (`export_check.json`); other"
        " precisions and devices round differently."
    )


def _metrics(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "None were measured."
    rows = "\n".join(
        f"| {name} | {f'{value:.6g}' if isinstance(value, float) else value} |"
        for name, value in metrics.items()
        if name != "protocol"
    )
    head = f"Protocol: `{metrics.get('protocol', 'not named')}`. Numbers of another protocol do not compare."
    return f"{head}\n\n| metric | value |\n|---|---|\n{rows}"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
