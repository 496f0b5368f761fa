"""The statistics of a teacher for DPM-Solver-v3, computed once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch

from distill.denoiser import Denoiser, GuidableDenoiser
from distill.errors import UserError
from distill.random import Random
from distill.samplers import DPMV3, ModelStatistics, Sampler, measure_statistics
from trainers.data.batches import labels_in_turn, unit_noise
from trainers.io.atomic import atomic_file
from trainers.io.console import plain, progress
from trainers.io.teacher_hash import weights_hash

TRAJECTORIES, STATISTICS_LEVELS = 256, 120


def with_statistics(sampler: Sampler, teacher: Denoiser, cache: str, device: torch.device) -> Sampler:
    """Return a sampler with the file of a teacher's statistics, where it is DPM-Solver-v3 and names none.

    The file lies in the cache under the hash of the teacher. It is computed if it is not there, on labels in turn. A
    sampler that guides by `cfg` has the statistics of the guided teacher.

    Args:
        sampler: The sampler.
        teacher: The teacher.
        cache: The folder of the cache.
        device: The device of the teacher.

    Raises:
        UserError: The teacher takes prompts, whose statistics depend on them.
    """
    if not isinstance(sampler, DPMV3) or sampler.statistics is not None:
        return sampler
    if teacher.network.text_encoder is not None:
        raise UserError(
            "--sampler: dpm_v3 needs the statistics of this teacher on some prompts; compute them by"
            " distill.samplers.measure_statistics and name their file: '{name: dpm_v3, statistics: FILE}'"
        )
    guidance = sampler.guidance if sampler.guidance is not None and sampler.guidance.cfg is not None else None
    identity = weights_hash(teacher)
    low, high = sampler.low, sampler.high
    origin = {"teacher": identity, "samples": TRAJECTORIES, "points": STATISTICS_LEVELS, "low": low, "high": high}
    text = json.dumps({**origin, "guidance": str(guidance)}, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    file = Path(cache).expanduser() / "statistics" / f"{name}.safetensors"
    if not _intact(file):
        model = teacher if guidance is None else guidance.guide(teacher)
        found = _measure(model, device, low, high)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as staging:
            replace(found, teacher=identity).save(staging)
    plain(stderr=True).print(f"sampler.statistics: {file}")
    return replace(sampler, statistics=str(file))


def _intact(file: Path) -> bool:
    """Return whether a file of the cache can be read."""
    try:
        ModelStatistics.load(file)
    except UserError:
        return False
    return True


def _measure(model: GuidableDenoiser, device: torch.device, low: float, high: float) -> ModelStatistics:
    """Return the statistics of a teacher, guided or not, on labels in turn."""
    index = torch.arange(TRAJECTORIES, device=device)
    noise = unit_noise(model.network.shape, Random.at(0, index).stream("statistics"))
    labels = labels_in_turn(model.network.classes, index)
    with progress() as say:
        return measure_statistics(
            model,
            noise,
            labels,
            STATISTICS_LEVELS,
            low,
            high,
            say=lambda done: say(f"statistics: {done:,} of {TRAJECTORIES:,} trajectories"),
        )
