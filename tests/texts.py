"""A tiny teacher of prompts with stand-ins for its encoders, and the `distill` command that knows it.

`python -m tests.texts ARGUMENTS` is `distill ARGUMENTS` where a folder that `write_text_teacher` wrote is a teacher.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.networks.network import Network
from distill.paths import EDM
from distill.teachers import DESCRIPTION, load_denoiser
from trainers.data import encode

MARK = "text.json"
ROW = 3 * 4 * 4 + 3  # bytes of an embedding


class Words:
    """Embeds a prompt as numbers of its hash: `prompt` [N, 3, 4] float32 and `mask` bool [N, 3].

    Every prompt that it encodes is a line of `log`, after the process.
    """

    def __init__(self, log: Path, pause: float = 0.0, name: str = "words") -> None:
        self.log, self.pause, self.identity = log, pause, name
        self.device, self.loaded = torch.device("cpu"), False

    def encode(self, prompts: list[str], /) -> dict[str, Tensor]:
        self.loaded = True
        time.sleep(self.pause)
        with self.log.open("a") as stream:
            stream.writelines(f"{os.getpid()} {item}\n" for item in prompts)
        prompt = torch.stack([embedding(item) for item in prompts])
        mask = torch.tensor([[True, len(item) > 3, len(item) > 6] for item in prompts])
        return {"prompt": prompt, "mask": mask}

    def encode_null(self) -> dict[str, Tensor]:
        """Return zeros, which no prompt gives, not even an empty one."""
        return {name: value * 0 for name, value in self.encode([""]).items()} | {"mask": torch.ones(1, 3).bool()}

    def free(self) -> None:
        self.loaded = False


def embedding(prompt: str) -> Tensor:
    """Return the embedding [3, 4] of a prompt, in [-1, 1]."""
    numbers = hashlib.sha256(prompt.encode()).digest()[:12]
    return torch.tensor(list(numbers)).float().reshape(3, 4) / 127.5 - 1


class Halves:
    """Latents [N, 2, H/2, W/2] of images: the mean of red and of green over 2x2 pixels, with a standard deviation."""

    identity = "halves"

    def __init__(self, log: Path, std: float = 0.1) -> None:
        self.log, self.std, self.loaded = log, std, False

    def encode(self, images: Tensor, /) -> tuple[Tensor, Tensor]:
        self.loaded = True
        with self.log.open("a") as stream:
            stream.writelines(f"{os.getpid()} image\n" for _ in images)
        mean = nn.functional.avg_pool2d(images[:, :2], 2)
        return mean, torch.full_like(mean, self.std)

    def decode(self, latents: Tensor, /, graph: bool = False) -> Tensor:
        """Return images whose blue is 0."""
        self.loaded = True
        return nn.functional.interpolate(nn.functional.pad(latents, (0, 0, 0, 0, 0, 1)), scale_factor=2)

    def image_shape(self, shape: tuple[int, ...], /) -> tuple[int, ...]:
        return 3, *(2 * side for side in shape[1:])

    def free(self) -> None:
        self.loaded = False


class TextNet(Network):
    """A network that sees the mean of the masked words, and the time."""

    def __init__(self, shape: tuple[int, ...], text_encoder: Any, autoencoder: Halves | None = None) -> None:
        super().__init__()
        self.shape, self.text_encoder, self.autoencoder = shape, text_encoder, autoencoder
        self.conditions = {"prompt": (3, 4), "mask": (3,)}
        self.taps = {"middle": "middle", "encoder": "middle"}
        self.first, self.words, self.time = nn.Conv2d(shape[0], 8, 3, padding=1), nn.Linear(4, 8), nn.Linear(1, 8)
        self.middle, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, shape[0], 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        assert cond["mask"].dtype == torch.bool
        mask = cond["mask"][..., None]
        words = (cond["prompt"] * mask).sum(1) / mask.sum(1)
        shift = self.words(words) + self.time(time[:, None] / 1000)
        hidden = torch.tanh(self.first(x) + shift[:, :, None, None])
        return self.last(torch.tanh(self.middle(hidden)))  # type: ignore[no-any-return]

    def example(self, count: int) -> Condition:
        made = super().example(count)
        return Condition(made | {"mask": made["mask"].bool()})


def write_text_teacher(folder: Path, log: Path, **settings: Any) -> Path:
    """Write a teacher of prompts to `folder`.

    Of the `settings`, `pause` is how long its encoder takes for a call, `latents` says that it has an autoencoder.
    """
    folder.mkdir(parents=True)
    (folder / DESCRIPTION).write_text("{}")
    (folder / MARK).write_text(json.dumps({"log": str(log), **settings}))
    return folder


def load_any(folder: str | Path, weights: bool = True) -> Denoiser:
    """Load a teacher as load_denoiser does, or from a folder that `write_text_teacher` wrote."""
    file = Path(folder) / MARK
    if not file.is_file():
        return load_denoiser(folder, weights)
    settings = json.loads(file.read_text())
    log, latents = Path(settings["log"]), settings.get("latents", False)
    torch.manual_seed(0)
    words = Words(log, settings.get("pause", 0.0))
    network = TextNet(tuple(settings.get("shape", (1, 8, 8))), words, Halves(log) if latents else None)
    return Denoiser(network, EDM(), "edm", latents=latents).eval()


def install(patch: pytest.MonkeyPatch, rows: int = 2) -> None:
    """Let the trainers load these teachers, and write tables of embeddings in shards of `rows`."""
    for module in ("trainers.runs.open", "trainers.runs.load", "trainers.runs.make_pairs"):
        patch.setattr(f"{module}.load_denoiser", load_any)
    patch.setattr(encode, "SHARD_BYTES", rows * ROW)


if __name__ == "__main__":
    from launch.main import main

    install(pytest.MonkeyPatch(), int(os.environ.get("ROWS", "2")))
    main()
