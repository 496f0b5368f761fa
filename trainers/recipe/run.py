"""Run, the frozen dataclass of a distillation, and what it shares with that of a teacher's training.

Their fields are the keys of a recipe.

The units are the same everywhere. Durations, half-lives and schedules are in images, which are samples of the global
batch. A loss is the sum over the elements of a sample, averaged over the global batch. Times are noise-to-signal
ratios.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from distill.annotations import LocalPath
from distill.augmentation import Augmentation
from distill.errors import UserError
from distill.generator import PRESETS
from distill.lora import Lora
from distill.metrics import FEATURES, FeatureSettings
from distill.objectives import OBJECTIVES, Objective
from distill.objectives.sim import DISTANCES, Distance
from distill.paths import PATHS, Path
from distill.perceptual import PERCEPTUALS, Perceptual
from distill.power_ema import PowerProfile
from distill.rewards import REWARDS, Reward
from distill.samplers import SAMPLERS, Heun, Sampler
from distill.times import TIMES, Times
from trainers.data import DATA, Data, Digits
from trainers.data.cache import DEFAULT_CACHE
from trainers.recipe.limits import not_negative, positive, require
from trainers.recipe.measures import Evaluation, Health
from trainers.recipe.strict_yaml import register_choices

register_choices(Objective, OBJECTIVES, "docs/objectives/README.md")
register_choices(Sampler, SAMPLERS, "docs/samplers.md")
register_choices(Distance, DISTANCES)
register_choices(Path, PATHS)
register_choices(Perceptual, PERCEPTUALS)
register_choices(Times, TIMES)
register_choices(Reward, REWARDS)
register_choices(Data, DATA)
register_choices(FeatureSettings, FEATURES)

MOST_FAKE_UPDATES = 5
"""The largest number of fake updates in a round under `fake_updates: auto`: that of DMD2."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer of one player.

    The names that end in 8bit are those of trainers.engine.adam8bit. The others are torch's fused optimizers, whose
    state is in float32.
    """

    name: Literal["adam", "adamw", "sgd", "adam8bit", "adamw8bit"] = "adam"  # the method; 8bit: with a smaller state
    lr: float = 1e-5  # the learning rate
    betas: tuple[float, float] = (0.0, 0.999)  # Adam's; as in SiD, SIM and Diff-Instruct, which train without momentum
    eps: float = 1e-8  # added to the denominator of Adam's steps
    weight_decay: float = 0.0  # that of the weights: apart from the gradient in adamw, and else in it
    warmup: int = 0  # images over which lr rises linearly from 0
    decay: Literal["none", "linear", "cosine"] = "none"  # the fall of lr, to 0 at the run's last image
    max_grad_element: float | None = None  # the size to which each element of the gradient is clamped; null: none

    def __post_init__(self) -> None:
        positive(self, "lr", "eps", "max_grad_element")
        not_negative(self, "weight_decay", "warmup")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas: must be at least 0 and below 1, got {list(self.betas)}")


@dataclass(frozen=True, kw_only=True)
class PlayerSettings(Optimizer):
    """The training of a copy of the teacher."""

    lora: Lora | None = None  # the adapters that train in place of the weights; null: the weights train
    # off: it trains in eval mode, as the network that it is used as. There is no dropout, and BatchNorm keeps the
    # teacher's statistics. DMD, DMD2 and RealUID train so. teacher: it trains in train mode, with the dropout of the
    # teacher's class, as in SiD and SiDA (0.05 to 0.25 in EDM's networks) and in Diff-Instruct. A number is the
    # probability of all its dropout layers, as SiD's 0.05 on AFHQ.
    dropout: Literal["off", "teacher"] | float = "off"
    force_normalization: bool = True  # whether EDM2's weights are normalised after each update (EDM2, eq. 66)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.dropout, float):
            require(self, "dropout", rule="above 0 and below 1, off or teacher", holds=lambda rate: 0 < rate < 1)


@dataclass(frozen=True, kw_only=True)
class FakeWarmup:
    """A warm-up of the fake that ends when the fake estimates the generator's samples about as well as the teacher."""

    images: int = 0  # the warm-up takes at least these
    # It ends when the fake's denoising error is at most this many times the teacher's in every half-decade of the
    # noise-to-signal ratio (unverified: no paper measures it).
    until: float = 1.1
    most: int = 100_000  # the images after which it ends with a warning; SiDA and Uni-Instruct wait for as many

    def __post_init__(self) -> None:
        not_negative(self, "images")
        positive(self, "until", "most")
        if self.images > self.most:
            raise UserError(f"images: must be at most `most`, {self.most}, got {self.images}")


