"""Run and TeacherRun: the frozen dataclasses that are one experiment. Their fields are the keys of a recipe.

Durations, half-lives and schedules are in images (samples of the global batch), losses are per-sample sums averaged
over the global batch, times are noise-to-signal ratios.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from distill.annotations import LocalPath
from distill.errors import UserError
from distill.generator import PRESETS
from distill.lora import Lora
from distill.loss_weights import Weight
from distill.objectives import OBJECTIVES, Objective
from distill.objectives.sim import DISTANCES, Distance
from distill.paths import EDM, PATHS, Path
from distill.perceptual import PERCEPTUALS, Perceptual
from distill.power_ema import PowerProfile
from distill.prediction import Kind
from distill.rewards import REWARDS, Reward
from distill.times import TIMES, LogNormal, Times
from trainers.data import DATA, Data, Digits
from trainers.data.cache import DEFAULT_CACHE
from trainers.recipe.strict_yaml import register_choices

register_choices(Objective, OBJECTIVES)
register_choices(Distance, DISTANCES)
register_choices(Path, PATHS)
register_choices(Perceptual, PERCEPTUALS)
register_choices(Times, TIMES)
register_choices(Reward, REWARDS)
register_choices(Data, DATA)


def _positive(owner: object, *names: str) -> None:
    for name in names:
        if not getattr(owner, name) > 0:
            raise UserError(f"{name}: must be positive, got {getattr(owner, name)}")


def _not_negative(owner: object, *names: str) -> None:
    for name in names:
        if not getattr(owner, name) >= 0:
            raise UserError(f"{name}: must be at least 0, got {getattr(owner, name)}")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How one player moves, by torch's fused implementation with float32 state; 8bit: see trainers.engine.adam8bit."""

    name: Literal["adam", "adamw", "sgd", "adam8bit", "adamw8bit"] = "adam"
    lr: float = 1e-5
    betas: tuple[float, float] = (0.0, 0.999)  # SiD, SIM and Diff-Instruct train without momentum
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = 0  # images over which lr rises linearly
    decay: Literal["none", "linear", "cosine"] = "none"  # from lr to 0 at the run's last image

    def __post_init__(self) -> None:
        _positive(self, "lr", "eps")
        _not_negative(self, "weight_decay", "warmup")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas: must be at least 0 and below 1, got {list(self.betas)}")


@dataclass(frozen=True, kw_only=True)
class PlayerSettings(Optimizer):
    """How a copy of the teacher trains: whole, or low-rank adapters on it alone."""

    lora: Lora | None = None


@dataclass(frozen=True, kw_only=True)
class Average:
    """Exponential moving average of the trained network, by half-life (SiD's rule; EDM, arXiv:2206.00364, app. F)."""

    half_life: float = 500_000  # images; 0 turns the average off
    ramp_up: float = 0.05  # the half-life is at most this fraction of the images seen; 0: no ramp

    def __post_init__(self) -> None:
        _not_negative(self, "half_life", "ramp_up")


@dataclass(frozen=True, kw_only=True)
class PowerEMA:
    """Further averages, by power functions of relative widths `stds`: `distill ema` makes any other width of their
    snapshots (EDM2, arXiv:2312.02696, section 3)."""

    stds: tuple[float, ...] = (0.05, 0.10)  # EDM2's
    snapshot_every: int  # images; EDM2's is 8,388,608 of 2,147,483,648

    def __post_init__(self) -> None:
        _positive(self, "snapshot_every")
        if not self.stds or len(set(self.stds)) < len(self.stds):
            raise UserError(f"stds: must be one or more different widths, got {list(self.stds)}")
        for std in self.stds:
            PowerProfile(std)


