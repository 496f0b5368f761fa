"""Tiny generators of every kind of network, and strangers: processes that run cards' snippets without our packages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.conditions import Condition
from distill.denoiser import Denoiser
from distill.export import CardFacts
from distill.generator import Generator
from distill.networks.network import Network
from distill.paths import EDM
from distill.paths import Path as NoisePath
from distill.prediction import Kind
from distill.teachers import EDM2Net, EDMNet, build_unet

ROOT = Path(__file__).resolve().parents[1]
OURS = ("distill", "trainers", "launch")
TOLERANCE = 1e-4
UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "dropout": 0.3,  # must be off in an export
}
SMALL = {"img_resolution": 8, "img_channels": 3, "channel_mult": [1, 2], "num_blocks": 1}
DDPMPP = SMALL | {"model_type": "SongUNet", "model_channels": 8, "attn_resolutions": [4], "label_dim": 3}
NCSNPP = SMALL | {
    "model_type": "SongUNet",
    "model_channels": 8,
    "attn_resolutions": [],
    "augment_dim": 9,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
ADM = SMALL | {"model_channels": 32, "attn_resolutions": [], "label_dim": 10, "augment_dim": 9}
EDM2 = SMALL | {"img_channels": 4, "model_channels": 8, "attn_resolutions": [4], "channels_per_head": 8, "label_dim": 5}
FACTS = CardFacts(
    name="Tiny generator",
    objective={"name": "sid", "alpha": 1.0, "times": {"name": "uniform", "range": (0.1, 0.9)}},
    teacher="teachers/tiny",
    teacher_sha256="0123456789abcdef" * 4,
    images=60_000,
    average="ema of the recipe",
    metrics={
        "protocol": "pca48(digits, 1797 real)",
        "samples": 4000,
        "student": {"frechet": 1.23456789, "label_agreement": 0.875},
    },
    versions={"torch": torch.__version__},
    recipe="name: tiny\nobjective: {name: sid}\n",
)


class Prompted(Network):
    """A network with a mapping of conditions, as text-to-image models have."""

    shape = (2, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.prompt, self.pooled = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(5, 2), nn.Linear(6, 2)

    def example(self, count: int) -> Condition:
        draw = torch.Generator().manual_seed(2)
        embeddings = {
            "prompt": torch.randn(count, 4, 5, generator=draw),
            "pooled": torch.randn(count, 6, generator=draw),
        }
        return Condition({**embeddings, "mask": torch.tensor([[1, 1, 1, 0]] * count)})

    def forward(self, x: Tensor, time: Tensor, cond: Condition) -> Tensor:
        words = (self.prompt(cond["prompt"]) * cond["mask"][..., None]).mean(1) + self.pooled(cond["pooled"])
        made: Tensor = self.conv(x) + words[..., None, None] * time[:, None, None, None] / 250
        return made


def make(
    path: NoisePath, kind: Kind, t: float, scale: float | None = None, classes: int = 0, **network: Any
) -> Generator:
    """A UNet2DModel's generator."""
    channels, latents = network.pop("channels", 3), network.pop("latents", False)
    config = {"in_channels": channels, "out_channels": channels, "num_class_embeds": classes or None}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        unet = moved(build_unet({**UNET, **config, **network}))
    return Generator(Denoiser(unet, path, kind, latents=latents), t, scale)


def make_edm(settings: dict[str, Any], t: float = 2.5, latents: bool = False) -> Generator:
    """EDM's or EDM2's."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = EDM2Net(**settings) if "channels_per_head" in settings else EDMNet(**settings)
        for name, parameter in network.named_parameters():
            if name.endswith("gain"):  # zero in a fresh network
                nn.init.constant_(parameter, 0.7)
        return Generator(Denoiser(moved(network), EDM(), "edm", latents=latents), t)


def make_prompted() -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Generator(Denoiser(Prompted(), EDM(), "edm"), 2.5)


def moved(network: Any) -> Any:
    """Every weight random, so that no zero-initialised layer hides a difference."""
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return network


def normal(generator: Generator, seed: int = 0) -> Tensor:
    """Noise for 8 samples."""
    return torch.randn(8, *generator.denoiser.network.shape, generator=torch.Generator().manual_seed(seed))


def samples(generator: Generator, noise: Tensor) -> Tensor:
    """The generator's, labels going round the classes; images are clamped to [-1, 1]."""
    classes = generator.denoiser.network.classes
    labels = torch.arange(len(noise)) % classes if classes else None
    with torch.no_grad():
        x = generator.eval()(noise, labels)
    return x if generator.denoiser.latents else x.clamp(-1, 1)


def snippet(folder: Path) -> str:
    """The only Python in the card."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    return code


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


STRANGER = """
import json, os, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(name)
BLOCKED = json.loads(sys.argv[1])
sys.meta_path.insert(0, Block())
for name in BLOCKED:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} can be imported")
import numpy
def seed():
    numpy.random.seed(0)
    if "torch" not in BLOCKED:
        import torch
        torch.manual_seed(0)
found = {}
for case, (folder, code) in json.load(open("cases.json")).items():
    os.chdir(os.path.dirname(folder))
    names = {"seed": seed}
    exec(code, names)
    drawn = names.get("images", names.get("latents"))
    found[case] = numpy.stack([numpy.asarray(one) for one in drawn])
numpy.savez(sys.argv[2], **found)
"""


def strangers(
    work: Path, cases: dict[str, tuple[Path, str]], blocked: tuple[str, ...], **more: str
) -> dict[str, Tensor]:
    """What snippets, run beside their folders, draw from seed 0 in one process that cannot import `blocked`."""
    assert ROOT not in work.parents
    seeded = {  # loading a network may draw its weights first
        case: (str(folder), re.sub(r"^(?=noise = |\w+ = pipe\()", "seed()\n", code, flags=re.MULTILINE))
        for case, (folder, code) in cases.items()
    }
    (work / "cases.json").write_text(json.dumps(seeded))
    (work / "stranger.py").write_text(STRANGER)
    environment = {"HOME": str(work), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], **more}
    isolated = [] if "PYTHONPATH" in more else ["-I"]
    command = [sys.executable, *isolated, "stranger.py", json.dumps(blocked), str(work / "found.npz")]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {case: torch.from_numpy(drawn) for case, drawn in np.load(work / "found.npz").items()}
