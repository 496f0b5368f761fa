"""The valid files, one of every kind that the commands read, from which hostile ones are made."""

from __future__ import annotations

import json
import pickle
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from distill.denoiser import Denoiser
from distill.metrics import Classifier, Moments, Reference
from distill.paths import EDM
from distill.samplers import measure_statistics
from distill.teachers import EDMNet, load_denoiser, save_denoiser
from distill.tiny.pipelines import build
from distill.user_code import trusting
from tests import published
from tests.exports import DDPMPP, moved
from tests.inception import write_stand_in
from tests.tiny import fit_run, recipe, teacher_recipe, tiny_denoiser
from trainers import load
from trainers.data import Digits
from trainers.evaluation.references import Stored, write_reference
from trainers.recipe.words import open_given
from trainers.runs.make_pairs import PairSettings, make_pairs
from trainers.runs.posthoc import make_average

PICTURES, CLASSES = 12, 3
PROMPTS = ["a red cat", "a dog", "a blue car", "two trees"]
CORNERS = """
from dataclasses import dataclass

from distill.metrics import Extracted, FeatureSettings


class Corners:
    name, labels, logits = "fid", None, False

    def to(self, device):
        return self

    def extract(self, images, labelled=False):
        return Extracted(images[:, :2, ::7, ::7].flatten(1))


@dataclass(frozen=True)
class CornerFeatures(FeatureSettings):
    def load(self):
        return Corners()
"""  # features of the user's own, of which a distance takes no time, under the name of those of Inception


def write_valid(folder: Path) -> None:
    """Write all valid files."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    for write in (pictures, teachers, runs, recipes, prompted, exports, measured, statistics):
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            write(folder)


def picture(number: int, size: int = 8) -> Image.Image:
    """Return a picture of RGB noise."""
    draw = np.random.default_rng(number)
    return Image.fromarray(draw.integers(0, 255, (size, size, 3), dtype=np.uint8))


def png(number: int, size: int = 8) -> bytes:
    """Return the PNG of a picture."""
    stream = BytesIO()
    picture(number, size).save(stream, "PNG")
    return stream.getvalue()


def pictures(folder: Path) -> None:
    """Write class folders, EDM's zip archive, captions and tables of pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number in range(PICTURES):
        file = folder / "pictures" / "abc"[number % CLASSES] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    with zipfile.ZipFile(folder / "edm.zip", "w") as archive:
        names = [f"0000{number % 2}/img{number:08d}.png" for number in range(PICTURES)]
        for number, name in enumerate(names):
            archive.writestr(name, png(number))
        labels = [[name, number % CLASSES] for number, name in enumerate(names)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    captions = folder / "captions"
    captions.mkdir()
    for number in range(PICTURES):
        (captions / f"{number}.png").write_bytes(png(number, 16))
    rows = [{"file_name": f"{number}.png", "text": PROMPTS[number % len(PROMPTS)]} for number in range(PICTURES)]
    (captions / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    columns: dict[str, Any] = {"image": [{"bytes": png(number), "path": None} for number in range(PICTURES)]}
    columns |= {"label": [number % CLASSES for number in range(PICTURES)], "text": [row["text"] for row in rows]}
    pq.write_table(pa.table(columns), folder / "table.parquet")


def teachers(folder: Path) -> None:
    """Write a teacher of EDM's network and its pickle, a UNet2DModel, pairs of both, and a classifier."""
    torch.manual_seed(0)
    network = moved(EDMNet(**DDPMPP))
    save_denoiser(Denoiser(network, EDM(), "edm"), folder / "edm")
    save_denoiser(tiny_denoiser(), folder / "unet")
    published.write(published.checkpoint(network), folder / "network.pkl")
    settings = PairSettings(evaluations=3)
    list(make_pairs(str(folder / "unet"), Digits().load(), folder / "pairs", 12, settings, 4, torch.device("cpu")))
    Classifier((3, 8, 8), CLASSES, width=8, data="pictures").save(folder / "classifier")


def short(folder: Path, teacher: str, **changes: Any) -> dict[str, Any]:
    """Return the recipe of a distillation of 16 images."""
    data = {"name": "images", "path": str(folder / "pictures"), "resolution": 8}
    evaluation = {"every": 8, "samples": 8, "components": 2}
    common = {"data": data, "images": 16, "checkpoint_every": 8, "evaluation": evaluation, "log_every": 8}
    return recipe(folder / teacher, **{**common, **changes})


def runs(folder: Path) -> None:
    """Write the folders of a distillation with snapshots and a post-hoc average, and of a teacher's training."""
    average = {"stds": [0.1, 0.2], "snapshot_every": 8}
    fit_run(short(folder, "edm", power_ema=average), folder / "run")
    make_average(folder / "run", 0.15)
    teacher = short(folder, "edm")
    for key in ("teacher", "objective", "generator", "fake"):
        del teacher[key]
    fit_run(teacher | {"network": teacher_recipe()["network"]}, folder / "teacher_run")


def recipes(folder: Path) -> None:
    """Write recipes as files: a distillation, a training of a teacher and of a classifier, and one with pairs."""
    teacher = yaml.safe_load((folder / "teacher_run/run.yaml").read_text())
    written = {
        "student": short(folder, "edm", evaluation={"samples": 8, "components": 2}),
        "teacher": {**teacher, "evaluation": {"samples": 8, "components": 2}},
        "dmd": recipe(folder / "unet", objective="dmd", pairs={"folder": str(folder / "pairs")}, images=16),
        "sd": short(folder, "sd", data={"name": "prompts", "path": str(folder / "prompts.txt")}, evaluation={}),
        "classifier": {"trains": "classifier", "name": "c", "data": teacher["data"], "images": 16, "batch_size": 8},
    }
    captions = {"name": "images", "path": str(folder / "captions"), "resolution": 16, "prompt_column": "text"}
    written["sd_images"] = {**written["sd"], "objective": "dmd2", "data": captions}
    for name, settings in written.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))


