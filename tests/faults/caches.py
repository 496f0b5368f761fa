"""kill -9 of what fills a cache: a command, the launcher of two processes, and one or both of two commands at once."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from tests import texts
from tests.faults.kills import Place, Tally, chosen, leftovers
from tests.faults.victim import distill, launcher
from tests.tiny import ROOT, recipe
from tests.trainers.interrupted import contents

CACHING: list[Place] = [
    ("trainers.data.cache:_write", 6, None),
    ("trainers.data.cache:_write", 6, 0.01),
    ("trainers.data.cache:tensor_bytes", 6, 0.005),
    ("trainers.data.cache:sha256", 6, None),
    ("trainers.io.atomic:os.replace", 12, None),
    ("tests.texts:Words.encode", 8, 0.01),
]
PICTURES: list[Place] = [
    *CACHING,
    ("trainers.data.scan:_look_at", 4, None),
    ("trainers.data.scan:atomic_file", 1, None),
    ("trainers.data.cache:_write_origin", 3, 0.01),
    ("tests.texts:Halves.encode", 4, 0.01),
    ("trainers.data.tables:open_files", 1, 0.1),
]
WORDS: dict[str, Any] = {"data": {"name": "prompts"}}
EMOJI = ROOT / "tests" / "golden" / "emoji.parquet"
IMAGES: dict[str, Any] = {
    "data": {"name": "images", "path": str(EMOJI), "resolution": 8, "prompt_column": "text"},
    "objective": "dmd2",
}


def recipes(folder: Path, **settings: Any) -> Iterator[tuple[Path, Path]]:
    """Yield recipes of a teacher of prompts, each with the empty folder of its caches."""
    latents = {"latents": True, "shape": [2, 4, 4]} if settings["data"]["name"] == "images" else {}
    folder.mkdir(parents=True, exist_ok=True)
    texts.install(pytest.MonkeyPatch(), rows=4)
    teacher = texts.write_text_teacher(folder / "teacher", folder / "log", pause=0.002, **latents)
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"prompt {number}\n" for number in range(60)))
    settings["data"] = {"path": str(prompts), **settings["data"]}
    number = 0
    while True:
        cache, file, number = folder / f"cache-{number}", folder / "recipe.yaml", number + 1
        os.environ["HF_DATASETS_CACHE"] = datasets.config.HF_DATASETS_CACHE = str(cache / "datasets")
        common = {"images": 16, "evaluation": {"every": 0}, "cache": str(cache)}
        file.write_text(yaml.safe_dump(recipe(teacher, **common, **settings)))
        yield file, cache


def tables(cache: Path) -> dict[str, str]:
    """The hashes of all files of a cache, but of receipts and of facts of `datasets`, which hold times.

    The names of scans and of the locks of `datasets` are functions of the place and of times.
    """
    timed = re.compile(r"\d+\.json|dataset_info\.json")
    hashes = {name: "" if timed.fullmatch(Path(name).name) else found for name, found in contents(cache).items()}
    return {re.sub(r"[0-9a-f]{32}(?=[.]json|[.]lock)|cache-\d+", "...", name): found for name, found in hashes.items()}


def caching_kills(folder: Path, kills: int, seed: int, world: int = 1) -> Tally:
    """Kill `distill cache` while it makes embeddings, or the launcher of processes that do."""
    tally, choice, first = Tally(), random.Random(seed), dict[str, str]()
    for file, cache in recipes(folder, **WORDS):
        codes, output = [-9], cache.with_suffix(".txt")
        while codes == [-9]:  # the first run is not killed
            trap = chosen(CACHING, choice) if tally.kills < kills and tally.runs else None
            if world > 1:
                run = cache.with_name(f"run-{cache.name}")
                codes = launcher(["train", str(file), "--folder", str(run)], output, world, trap).wait()
            else:
                codes = distill(["cache", str(file)], output, 1, [trap] if trap else []).wait()
            if trap and codes == [-9]:
                tally.count(trap.place)
            elif codes != [0]:
                tally.failures.append(f"{cache.name}: {codes} {output.read_text()[-500:]}")
        compare(tally, cache, first)
        if tally.kills >= kills or len(tally.failures) > 5:
            return tally
    raise AssertionError("unreachable")


def two_at_once(folder: Path, kills: int, seed: int) -> Tally:
    """Fill a cache of embeddings, latents and pictures by two commands at once; none, one or both are killed."""
    tally, choice, first = Tally(), random.Random(seed), dict[str, str]()
    for (file, cache), victims in zip(recipes(folder, **IMAGES), cycle((0, 1, 2)), strict=False):
        output = cache.with_suffix(".txt")
        traps = [chosen(PICTURES, choice) if number < victims else None for number in range(2)]
        both = [distill(["cache", str(file)], output, 1, [trap] if trap else []) for trap in traps]
        for trap, code in zip(traps, [victim.wait()[0] for victim in both], strict=True):
            if trap and code == -9:
                tally.count(trap.place)
            elif code:
                tally.failures.append(f"{cache.name}: {code} {output.read_text()[-500:]}")
        if distill(["cache", str(file)], output, 1).wait() != [0]:
            tally.failures.append(f"{cache.name}: {output.read_text()[-500:]}")
        compare(tally, cache, first)
        if tally.kills >= kills or len(tally.failures) > 5:
            return tally
    raise AssertionError("unreachable")


def compare(tally: Tally, cache: Path, first: dict[str, str]) -> None:
    """Count a cache, and compare it with the one that was made first, which becomes `first` if there is none."""
    tally.runs, found = tally.runs + 1, tables(cache)
    first |= {} if first else found
    if wrong := [name for name in {**first, **found} if first.get(name) != found.get(name)]:
        tally.failures.append(f"{cache.name} differs: {sorted(wrong)}")
    if left := leftovers(cache):
        tally.failures.append(f"{cache.name}: {left} are left")
