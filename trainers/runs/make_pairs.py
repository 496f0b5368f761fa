"""The computation of a folder of ODE pairs, shard by shard.

A kill loses the shard in progress. The next call continues to the same bits.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from distill.denoiser import Denoiser
from distill.errors import UserError, require
from distill.guidance import classifier_free
from distill.random import Random
from distill.samplers import Heun, Sampler
from distill.saved_files import tensor_bytes
from distill.teachers import DESCRIPTION as TEACHER
from distill.teachers import load_denoiser
from distill.user_code import naming
from distill.weights import is_finite
from trainers.data import Data, DataFree, Dataset
from trainers.data.batches import drawn_positions, inputs, texts_at
from trainers.data.cache import DEFAULT_CACHE
from trainers.data.encode import DatasetEncoder
from trainers.data.pairs import DESCRIPTION, columns_of, open_pairs, read_description
from trainers.io.atomic import atomic_file, remove_staging_files, sha256
from trainers.io.images import to_images
from trainers.io.teacher_hash import is_hash_of, teacher_hash
from trainers.recipe.load import RUN_FILE, load_run
from trainers.recipe.strict_yaml import build, dump, override
from trainers.runs.open import check_fit

PAIRS_A_SHARD = 1000  # pairs
STREAM = "pairs"  # of random numbers


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """The settings that, with the teacher and the data, determine every pair.

    Attributes:
        evaluations: The number of the teacher's evaluations for each sample, by Heun's method.
        teacher_cfg: The teacher's guidance scale, in the convention of distill.guidance. 1 is no guidance.
        seed: The seed of noise and conditions.
        sampler: The sampler, in place of Heun's method at `evaluations`. It follows the probability flow, and may guide
            by the null condition in place of `teacher_cfg`.

    Raises:
        UserError: The sampler makes no pairs, or guides beside `teacher_cfg`.
    """

    evaluations: int = 35
    teacher_cfg: float = 1.0
    seed: int = 0
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        require(self.evaluations >= 1, f"evaluations: must be at least 1, got {self.evaluations}")
        if self.sampler is None:
            return
        name = type(self.sampler).__name__
        require(not self.sampler.stochastic, f"sampler: {name} adds noise, and pairs need the probability flow")
        if (guidance := self.sampler.guidance) is not None:
            require(guidance.weak_teacher is None, "sampler.guidance: pairs are guided by cfg alone, got autoguidance")
            require(self.teacher_cfg == 1, "teacher_cfg: the sampler has guidance of its own; leave one of them out")

    def check(self, denoiser: Denoiser, teacher: str) -> None:
        """Raise UserError when a teacher, called `teacher`, cannot be sampled so."""
        if self.teacher_cfg != 1 and not denoiser.network.has_null:
            raise UserError(f"teacher_cfg: the teacher '{teacher}' states no null condition")
        self.used.check(denoiser.path)
        if self.used.guidance is not None:
            self.used.guidance.check(denoiser)

    @property
    def used(self) -> Sampler:
        """The sampler of the pairs."""
        return self.sampler or Heun(evaluations=self.evaluations)

    @property
    def facts(self) -> dict[str, Any]:
        """The settings as pairs.json holds them."""
        facts = {"evaluations": self.used.calls, "teacher_cfg": self.teacher_cfg, "seed": self.seed}
        return facts if self.sampler is None else {**facts, "sampler": dump(self)["sampler"]}


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
    """Write ODE pairs to a folder, and yield the number of pairs after each shard.

    Intact shards stay, so that a second call continues, and a larger `count` extends the folder.

    Args:
        teacher: The teacher's folder.
        dataset: The data, whose conditions the pairs have as often.
        folder: The folder of the pairs.
        count: The number of pairs.
        settings: The settings.
        batch: The number of samples at once.
        device: The device of the teacher.
        cache: The folder of the cache of embeddings.

    Raises:
        UserError: The teacher does not fit the data or the settings, or the folder holds other pairs or something else,
            or another process writes to it.
    """
    denoiser = load_denoiser(teacher).to(device).requires_grad_(False)
    check_fit(denoiser, teacher, dataset)
    dataset = DatasetEncoder(cache, device).encode(dataset, denoiser, real=False)
    settings.check(denoiser, teacher)
    facts: dict[str, Any] = {"data": dataset.name, "shape": list(dataset.shape), "classes": dataset.classes}
    if dataset.prompts is not None:
        facts["prompts"] = hashlib.sha256(json.dumps(list(dataset.prompts)).encode()).hexdigest()
    description = {"teacher": _hash_in(folder, teacher), **facts, **settings.facts}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DESCRIPTION).is_file() and any("pairs" not in path.name for path in folder.iterdir()):
        raise UserError(f"pairs: '{folder}' holds something else; name another folder")
    with _locked(folder):
        shards = _intact_shards(folder, description, count)
        remove_staging_files(folder)
        for first in range(0, count, PAIRS_A_SHARD):
            file, rows = folder / f"pairs-{first // PAIRS_A_SHARD:05d}.safetensors", min(PAIRS_A_SHARD, count - first)
            if shards.get(file.name, {}).get("pairs") != rows:
                parts = torch.arange(first, first + rows).split(batch)
                pairs = [_solve(denoiser, settings, dataset, index, device) for index in parts]
                columns = {name: torch.cat([pair[name] for pair in pairs]) for name in pairs[0]}
                problem = f"teacher: '{teacher}' gives samples that are not finite; nothing of them was written"
                require(is_finite(columns["target"]), problem)
                with atomic_file(file) as staging:
                    staging.write_bytes(tensor_bytes(columns))
                shards[file.name] = {"pairs": rows, "bytes": file.stat().st_size, "sha256": sha256(file)}
                # Listed after it is in place: a shard that is not listed is computed again.
                ordered = dict(sorted(shards.items()))
                with atomic_file(folder / DESCRIPTION) as staging:
                    staging.write_text(json.dumps({**description, "count": count, "shards": ordered}, indent=2) + "\n")
            yield first + rows


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of pairs. The system releases it when this process ends, even by SIGKILL.

    Raises:
        UserError: Another process has the lock.
    """
    try:
        with FileLock(folder / ".pairs.lock", blocking=False):
            yield
    except Timeout:
        raise UserError(f"pairs: '{folder}' is in use by another process; end it, or name another folder") from None


