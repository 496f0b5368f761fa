"""README.md of an exported generator: the model card that Hugging Face shows, and what a person needs to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from distill.conditions import Condition
from distill.export.format import Format, Source
from distill.generator import Generator


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


def render(facts: CardFacts, source: Source, generator: Generator, form: Format) -> str:
    """The text of README.md for `generator` in this format."""
    prompts = form.cond.labels is None and bool(form.cond)
    front = {
        **({"library_name": form.library} if form.library else {}),
        "pipeline_tag": "text-to-image" if prompts else "unconditional-image-generation",
        "tags": ["one-step-generation", "diffusion-distillation", str(facts.objective.get("name", "distilled"))],
    }
    where = "" if source.hub else f"In the folder that holds `{source.name}`:\n\n"
    limits = (
        *form.limits,
        "The samples were compared with the training generator's in float32 on the CPU (`export_check.json`); other"
        " precisions and devices round differently.",
    )
    return "\n".join(
        [
            f"---\n{_yaml(front)}---\n",
            f"# {facts.name}\n",
            _what(generator, form.cond),
            f"\n## Use\n\n{where}```python\n{form.snippet(source)}```\n",
            form.loading,
            f"\n## Training\n\nTeacher: `{facts.teacher}`, SHA-256 `{facts.teacher_sha256}`.",
            f"Trained on {facts.images:,} generated images (samples of the global batch) with the objective\n",
            f"```yaml\n{_yaml(dict(facts.objective))}```\n",
            f"The weights are an average over the training: {facts.average}.\n",
            f"## Metrics\n\n{_metrics(facts.metrics)}",
            "\n## Limits\n",
            *(f"- {limit}" for limit in limits),
            f"\n## Versions\n\n{', '.join(f'{name} {version}' for name, version in facts.versions.items())}",
            f"\n## Recipe\n\n````yaml\n{facts.recipe.strip()}\n````\n",
        ]
    )


def _what(generator: Generator, cond: Condition) -> str:
    network = generator.denoiser.network
    shape, classes = " x ".join(map(str, network.shape)), network.classes
    dimensions = "channels, height, width" if len(network.shape) == 3 else "channels, then the spatial dimensions"
    made = "a latent, which the teacher's decoder makes an image of," if generator.denoiser.latents else "an image"
    kind = f"conditional on {classes} classes" if classes else "unconditional"
    if cond and cond.labels is None:
        shapes = ", ".join(f"`{name}` {list(value.shape[1:])}" for name, value in cond.items())
        kind = f"conditional on the text encoders' {shapes}"
    return (
        "A one-step image generator, distilled from a multi-step diffusion or flow model: one evaluation of its"
        f" network turns noise into {made} of {shape} ({dimensions}), {kind}."
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