@dataclass(frozen=True, kw_only=True)
class Average:
    """The moving average of the trained network, by half-life (SiD's rule, from EDM, arXiv:2206.00364, app. F.2)."""

    half_life: float = 500_000  # in images; 0 turns the average off
    ramp_up: float = 0.05  # the half-life is at most this fraction of the images seen; 0 turns the ramp off

    def __post_init__(self) -> None:
        not_negative(self, "half_life", "ramp_up")


@dataclass(frozen=True, kw_only=True)
class PowerEMA:
    """Further averages, by power functions (EDM2, arXiv:2312.02696, section 3).

    `distill ema` makes an average of any other width from their snapshots.
    """

    stds: tuple[float, ...] = (0.05, 0.10)  # the relative widths; these are EDM2's
    snapshot_every: int  # images; EDM2 takes 8,388,608 in a run of 2,147,483,648

    def __post_init__(self) -> None:
        positive(self, "snapshot_every")
        if not self.stds or len(set(self.stds)) < len(self.stds):
            raise UserError(f"stds: must be one or more different widths, got {list(self.stds)}")
        for std in self.stds:
            PowerProfile(std)


@dataclass(frozen=True, kw_only=True)
class GeneratorInput:
    """The input of the one-step generator to its denoiser: a time, and a scale of its unit normal noise.

    One of `nsr`, `t` and `preset` states the time. Without any of them `nsr` is 2.5: SiD's sigma_init, which is the
    middle of EDM's ramp.
    """

    nsr: float | None = None  # the time as a noise-to-signal ratio
    t: float | None = None  # the time on the teacher's path: a sigma, a step, or a flow time
    scale: float | None = None  # the factor on the noise; null: pure noise of the time
    preset: str | None = None  # a published time and scale, by a name in distill.generator.PRESETS

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
        positive(self, "nsr", "scale")

    def at(self, path: Path) -> tuple[float, float | None]:
        """Return (t, scale) on a path.

        Raises:
            UserError: The preset belongs to another kind of path.
        """
        if self.preset is not None:
            kind, t, scale = PRESETS[self.preset]
            if not isinstance(path, kind):
                raise UserError(
                    f"entry.preset: {self.preset!r} is t = {t:g} on {kind.__name__}, the teacher's path is {path!s:.80}"
                )
            return t, scale
        t = float(path.time(torch.tensor([self.nsr], dtype=torch.float64))) if self.t is None else self.t
        return t, self.scale


@dataclass(frozen=True, kw_only=True)
class OdePairs:
    """The ODE pairs of a run."""

    folder: LocalPath  # the folder that `distill pairs` wrote
    fraction: float = 1.0  # pairs of a batch for each of its samples; DMD on Stable Diffusion took 1/2

    def __post_init__(self) -> None:
        require(self, "fraction", rule="in (0, 1]", holds=lambda fraction: 0 < fraction <= 1)


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """The networks whose weights are sharded over the processes (FSDP2). The others are replicated (DDP).

    One process shards nothing, unless it offloads.
    """

    generator: bool = True  # whether the generator is sharded
    fake: bool = True  # whether the fake is sharded
    teacher: bool = True  # whether the teacher is sharded
    replicas: int = 1  # copies of every shard, such as one for each machine (HSDP)
    reshard_after_forward: bool = True  # false: blocks stay gathered for the backward; more memory, fewer messages
    offload: Literal["teacher", "all"] | None = None  # keeps the shards of these networks in host memory

    def __post_init__(self) -> None:
        positive(self, "replicas")
        if self.offload == "teacher" and not self.teacher:
            raise UserError("offload: only what is sharded is offloaded; set teacher: true")


