"""The README.md of an exported generator, which is the model card that Hugging Face shows."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from distill.conditions import Condition
from distill.export.facts import CardFacts
from distill.export.format import CLASS_NAMES, Format, Source
from distill.export.front_matter import front_matter
from distill.generator import Generator
from distill.public_text import printable

LISTED = 100  # names of classes in a card


def render(facts: CardFacts, source: Source, generator: Generator, form: Format) -> str:
    """Return the text of README.md.

    Args:
        facts: The facts about the training.
        source: The place where the card's Python lines find the export.
        generator: The generator that is exported.
        form: Its export format.
    """
    shown = [picture for picture in facts.pictures if picture.prompt is None]
    where = "" if source.hub else f"In the folder that holds `{source.name}`:\n\n"
    limits = (
        *form.limits,
        *_unseen(generator.denoiser.network.unseen),
        "The samples were compared with the training generator's in float32 on the CPU (`export_check.json`); other"
        " precisions and devices round differently.",
    )
    return "\n".join(
        [
            f"---\n{front_matter(facts, generator, form)}---\n",
            f"# {facts.name}\n",
            _summary(generator, form.cond),
            *(f"\n![Samples, one evaluation each]({picture.name})" for picture in shown),
            f"\n## Use\n\n{where}```python\n{form.snippet(source)}```\n",
            form.loading,
            *_classes(generator.denoiser.network.class_names),
            f"\n## Training\n\nTeacher: `{facts.teacher}`, SHA-256 `{facts.teacher_sha256}`.",
            f"Trained on {facts.images:,} generated images (samples of the global batch) with the objective\n",
            f"```yaml\n{_yaml(dict(facts.objective))}```\n",
            f"The weights are an average over the training: {facts.average}.\n",
            *_changes(facts.changes),
            f"## Metrics\n\n{_metrics(facts.metrics)}",
            f"\n## Licence\n\n{_license(facts.license)}",
            "\n## Limits\n",
            *(f"- {limit}" for limit in limits),
            f"\n## Versions\n\n{', '.join(f'{name} {version}' for name, version in facts.versions.items())}",
            f"\n## Recipe\n\n````yaml\n{facts.recipe.strip()}\n````\n",
        ]
    )


def _summary(generator: Generator, cond: Condition) -> str:
    """Return a sentence on the generator: what it makes, in which shape, and under which condition."""
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


def _classes(names: Sequence[str] | None) -> list[str]:
    """Return the section with the numbers and the names of the classes, or nothing without names.

    The names are texts of others. As JSON in a block of code none of them works as Markdown or HTML.
    """
    if not names:
        return []
    shown = {str(number): printable(name, 80) for number, name in enumerate(names[:LISTED])}
    told = f"`{CLASS_NAMES}` has the names of all {len(names)} classes by number."
    more = f" These are the first {LISTED}." if len(names) > LISTED else ""
    return [f"\n## Classes\n\n{told}{more}\n\n```json\n{json.dumps(shown, indent=2, ensure_ascii=False)}\n```"]


def _changes(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the paragraph on the settings that changed during the training, or nothing without any.

    JSON keeps all text of others on one line of ASCII, in which no Markdown and no HTML works.
    """
    if not changes:
        return []
    lines = "\n".join(json.dumps(change) for change in changes)
    told = "Settings changed after these numbers of images. The recipe below has their last values."
    return [f"{told}\n\n```json\n{lines}\n```\n"]


def _unseen(classes: Sequence[int]) -> list[str]:
    """Return the sentence on classes without a sample in the data, if there are any."""
    if not classes:
        return []
    shown = ", ".join(map(str, classes[:20])) + (", ..." if len(classes) > 20 else "")
    return [f"The data had no sample of these classes, which the generator was not trained on: {shown}."]


def _license(license: str | None) -> str:
    """Return the sentence on the licence."""
    if license is not None:
        return f"`{license}`, as stated by whoever made this export."
    return "Nobody has stated a licence for these weights. Those of the teacher and of the data may limit their use."


def _metrics(metrics: Mapping[str, Any] | None) -> str:
    """Return the table of the student's numbers, beside the teacher's, under the name of their protocol."""
    if metrics is None:
        return "None were measured."
    student, teacher = metrics.get("student", {}), metrics.get("teacher", {})
    calls = f", {metrics['teacher_evaluations']} evaluations" if "teacher_evaluations" in metrics else ""
    guided = f", guidance {metrics['teacher_cfg']:g}" if "teacher_cfg" in metrics else ""
    if "teacher_autoguidance" in metrics:
        guided = f", guidance {metrics['teacher_autoguidance']:g} by a weaker teacher"
    columns = ["metric", "this model, 1 evaluation", *([f"teacher{calls}{guided}"] if teacher else [])]
    table = [
        columns,
        ["---"] * len(columns),
        *(
            [name, _number(value), *([_number(teacher.get(name))] if teacher else [])]
            for name, value in student.items()
        ),
    ]
    count = f", {metrics['samples']:,} samples" if "samples" in metrics else ""
    head = f"Protocol: `{metrics.get('protocol', 'not named')}`{count}. Numbers of another protocol do not compare."
    halves = f"\n\nTwo halves of the real images have a Frechet distance of {_number(metrics.get('halves'))}."
    rows = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return f"{head}\n\n{rows}{halves if 'halves' in metrics else ''}"


def _number(value: Any) -> str:
    """Return a number for a table, and a dash for None."""
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
