"""Makes a folder of ODE pairs, by shards: a kill loses the shard under way, the next call goes on to the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.guidance import classifier_free
from distill.random import Random
from distill.sampling import heun_steps, sample
from distill.teachers import DESCRIPTION as TEACHER
from distill.teachers import load_denoiser
from trainers.data import Data, DataFree, Dataset
from trainers.data.batches import inputs
from trainers.data.cache import DEFAULT_CACHE
from trainers.data.encode import DatasetEncoder
from trainers.data.pairs import DESCRIPTION, columns_of, read_description
from trainers.io.atomic import atomic_file, sha256
from trainers.recipe.load import RUN_FILE, load_run
from trainers.recipe.strict_yaml import build, override
from trainers.runs.distillation import teacher_hash
from trainers.runs.open import check_fit

PAIRS_A_SHARD = 1000  # pairs


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """With the teacher and the data, what pair i is a function of."""

    evaluations: int = 35  # of the teacher, by Heun's method
    teacher_cfg: float = 1.0  # the teacher's guidance, in the convention of distill.guidance; 1: none
    seed: int = 0

    def __post_init__(self) -> None:
        heun_steps(self.evaluations)


def make_pairs(
    teacher: str,
    dataset: Dataset,
    folder: Path,
    count: int,
    settings: PairSettings,
    batch: int,
    device: torch.device,
    cache: str = DEFAULT_CACHE,
) -> Iterator[int]:
    """Write to `folder` what the teacher makes of `count` noises, with conditions by their frequency in `dataset`,
    `batch` at once; yields how many pairs there are.

    What is there and whole is kept, so a larger `count` extends a folder. Raises UserError, before it computes, when
    the teacher does not fit data or settings, or `folder` holds something else: other pairs, or no pairs at all.
    """
    denoiser = load_denoiser(teacher).to(device).requires_grad_(False)
    check_fit(denoiser, teacher, dataset)
    dataset = DatasetEncoder(cache, device).encode(dataset, denoiser, real=False)
    if settings.teacher_cfg != 1 and not denoiser.network.has_null:
        raise UserError(f"teacher_cfg: the teacher '{teacher}' states no null condition")
    form: dict[str, Any] = {"data": dataset.name, "shape": list(dataset.shape), "classes": dataset.classes}
    if dataset.prompts is not None:
        form["prompts"] = hashlib.sha256(json.dumps(list(dataset.prompts)).encode()).hexdigest()
    description = {"teacher": teacher_hash(teacher), **form, **asdict(settings)}
    shards = _whole_shards(folder, description, count)
    for first in range(0, count, PAIRS_A_SHARD):
        file, rows = folder / f"pairs-{first // PAIRS_A_SHARD:05d}.safetensors", min(PAIRS_A_SHARD, count - first)
        if shards.get(file.name, {}).get("pairs") != rows:
            parts = torch.arange(first, first + rows, device=device).split(batch)
            pairs = [_solve(denoiser, settings, dataset, index) for index in parts]
            with atomic_file(file) as staging:
                save_file({name: torch.cat([pair[name] for pair in pairs]).cpu() for name in pairs[0]}, staging)
            shards[file.name] = {"pairs": rows, "bytes": file.stat().st_size, "sha256": sha256(file)}
            ordered = dict(sorted(shards.items()))
            with atomic_file(folder / DESCRIPTION) as staging:
                staging.write_text(json.dumps({**description, "count": count, "shards": ordered}, indent=2) + "\n")
        yield first + rows


def _whole_shards(folder: Path, description: dict[str, Any], count: int) -> dict[str, Any]:
    """The shards in `folder` that are whole, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DESCRIPTION).is_file():
        if any("pairs" not in path.name for path in folder.iterdir()):
            raise UserError(f"pairs: '{folder}' holds something else; name another folder")
        return {}
    there = read_description(folder)
    for key, value in {**description, "count": count}.items():
        if there.get(key) != value and (key != "count" or there[key] > value):
            raise UserError(f"pairs: '{folder}' is of {key} {there.get(key)}, not {value}; name another folder")
    return {
        name: shard
        for name, shard in there["shards"].items()
        if (folder / name).is_file() and sha256(folder / name) == shard["sha256"]
    }


def _solve(denoiser: Denoiser, settings: PairSettings, dataset: Dataset, index: Tensor) -> dict[str, Tensor]:
    """The pairs `index` [B]."""
    noise, cond = inputs(dataset, Random.at(settings.seed, index).stream("pairs"))
    guided = classifier_free(denoiser, settings.teacher_cfg, denoiser.null)
    pair = {"noise": noise, "target": sample(guided, noise, cond, settings.evaluations)}
    return {**pair, **columns_of(cond)}


def pair_source(teacher: Path, data: str | None = None) -> tuple[Path, Dataset]:
    """Return a teacher's folder, and the data whose conditions its pairs have.

    Args:
        teacher: A teacher's run folder, or its teacher/ folder.
        data: The data as in a recipe; None for those of the teacher's run.

    Raises:
        UserError: There is no teacher, or it does not say how frequent its classes are.
    """
    folder = teacher if (teacher / TEACHER).exists() else teacher / "teacher"
    if not folder.is_dir():
        raise UserError(f"teacher: '{teacher}' holds no teacher: neither {TEACHER} nor a folder teacher/")
    if data is not None:
        return folder, build(Data, override({}, [f"data={data}"])["data"], "--data").load()
    run = folder.resolve().parent
    if (run / RUN_FILE).is_file():
        return folder, load_run(run).data.load()
    network = load_denoiser(folder, weights=False).network
    if network.classes:
        raise UserError(f"--data: '{folder}' does not say how frequent its classes are; name the data")
    return folder, DataFree(network.shape).load()