@dataclass(frozen=True, kw_only=True)
class GeneratorInput:
    """How the one-step generator asks its denoiser: the time it is conditioned on, and `scale`, the factor on its unit
    normal input (null: pure noise of that time). The time is a noise-to-signal ratio `nsr`, or `t` on the teacher's
    path (sigma, a step, a flow time); or a `preset` is both."""

    nsr: float | None = None  # 2.5 where no time is given: SiD's sigma_init, the middle of EDM's ramp
    t: float | None = None
    scale: float | None = None
    preset: str | None = None  # of distill.generator.PRESETS

    def __post_init__(self) -> None:
        given = [name for name in ("nsr", "t", "preset") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"one of nsr, t and preset says the time, got {' and '.join(given)}")
        if not given:
            object.__setattr__(self, "nsr", 2.5)
        if self.preset is not None and self.preset not in PRESETS:
            raise UserError(f"preset: must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if self.preset is not None and self.scale is not None:
            raise UserError(f"scale: the preset {self.preset!r} has its own; give t and scale instead")
        _positive(self, *(name for name in ("nsr", "scale") if getattr(self, name) is not None))

    def at(self, path: Path) -> tuple[float, float | None]:
        """(t, scale) on `path`; raises UserError where the preset is of another kind of path."""
        if self.preset is not None:
            kind, t, scale = PRESETS[self.preset]
            if not isinstance(path, kind):
                raise UserError(
                    f"entry.preset: {self.preset!r} is t = {t:g} on {kind.__name__}, the teacher's path is {path!s:.80}"
                )
            return t, scale
        if self.t is not None:
            return self.t, self.scale
        return float(path.time(torch.tensor([self.nsr], dtype=torch.float64))), self.scale


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Frechet distance and label agreement under a named protocol, each `every` images; 0: only when asked."""

    every: int = 0
    samples: int = 10_000
    components: int = 48  # principal components of the real images that are the features
    classifier: LocalPath | None = None  # folder that `distill classifier` wrote: its features and labels instead

    def __post_init__(self) -> None:
        _not_negative(self, "every")
        _positive(self, "components")
        if self.samples < 2:
            raise UserError(f"samples: must be at least 2, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class OdePairs:
    """What `distill pairs` wrote to `folder`; each batch takes `fraction` as many pairs as it has samples."""

    folder: LocalPath
    fraction: float = 1.0  # DMD on Stable Diffusion took 1/2

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"fraction: must be in (0, 1], got {self.fraction}")


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Which networks' weights are shared out over the processes (FSDP2), where there are several or they are offloaded;
    the others are whole in each (DDP)."""

    generator: bool = True
    fake: bool = True
    teacher: bool = True
    replicas: int = 1  # of every shard, as one in each machine (HSDP)
    reshard_after_forward: bool = True  # false: a block stays gathered until its backward; more memory, less talk
    # What is held of the teacher, or of all that is sharded, is in host memory, on one process too.
    offload: Literal["teacher", "all"] | None = None

    def __post_init__(self) -> None:
        _positive(self, "replicas")
        if self.offload == "teacher" and not self.teacher:
            raise UserError("offload: only what is sharded is offloaded; set teacher: true")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What every training run has."""

    name: str
    data: Data = Digits()
    images: int  # length of the run
    batch_size: int  # global: over all processes and micro-batches
    micro_batches: int = 1  # gradient accumulation
    precision: Literal["float32", "bfloat16", "float64"] = "float32"  # of compute; weights: float32, or float64 with it
    gradient_checkpointing: bool = False  # blocks recompute their activations: less memory, one more forward
    seed: int = 0
    ema: Average = Average()
    power_ema: PowerEMA | None = None
    max_grad_norm: float | None = None
    max_skipped: int = 20  # non-finite updates in a row after which the run stops
    evaluation: Evaluation = Evaluation()
    log_every: int = 10_000
    samples_every: int = 100_000
    checkpoint_every: int = 100_000
    keep: int = 3  # newest checkpoints kept
    tracking: tuple[Literal["wandb", "tensorboard"], ...] = ()
    objects: tuple[str, ...] = ()  # what the caller gave as Python objects, which a resume needs again

    def __post_init__(self) -> None:
        _positive(self, "images", "batch_size", "micro_batches", "max_skipped", "log_every", "samples_every")
        _positive(self, "checkpoint_every", "keep")
        if self.max_grad_norm is not None:
            _positive(self, "max_grad_norm")
        if self.batch_size % self.micro_batches:
            raise UserError(f"micro_batches: {self.micro_batches} must divide batch_size {self.batch_size}")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed: must be at least 0 and below 2^31, got {self.seed}")
        if "/" in self.name or self.name in ("", ".", ".."):
            raise UserError(f"name: must be a plain folder name, got {self.name!r}")

    @property
    def dtype(self) -> torch.dtype:
        """Of noise, images and samples."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def logs_after(self, images: int) -> bool:
        """Whether the update after `images` images leads to a log point."""
        return (images + self.batch_size) // self.log_every > images // self.log_every

    def check_world(self, processes: int) -> None:
        """Raise UserError when the batch does not divide over `processes` and micro-batches."""
        if self.batch_size % (processes * self.micro_batches):
            raise UserError(
                f"batch_size: {self.batch_size} is not divisible by processes x micro_batches"
                f" = {processes} x {self.micro_batches}"
            )


@dataclass(frozen=True, kw_only=True)
class Run(Experiment):
    """Distil `teacher` (a folder written by `distill teacher`) into a one-step generator under `objective`."""

    trains: Literal["generator"] = "generator"
    teacher: LocalPath
    objective: Objective
    negative_prompt: str | None = None  # the null condition of a teacher of prompts; null: its pipeline's own
    cache: str = DEFAULT_CACHE  # of embeddings of prompts and latents of images; runs share it
    pairs: OdePairs | None = None
    entry: GeneratorInput = GeneratorInput()
    # a run folder, or its best/, whose averaged generator this one begins as; null: the teacher
    start: LocalPath | None = None
    generator: PlayerSettings = PlayerSettings()
    fake: PlayerSettings = PlayerSettings()
    fake_updates: int = 1  # per generator update
    reuse_samples: bool = False  # the generator's update reuses the samples of the last fake update (10/11 of the cost)
    # One denoiser's activations at a time instead of both, for one more forward; matters where gradients pass both.
    backprop: Literal["joint", "one_by_one"] = "joint"
    sharding: Sharding | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "fake_updates")
        for name, player in (("generator", self.generator), ("fake", self.fake)):
            sharded = self.sharding is not None and getattr(self.sharding, name)
            if sharded and player.name == "sgd":
                raise UserError(f"{name}.name: sgd has no sharded form; use adam, or sharding.{name}: false")
            if self.sharding is not None and self.sharding.teacher and player.lora is not None and not sharded:
                raise UserError(f"sharding.{name}: its adapters are on the teacher's own weights, which are sharded")
        if self.reuse_samples and self.micro_batches > 1:
            raise UserError("reuse_samples: needs micro_batches = 1, since it keeps the graph of the whole batch")
        objective, needs_pairs = type(self.objective).__name__, "pairs" in self.objective.needs
        if self.reuse_samples and not self.objective.trains_fake:
            raise UserError(f"reuse_samples: {objective} trains no fake to share samples with")
        if needs_pairs and self.pairs is None:
            raise UserError(f"pairs: {objective} regresses on ODE pairs; name a folder that `distill pairs` wrote")
        if not needs_pairs and self.pairs is not None:
            raise UserError(f"pairs: {objective} has no use for ODE pairs; leave them out")

    @property
    def pairs_per_batch(self) -> int:
        """ODE pairs in a global batch, rounded down."""
        return 0 if self.pairs is None else int(self.pairs.fraction * self.batch_size + 1e-9)

    def check_world(self, processes: int) -> None:
        super().check_world(processes)
        if self.sharding is not None and processes % self.sharding.replicas:
            raise UserError(f"sharding.replicas: {self.sharding.replicas} must divide the {processes} processes")
        parts, pairs = processes * self.micro_batches, self.pairs_per_batch
        if self.pairs is not None and (pairs % parts or not pairs):
            raise UserError(
                f"pairs.fraction: {self.pairs.fraction} of batch_size {self.batch_size} is {pairs} pairs, which are"
                f" not divisible by processes x micro_batches = {processes} x {self.micro_batches}"
            )


@dataclass(frozen=True, kw_only=True)
class TeacherRun(Experiment):
    """Train a UNet2DModel teacher on `data` by denoising."""

    trains: Literal["teacher"] = "teacher"
    network: dict[str, Any]  # UNet2DModel's config; shape and classes come from data
    path: Path = EDM()
    prediction: Kind = "edm"
    sigma_data: float = 0.5
    times: Times = LogNormal()
    weight: Weight = "edm"
    label_dropout: float = 0.0  # probability that a label becomes the null condition, which guidance needs
    optimizer: Optimizer = Optimizer(lr=1e-3, betas=(0.9, 0.99))

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "sigma_data")
        if not 0 <= self.label_dropout < 1:
            raise UserError(f"label_dropout: must be at least 0 and below 1, got {self.label_dropout}")
        self.times.check(self.path)
        reserved = {"sample_size", "in_channels", "out_channels", "num_class_embeds"} & set(self.network)
        if reserved:
            raise UserError(f"network: {', '.join(sorted(reserved))} follow from data and must not be given")


EXPERIMENTS: dict[str, type[Run] | type[TeacherRun]] = {"generator": Run, "teacher": TeacherRun}
