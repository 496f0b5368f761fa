"""The post-hoc average of a run: an average of another width, made from snapshots."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distill.denoiser import Denoiser
from distill.errors import UserError
from trainers.checkpoints.checkpoint import AVERAGE, save_module
from trainers.checkpoints.posthoc_ema import Synthesis, snapshots, synthesis_of, synthesise
from trainers.io.atomic import atomic_folder
from trainers.io.console import plain
from trainers.io.teacher_hash import teacher_hash
from trainers.recipe.changes import load_moved_run
from trainers.recipe.run import Run
from trainers.runs.load import POSTHOC, load_trained
from trainers.runs.teacher import write_teacher


def make_average(
    folder: Path, std: float, images: int | None = None, changes: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, Synthesis]:
    """Write the power-function average of relative width `std` after `images` images (EDM2) into a run folder.

    Args:
        folder: The run folder.
        std: The relative width.
        images: The number of images after which the average ends. None for the last snapshot.
        changes: Where the teacher and the data lie now, as for `load_trained`.

    Returns:
        Its name for `trainers.load(folder, which)`, and its combination of snapshots.

    Raises:
        UserError: The run has no snapshots, or this average cannot be made from them.
    """
    run = load_moved_run(folder, changes)
    if run.power_ema is None:
        raise UserError(f"'{folder}' has no snapshots: its recipe has no power_ema")
    found = snapshots(folder)
    if not found:
        raise UserError(f"'{folder}' has no snapshots yet: the first comes after {run.power_ema.snapshot_every} images")
    synthesis = synthesis_of(found, std, found[-1].images if images is None else images)
    trained = load_trained(folder, merged=False, changes=changes)
    with plain(stderr=True).status(f"{len(synthesis.parts)} snapshots"):
        synthesise(trained.model, synthesis, trained.weights.frozen_names)
    which = f"posthoc/{std}" if images is None else f"posthoc/{std}@{images}"
    base = run.teacher if isinstance(run, Run) else run.start
    description = {
        "images": synthesis.images,
        "std": std,
        "left": synthesis.missing,
        "teacher": None if base is None else teacher_hash(base),
        "snapshots": [{"images": s.images, "std": s.std, "coefficient": c} for s, c in synthesis.parts],
    }
    with atomic_folder(folder / which) as staging:
        save_module(trained.model, staging / AVERAGE, trained.weights.frozen_names)
        if isinstance(trained.model, Denoiser):
            write_teacher(trained.model, staging, base)
        (staging / POSTHOC).write_text(json.dumps(description, indent=2) + "\n")
    return which, synthesis
