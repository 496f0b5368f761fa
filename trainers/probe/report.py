"""The report of a probe, as text and as pictures."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.io.images import grid, to_images
from trainers.probe.findings import Findings
from trainers.probe.levels import half_level
from trainers.probe.unusual import unusual

UNKNOWN = "unknown"


def markdown(found: Findings, title: str) -> str:
    """Return the report as Markdown."""
    return "\n".join(_lines(found, title)) + "\n"


def numbers(found: Findings) -> dict[str, Any]:
    """Return the numbers of the report as plain values. What is unknown is null."""
    return {
        "network": asdict(found.facts),
        "seconds_an_evaluation": found.second,
        "reference": {"samples": len(found.reference.samples), "are_data": found.reference.are_data},
        "mean": found.mean,
        "sigma_data": {"measured": found.std, "stated": found.sigma_data},
        "error_by_level": [one._asdict() for one in found.levels],
        "error_in_pure_noise": found.whole,
        "half_level": half_level(found.levels, found.whole),
        "distance_by_evaluations": {str(steps): distance for steps, (_, distance) in found.sampled.items()},
        "student_by_entry": [{"nsr": e.nsr, "distance": e.distance, "contrast": e.contrast} for e in found.entries],
        "fake_by_rate": [_without(one._asdict(), "fake") for one in found.fakes] or None,
        "student_by_rate": [_without(one._asdict(), "student") for one in found.students] or None,
        "gradient_by_level": {name: [g._asdict() for g in rows] for name, rows in found.gradients.items()} or None,
        "unusual": unusual(found),
        "seconds": found.seconds,
    }


def write(found: Findings, folder: Path, title: str, recipe: str, model: nn.Module) -> None:
    """Write report.md, report.json, recipe.yaml, samples.png and entry.png.

    Args:
        found: The findings.
        folder: The folder.
        title: The title of the report.
        recipe: The text of the recipe.
        model: The teacher, which decodes latents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(found, title), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(numbers(found), indent=2) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    reference = found.reference.samples
    rows = {"samples.png": [samples for samples, _ in found.sampled.values()], "entry.png": []}
    rows["entry.png"] = [one.samples for one in found.entries]
    for name, parts in rows.items():
        columns = min(len(part) for part in (reference, *parts))
        columns = min(columns, 10)
        stacked = torch.cat([part[:columns] for part in (*parts, reference)])
        grid(to_images(stacked, model), columns).save(folder / name)


def _lines(found: Findings, title: str) -> Iterator[str]:
    """Yield the lines of the report."""
    known, reference = found.facts, "images of the data" if found.reference.are_data else "samples of the teacher"
    norms = ", ".join(f"{count} {name}" for name, count in known.norms.items()) or "none"
    dropout = ", ".join(f"{name} ({p:g})" for name, p in list(known.dropout.items())[:5]) or "no layer of it"
    yield f"# {title}"
    yield ""
    yield from (f"- {sentence}" for sentence in unusual(found) or ["Nothing unusual was found."])
    yield ""
    yield "## Network"
    yield ""
    yield f"`{known.name}`, {known.parameters:,} parameters, predicts {known.prediction} on {known.path:.100}."
    yield (
        f"Samples {list(known.shape)}, {known.classes or 'no'} classes,"
        f" {'a' if known.null else 'no'} null condition. Norms: {norms}. Dropout: {dropout}."
    )
    yield f"An evaluation of one sample takes {1000 * found.second:.3g} ms here."
    yield (
        f"The reference: {len(found.reference.samples)} {reference}, with mean {found.mean:.3g} and standard"
        f" deviation {found.std:.3g}. The teacher states sigma_data {found.sigma_data:g}."
    )
    half = half_level(found.levels, found.whole)
    yield ""
    yield "## Error by noise level"
    yield ""
    yield from _table(
        ("ratio", "error", "of pure noise", "best possible", "bfloat16 changes"),
        (
            (
                f"{one.nsr:.3g}",
                f"{one.error:.4g}",
                f"{one.error / found.whole:.2f}",
                _between(one),
                f"{one.bfloat16:.1%}",
            )
            for one in found.levels
        ),
    )
    yield ""
    yield (
        f"The error is half of that in pure noise ({found.whole:.3g}) at the ratio"
        f" {UNKNOWN if half is None else f'{half:.3g}'}."
    )
    yield ""
    yield "## Samples"
    yield ""
    yield "Frechet distances to the reference, in its own principal components. `samples.png` has a row for each, and"
    yield "the reference last."
    yield ""
    yield from _table(
        ("evaluations", "distance"),
        ((str(steps), _number(distance)) for steps, (_, distance) in found.sampled.items()),
    )
    yield ""
    yield "## The untrained student, by its entry"
    yield ""
    yield from _table(
        ("entry", "distance", "contrast"),
        ((f"{one.nsr:.3g}", f"{one.distance:.4g}", f"{one.contrast:.2f}") for one in found.entries),
    )
    yield ""
    yield "## Rates"
    yield ""
    if not found.fakes:
        yield f"The fake: {UNKNOWN}. The network is too slow here for the steps of a trial."
    else:
        yield f"The fake after {found.fakes[0].steps} steps, beside the teacher, while the student stands still:"
        yield ""
        yield from _table(
            ("rate", "loss", "error", "worst error", "at"),
            ((f"{f.rate:g}", f"{f.loss:.3f}", f"{f.ratio:.3f}", f"{f.worst:.3f}", f.where) for f in found.fakes),
        )
    yield ""
    if not found.students:
        yield f"The student: {UNKNOWN}."
    else:
        yield "The student after a short trial:"
        yield ""
        yield from _table(
            ("rate", "distance before", "after", "seconds a sample"),
            ((f"{s.rate:g}", f"{s.before:.4g}", f"{s.after:.4g}", f"{s.seconds:.3g}") for s in found.students),
        )
    yield ""
    yield "## Gradients in the samples"
    yield ""
    if not found.gradients:
        yield f"{UNKNOWN.capitalize()}."
    else:
        yield "The norm at each ratio over the largest, and the noise of one draw over the mean of all draws:"
        yield ""
        ratios = [f"{one.nsr:.3g}" for one in next(iter(found.gradients.values()))]
        rows = []
        for name, row in found.gradients.items():
            most = max(one.norm for one in row) or 1.0
            rows.append((name, *(f"{one.norm / most:.2g}, {one.noise:.2g}" for one in row)))
        yield from _table(("objective", *ratios), rows)
    yield ""
    yield f"The probe took {found.seconds:.0f} seconds."


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield "|" + " --- |" * len(names)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _between(level: Any) -> str:
    """Return the bounds of the best possible error in words."""
    return UNKNOWN if level.floor is None else f"{level.floor:.4g} to {level.ceiling:.4g}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4g}"


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a mapping without one of its keys."""
    return {key: value for key, value in values.items() if key != name}