@dataclass(frozen=True, kw_only=True)
class Compile:
    """The compilation of the networks for the rounds of training, and of the arithmetic around them (docs/speed.md)."""

    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"  # torch.compile's; the second: CUDA graphs
    blocks: bool = False  # whether networks are compiled block by block: less to compile where many blocks are alike


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The embeddings of prompts, by the text encoders of the teacher."""

    # Whether all prompts are encoded before training, into the cache. false: the text encoders stay in memory, and
    # encode the prompts of each batch beside the training of the one before.
    ahead: bool = True
    # The precision of the embeddings in the cache. Without `ahead` it is that of the text encoders.
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    trim: bool = False  # whether the cache leaves out padding tokens, where the teacher takes a mask
    device: str | None = None  # the device of the text encoders, such as cuda:1; null: that of the process

    def __post_init__(self) -> None:
        if self.device is not None:
            try:
                torch.device(self.device)
            except RuntimeError:
                raise UserError(f"device: must be a device of torch, such as cuda:1, got {self.device!r}") from None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The keys of every training run."""

    name: str  # the name of the run, and of its folder in runs/
    data: Data = Digits()  # the images, labels or prompts
    negative_prompt: str | None = None  # the null condition of a teacher of prompts; null: that of its pipeline
    cache: str = DEFAULT_CACHE  # the folder of embeddings and latents, which runs share
    embeddings: Embeddings = Embeddings()
    images: int  # the length of the run, in images
    batch_size: int  # samples of the global batch, over all processes and micro-batches
    micro_batches: int = 1  # parts of a process's batch, for gradient accumulation
    # Processes beside each process of the run that decode its real images ahead. 0: it decodes them itself. None start
    # where images are kept in memory, or are latents (docs/datasets.md).
    workers: int = 4
    # The precision of compute. Weights are in float64 for float64, and otherwise in float32.
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    compile: bool | Compile = False  # whether the rounds of training run compiled; true: with the settings of Compile
    # TF32 in the float32 convolutions and matrix products of a GPU: faster, with 10 bits of mantissa in place of 23.
    tf32: bool = False
    # The kernels of a GPU that give the same bits each time. Without them a resume goes on with other last digits.
    deterministic: bool = True
    gradient_checkpointing: bool = False  # blocks recompute their activations: less memory for one more forward
    seed: int = 0  # the seed of all random numbers of the run
    # EDM's, of what a teacher, or a fake and its discriminator, trains on. It changes no image that the generator sees.
    augmentation: Augmentation | None = None
    ema: Average = Average()
    power_ema: PowerEMA | None = None
    max_grad_norm: float | None = None  # larger gradients are scaled to this norm; null: none are
    max_skipped: int = 20  # non-finite updates in a row that end the run
    evaluation: Evaluation = Evaluation()
    sampler: Sampler = Heun()  # the method that samples the teacher, wherever a run does (docs/samplers.md)
    log_every: int = 10_000  # images between two lines of the log
    samples_every: int = 100_000  # images between two pictures of samples
    checkpoint_every: int | None = None  # images; null: after each tenth of the run, and every 15 minutes
    keep: int = 3  # the number of newest checkpoints that stay
    tracking: tuple[Literal["wandb", "tensorboard", "trackio"], ...] = ()  # the services that get the log
    objects: tuple[str, ...] = ()  # the names of Python objects that the caller gave, which a resume needs again

    def __post_init__(self) -> None:
        positive(self, "images", "batch_size", "micro_batches", "max_skipped", "log_every", "samples_every")
        positive(self, "checkpoint_every", "keep", "max_grad_norm")
        require(self, "workers", rule="from 0 to 64", holds=lambda workers: 0 <= workers <= 64)
        if self.batch_size % self.micro_batches:
            raise UserError(f"micro_batches: {self.micro_batches} must divide batch_size {self.batch_size}")
        require(self, "seed", rule="at least 0 and below 2^31", holds=lambda seed: 0 <= seed < 2**31)
        if "/" in self.name or self.name in ("", ".", ".."):
            raise UserError(f"name: must be a plain folder name, got {self.name!r}")

    @property
    def compilation(self) -> Compile | None:
        """The settings with which the rounds of training are compiled. None where they are not."""
        return Compile() if self.compile is True else self.compile or None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of noise, images and samples."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def logs_after(self, images: int) -> bool:
        """Return whether the update that follows `images` images leads to a log point."""
        return (images + self.batch_size) // self.log_every > images // self.log_every

    def check_world(self, processes: int) -> None:
        """Raise UserError when the batch cannot be divided over `processes` and micro-batches."""
        if self.batch_size % (processes * self.micro_batches):
            raise UserError(
                f"batch_size: {self.batch_size} is not divisible by processes x micro_batches"
                f" = {processes} x {self.micro_batches}"
            )