def prompted(folder: Path) -> None:
    """Write a pipeline of Stable Diffusion, and a cache with the embeddings and latents of its data."""
    from launch.commands.cache import cache

    build("sd15").save_pretrained(folder / "sd")
    for name in ("sd", "sd_images"):
        cache(str(folder / f"{name}.yaml"), [f"cache={folder / 'cache'}"])


def exports(folder: Path) -> None:
    """Write exports of the distillation."""
    trained = load(folder / "run")
    for name in ("diffusers", "safetensors"):
        trained.export(folder / f"export_{name}", name)
    for lock in folder.rglob("*.lock"):
        lock.unlink()


def measured(folder: Path) -> None:
    """Write what a run is compared with: statistics of pictures in three forms, and weights of Inception in two."""
    (folder / "corners.py").write_text(CORNERS)
    evaluation = {"samples": 8, "every": 8, "features": f"{folder / 'corners.py'}:CornerFeatures"}
    (folder / "measured.yaml").write_text(yaml.safe_dump(short(folder, "edm", evaluation=evaluation)))
    with trusting(True):
        fit_run(short(folder, "edm", evaluation=evaluation), folder / "measured")
    vectors = np.random.default_rng(0).standard_normal((PICTURES, 8))
    moments = {"mu": vectors.mean(axis=0), "sigma": np.cov(vectors, rowvar=False)}
    np.savez(folder / "real.npz", **moments)
    (folder / "real.pkl").write_bytes(pickle.dumps({"fid": moments, "fd_dinov2": moments}))
    images, features = open_given(str(folder / "pictures"), 8), torch.from_numpy(vectors).float()
    reference = Reference(images.name, Moments.of(features), PICTURES, features)
    write_reference(Stored(reference, "fid", (8, 8), images.pixels_hash()), folder / "real.safetensors")
    state = torch.load(write_stand_in(folder / "inception.pth"), weights_only=True)
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    save_file(half, folder / "inception.safetensors")


def statistics(folder: Path) -> None:
    """Write the statistics of a teacher."""
    teacher, noise = load_denoiser(folder / "edm"), torch.randn(4, 3, 8, 8)
    measure_statistics(teacher, noise, torch.arange(4) % CLASSES, points=5).save(folder / "statistics.safetensors")
