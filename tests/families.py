"""A tiny teacher of every kind, its data, and the recipe of a short run under any objective."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from distill import EDM, Denoiser
from distill.teachers import OwnNet, save_denoiser
from distill.tiny import write_network
from tests.distill.teachers.own_networks import Small
from tests.pipelines import PIPELINES
from tests.tiny import tiny_denoiser
from trainers.recipe.tiny import materialise

FLOWS = ("sd3", "flux", "sana")
SAMPLED: dict[str, Any] = {"sampler": {"name": "euler", "evaluations": 2}}
"""A cheap way to draw the samples of a teacher."""
UNPROMPTED: dict[str, dict[str, Any]] = {  # their data; the others take prompts
    "unet": {"resolution": 8, "mode": "L"},
    "edm": {"resolution": 8, "label_column": None},
    "edm_cond": {"resolution": 8},
    "adm": {"resolution": 8},
    "edm2": {"resolution": 16},
    "ddpm": {"resolution": 8, "label_column": None},
    "ddpm_v": {"resolution": 8, "label_column": None},
    "ddpm_sample": {"resolution": 8, "label_column": None},
    "dit": {"resolution": 16},
    "own": {"resolution": 8, "mode": "L"},
}


class Own(Small):
    """A plain nn.Module of a user's file, with the names that discriminators ask for."""

    taps: ClassVar = {"encoder": "enter", "middle": "enter"}


def write_own(folder: Path) -> None:
    torch.manual_seed(0)
    network = OwnNet("tests.families:Own", {"classes": 11}, (1, 8, 8), 10, 10)
    save_denoiser(Denoiser(network, EDM(), "eps"), folder)


def write_flux(name: str, folder: Path) -> None:
    """Write FLUX, whose networks know no size of their own, at 16x16 pixels and not at 1024."""
    PIPELINES[name](folder)
    (folder / "distill.json").write_text('{"resolution": 16}')


TEACHERS: dict[str, Callable[[Path], None]] = {
    "unet": lambda folder: save_denoiser(tiny_denoiser(null=10, num_class_embeds=11), folder),
    **{name: partial(write_network, name) for name in ("edm", "edm_cond", "adm", "edm2")},
    **{name: write for name, write in PIPELINES.items() if name != "pixart_alpha_1024"},  # of 128x128 latents: slow
    **{name: partial(write_flux, name) for name in ("flux", "flux_schnell")},
    "own": write_own,
}
"""The writers of teachers' folders, by the name of the teacher."""


def thousand(work: Path) -> Path:
    """Return DiT's data: the images of tiny recipes with labels among a thousand, the last one included."""
    if not (folder := work / "thousand").exists():
        shutil.copytree(materialise("tiny:captioned", work), folder)
        lines = (folder / "metadata.jsonl").read_text().splitlines()
        rows = [json.loads(line) | {"label": 999 - number} for number, line in enumerate(lines)]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(name: str, objective: Any, teacher: Path, work: Path, real: bool = False, **changes: Any) -> dict[str, Any]:
    """Return the recipe of four updates of the tiny teacher `name`, on prompts, labels or nothing.

    With `real` its data are images with these. Everything that it needs besides the teacher is made in `work`.
    """
    size = {"resolution": 32 if name.startswith("sana") else 16}
    data: dict[str, Any] = {"name": "prompts", "path": "tiny:prompts/prompts.txt"}
    if name in UNPROMPTED:
        data = {"name": "images", "path": "tiny:labelled", **UNPROMPTED[name]}
        if name == "dit":
            data["path"] = str(thousand(work))
    elif real:
        data = {"name": "images", "path": "tiny:captioned", "prompt_column": "text", **size}
    entry: dict[str, Any] = {"t": 1.0, "scale": 1.0} if name.startswith(FLOWS) else {"nsr": 2.5}
    if name not in UNPROMPTED and not name.startswith(FLOWS):
        entry = {"t": 625}
    return materialise(
        {
            "name": name,
            "teacher": str(teacher),
            "objective": objective,
            "data": data,
            "cache": str(work / "cache"),
            "images": 16,
            "batch_size": 4,
            "entry": entry,
            "generator": {"lr": 1e-3},
            "fake": {"lr": 1e-3},
            "ema": {"half_life": 8},
            "log_every": 4,
            "samples_every": 16,
            "checkpoint_every": 8,
            **changes,
        },
        work,
    )


def fine_tuning(name: str, start: Path, work: Path, **changes: Any) -> dict[str, Any]:
    """The recipe of two updates of the tiny teacher `name`, on real images with its conditions."""
    kept = ("name", "data", "cache", "images", "batch_size", "ema", "log_every", "samples_every", "checkpoint_every")
    full = recipe(name, "sid", start, work, real=True, images=8, checkpoint_every=4, **SAMPLED)
    common = {key: full[key] for key in (*kept, "sampler")}
    return {**common, "trains": "teacher", "start": str(start), "optimizer": {"lr": 1e-3}, **changes}
