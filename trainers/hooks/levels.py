"""A picture of the health of a run by noise level, for the trackers, which draw curves alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trainers.engine.meter import BINS

if TYPE_CHECKING:
    from PIL.Image import Image

TITLES = {
    "health/gap": "gap of fake and teacher",
    "health/weight": "weight of the loss",
    "health/fake_vs_teacher": "error of the fake / teacher's",
}
"""The numbers of the log that are drawn, with their titles."""


def draw_levels(means: Mapping[str, float]) -> Image | None:
    """Return a histogram of each of TITLES over the noise levels, side by side. None where none is known by level.

    Args:
        means: The numbers of a line of the log by name.
    """
    found = {
        title: [means.get(f"{name}/{level}", 0.0) for level in BINS]
        for name, title in TITLES.items()
        if any(f"{name}/{level}" in means for level in BINS)
    }
    if not found:
        return None
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(3.6 * len(found), 3.2), layout="constrained")
    for axes, (title, values) in zip(np.atleast_1d(figure.subplots(1, len(found))), found.items(), strict=True):
        axes.bar([level.removeprefix("nsr").strip() for level in BINS], values)
        axes.set_title(title)
        axes.tick_params("x", rotation=45)
    figure.supxlabel("noise-to-signal ratio")
    content = io.BytesIO()
    figure.savefig(content, format="png")  # without pyplot, so that nothing asks for a display
    return Image.open(content).convert("RGB")