@dataclass(frozen=True, kw_only=True)
class Run(Experiment):
    """The distillation of a teacher into a one-step generator."""

    trains: Literal["generator"] = "generator"  # the network that the run trains
    teacher: LocalPath  # a folder of `distill teacher` or `distill import`, or of a diffusers pipeline
    objective: Objective  # the method of distillation
    pairs: OdePairs | None = None  # ODE pairs, for objectives that regress on them
    entry: GeneratorInput = GeneratorInput()
    start: LocalPath | None = None  # the run folder, or best/ in it, whose generator is the start; null: the teacher
    generator: PlayerSettings = PlayerSettings()  # the training of the generator
    fake: PlayerSettings = PlayerSettings()  # the training of the fake
    # The fake's updates for each of the generator's. auto: 1 to 5, one more where the fake's denoising error lags
    # behind the teacher's, and one fewer where it is below it everywhere (trainers.engine.pace).
    fake_updates: int | Literal["auto"] = 1
    # The images for which the fake trains alone at the start, on the samples of a generator that stands still. A group
    # ends this by a measurement.
    fake_warmup: int | FakeWarmup = 0
    # The generator's update takes the samples of the last fake update: one forward of the generator less. all: every
    # fake update takes them, each with times and noise of its own.
    reuse_samples: bool | Literal["all"] = False
    # The backward through teacher and fake. one_by_one holds the activations of one at a time, for one more forward. It
    # saves memory where gradients pass both.
    backprop: Literal["joint", "one_by_one"] = "joint"
    sharding: Sharding | None = None
    health: Health = Health()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fake_updates != "auto":
            positive(self, "fake_updates")
        self._check_warmup()
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
        if self.objective.taps_teacher and self.sharding is not None and self.sharding.teacher:
            raise UserError(f"sharding.teacher: {objective} reads features inside the teacher; set it to false")
        if needs_pairs and self.pairs is None:
            raise UserError(f"pairs: {objective} regresses on ODE pairs; name a folder that `distill pairs` wrote")
        if not needs_pairs and self.pairs is not None:
            raise UserError(f"pairs: {objective} has no use for ODE pairs; leave them out")

    def _check_warmup(self) -> None:
        """Raise UserError when the fake cannot warm up, or its updates cannot follow its errors."""
        warmup, objective = self.fake_warmup, type(self.objective).__name__
        most, key = (warmup, "fake_warmup") if isinstance(warmup, int) else (warmup.most, "fake_warmup.most")
        if most < 0 or most >= self.images:
            raise UserError(f"{key}: must be at least 0 and below the run's images, {self.images}, got {most}")
        if not self.objective.trains_fake and (warmup != 0 or self.fake_updates == "auto"):
            raise UserError(
                f"{'fake_warmup' if warmup != 0 else 'fake_updates'}: {objective} trains no fake; leave it out"
            )

    @property
    def most_fake_updates(self) -> int:
        """The largest number of fake updates in a round."""
        return MOST_FAKE_UPDATES if self.fake_updates == "auto" else self.fake_updates

    @property
    def pairs_per_batch(self) -> int:
        """The number of ODE pairs of a global batch, rounded down."""
        # 1e-9, since a fraction such as 0.29 times 100 is a little below 29.
        return 0 if self.pairs is None else int(self.pairs.fraction * self.batch_size + 1e-9)

    def check_world(self, processes: int) -> None:
        """Raise UserError when batch, pairs or shards cannot be divided over `processes`."""
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
class DataAlone:
    """The data of a command that trains nothing."""

    data: Data
