"""The report of a probe, as text and as pictures."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.io.images import grid, to_images
from trainers.plan.report import gigabytes
from trainers.probe.entry import PICTURED
from trainers.probe.findings import Findings
from trainers.probe.levels import MIDDLE, middle_level
from trainers.probe.unusual import unusual

NOT_KNOWN = "unknown"


def markdown(found: Findings, title: str) -> str:
    """Return the report as Markdown."""
    return "\n".join(_lines(found, title)) + "\n"


def numbers(found: Findings) -> dict[str, Any]:
    """Return the numbers of the report as plain values. What is unknown is null."""
    share = found.facts.train_mode
    return {
        "network": asdict(found.facts) | {"train_mode": share if isfinite(share) else None},
        "seconds_an_evaluation": found.second,
        "bfloat16_gain": found.bfloat16_gain,
        "reference": {"samples": len(found.reference.samples), "are_data": found.reference.are_data},
        "mean": found.mean,
        "sigma_data": {"measured": found.std, "stated": found.sigma_data},
        "error_by_level": [one._asdict() for one in found.levels],
        "error_in_pure_noise": found.whole,
        "middle_level": middle_level(found.levels, found.whole),
        "distance_by_evaluations": {str(steps): distance for steps, (_, distance) in found.sampled.items()},
        "student_by_entry": [{"nsr": e.nsr, "distance": e.distance, "contrast": e.contrast} for e in found.entries],
        "fake_by_rate": [_without(one._asdict(), "fake") for one in found.fakes] or None,
        "student_by_rate": [_without(one._asdict(), "student") for one in found.students] or None,
        "gradient_by_level": {name: [g._asdict() for g in rows] for name, rows in found.gradients.items()} or None,
        "memory": found.memory,
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
    made = {
        "samples.png": [samples for samples, _ in found.sampled.values()],
        "entry.png": [one.samples for one in found.entries],
    }
    for name, rows in made.items():
        columns = min(PICTURED, *(len(row) for row in (*rows, reference)))
        stacked = torch.cat([row[:columns] for row in (*rows, reference)])
        grid(to_images(stacked, model), columns).save(folder / name)


def _lines(found: Findings, title: str) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from [f"# {title}", ""]
    yield from (f"- {sentence}" for sentence in unusual(found) or ["Nothing unusual was found."])
    for head, lines in (
        ("Network", _network(found)),
        ("Error by noise level", _levels(found)),
        ("Samples", _samples(found)),
        ("The untrained student, by its entry", _entries(found)),
        ("Rates", _rates(found)),
        ("Gradients in the samples", _gradients(found)),
    ):
        yield from ["", f"## {head}", "", *lines]
    yield from ["", f"The probe took {found.seconds:.0f} seconds."]


def _network(found: Findings) -> Iterator[str]:
    """Yield the lines about the network and its scale."""
    known, count = found.facts, len(found.reference.samples)
    reference = "images of the data" if found.reference.are_data else "samples of the teacher"
    norms = ", ".join(f"{number} {name}" for name, number in known.norms.items()) or "none"
    dropout = ", ".join(f"{name} ({p:g})" for name, p in list(known.dropout.items())[:5]) or "no layer of it"
    yield f"`{known.name}`, {known.parameters:,} parameters, predicts {known.prediction} on {known.path:.100}."
    yield f"Samples {list(known.shape)}, {known.classes or 'no'} classes, {'a' if known.null else 'no'} null condition."
    yield f"Norms: {norms}. Dropout: {dropout}. An evaluation of one sample takes {1000 * found.second:.3g} ms here."
    yield f"The reference: {count} {reference}, with mean {found.mean:.3g} and standard deviation {found.std:.3g}."
    gain = NOT_KNOWN if found.bfloat16_gain is None else f"{1 / found.bfloat16_gain:.2f} of float32's"
    yield f"The time of a forward with its backward pass in bfloat16: {gain}."
    memory = NOT_KNOWN if found.memory is None else gigabytes(found.memory)
    yield f"The teacher states sigma_data {found.sigma_data:g}. The recipe takes {memory} on one GPU (`distill plan`)."


def _levels(found: Findings) -> Iterator[str]:
    """Yield the lines about the error by noise level."""
    middle = middle_level(found.levels, found.whole)
    yield from _table(
        ("ratio", "error", "of pure noise", "best possible", "bfloat16 changes"),
        (
            (f"{o.nsr:.3g}", f"{o.error:.4g}", f"{o.error / found.whole:.2f}", _between(o), f"{o.bfloat16:.1%}")
            for o in found.levels
        ),
    )
    at = NOT_KNOWN if middle is None else f"{middle:.3g}"
    yield from ["", f"The error is {MIDDLE} of that in pure noise ({found.whole:.3g}) at the ratio {at}."]


def _samples(found: Findings) -> Iterator[str]:
    """Yield the lines about the teacher's samples."""
    yield "Frechet distances to the reference, in its own principal components. `samples.png` has a row for each, and"
    yield from ["the reference last.", ""]
    rows = ((str(steps), _number(distance)) for steps, (_, distance) in found.sampled.items())
    yield from _table(("evaluations", "distance"), rows)


def _entries(found: Findings) -> Iterator[str]:
    """Yield the lines about the untrained student."""
    rows = ((f"{one.nsr:.3g}", f"{one.distance:.4g}", f"{one.contrast:.2f}") for one in found.entries)
    yield from _table(("entry", "distance", "contrast"), rows)


def _rates(found: Findings) -> Iterator[str]:
    """Yield the lines about the learning rates."""
    if found.fakes:
        yield f"The fake after {found.fakes[0].steps} steps, beside the teacher, while the student stands still:"
        tried = ((f"{f.rate:g}", f"{f.loss:.3f}", f"{f.ratio:.3f}", f"{f.worst:.3f}", f.where) for f in found.fakes)
        yield from ["", *_table(("rate", "loss", "error", "worst error", "at"), tried), ""]
    else:
        yield from [f"The fake: {NOT_KNOWN}. The network is too slow here for the steps of a trial.", ""]
    if found.students:
        yield "The averaged student after a short trial:"
        rows = ((f"{s.rate:g}", f"{s.before:.4g}", f"{s.after:.4g}", f"{s.seconds:.3g}") for s in found.students)
        yield from ["", *_table(("rate", "distance before", "after", "seconds a sample"), rows)]
    else:
        yield f"The student: {NOT_KNOWN}."


def _gradients(found: Findings) -> Iterator[str]:
    """Yield the lines about the gradients."""
    if not found.gradients:
        yield f"{NOT_KNOWN.capitalize()}."
        return
    yield "The norm at each ratio over the largest, and the noise of one draw over the mean of all draws:"
    ratios = [f"{one.nsr:.3g}" for one in next(iter(found.gradients.values()))]
    rows = []
    for name, row in found.gradients.items():
        most = max(one.norm for one in row) or 1.0
        rows.append((name, *(f"{one.norm / most:.2g}, {one.noise:.2g}" for one in row)))
    yield from ["", *_table(("objective", *ratios), rows)]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield "|" + " --- |" * len(names)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _between(level: Any) -> str:
    """Return the bounds of the best possible error in words."""
    return NOT_KNOWN if level.floor is None else f"{level.floor:.4g} to {level.ceiling:.4g}"


def _number(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.4g}"


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a mapping without one of its keys."""
    return {key: value for key, value in values.items() if key != name}