def _hash_in(folder: Path, teacher: str) -> str:
    """Return the hash of a teacher in the form that a folder of pairs holds already, or in today's."""
    current = teacher_hash(teacher)
    if (folder / DESCRIPTION).is_file() and is_hash_of(stored := read_description(folder)["teacher"], teacher, current):
        return str(stored)
    return current


def _intact_shards(folder: Path, description: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the entries of the shards that are intact, by file name. Raise UserError if the folder holds others."""
    if not (folder / DESCRIPTION).is_file():
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


def images_of_pairs(folder: Path, source: Dataset, teacher: Denoiser) -> Dataset:
    """Return the teacher's samples in a folder of pairs as a data set of images.

    Args:
        folder: The folder of the pairs.
        source: The data whose conditions the pairs have, as they were opened.
        teacher: The teacher, which decodes its latents.

    Returns:
        The images, with the labels or prompts with which they were drawn.

    Raises:
        UserError: The pairs are incomplete, or of another teacher's shape.
    """
    pairs = open_pairs(folder, teacher.network.shape, teacher.network.classes)
    random = Random.at(read_description(folder)["seed"], torch.arange(pairs.count)).stream(STREAM)
    drawn, device = drawn_positions(source, random), next(teacher.parameters()).device

    def read(positions: Tensor) -> Tensor:
        return to_images(pairs.rows(positions, "target")["target"].to(device), teacher).float().cpu()

    return replace(
        source,
        name="samples of the teacher",
        count=pairs.count,
        read=read,
        labels=None if source.labels is None else source.labels[drawn],
        prompts=None if source.prompts is None else texts_at(source, drawn),
        content=None,
    )


def _solve(
    denoiser: Denoiser, settings: PairSettings, dataset: Dataset, index: Tensor, device: torch.device
) -> dict[str, Tensor]:
    """Return the pairs with the numbers `index` [B], as columns of a shard."""
    noise, cond = inputs(dataset, Random.at(settings.seed, index, device).stream(STREAM))
    sampler, guided = settings.used, classifier_free(denoiser, settings.teacher_cfg, denoiser.null)
    if sampler.guidance is not None:
        guided = sampler.guidance.guide(denoiser)
    pair = {"noise": noise, "target": sampler.sample(guided, noise, cond)}
    return {**pair, **columns_of(cond)}


def pair_source(teacher: Path, data: str | None = None) -> tuple[Path, Dataset]:
    """Find a teacher, and the data whose conditions its pairs shall have.

    Args:
        teacher: A teacher's run folder, or teacher/ in it.
        data: The data as in a recipe. None for the data of the teacher's run.

    Returns:
        The teacher's folder and the data.

    Raises:
        UserError: There is no teacher, or nothing says how frequent its classes are.
    """
    folder = teacher if (teacher / TEACHER).exists() else teacher / "teacher"
    if not folder.is_dir():
        raise UserError(f"teacher: '{teacher}' holds no teacher: neither {TEACHER} nor a folder teacher/")
    if data is not None:
        words = override({}, [f"data={data}"])["data"]
        with naming(words, Path.cwd()):
            return folder, build(Data, words, "--data").load()
    run = folder.resolve().parent
    if (run / RUN_FILE).is_file():
        return folder, load_run(run).data.load()
    network = load_denoiser(folder, weights=False).network
    if network.classes:
        raise UserError(f"--data: '{folder}' does not say how frequent its classes are; name the data")
    return folder, DataFree(network.shape).load()
