"""The contract of an objective, and the denoising loss of the fake that all objectives share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from distill.compilation import fused
from distill.conditions import Condition
from distill.denoiser import Denoise, Denoiser, GuidableDenoiser
from distill.errors import UserError
from distill.loss_weights import Weight, denoising_weight
from distill.paths import DiscreteVP, Flow, Path, match
from distill.random import Random
from distill.times import LogNormal, Times, UniformSteps


def batch_mean(values: Tensor) -> Tensor:
    """Return the mean [...] over the samples of `values` [B, ...]."""
    return values.mean(0)


def ignore_note(name: str, values: Tensor, nsr: Tensor | None = None) -> None:
    """Ignore a diagnostic. This is the `note` of Denoisers where nothing is logged."""


@dataclass(frozen=True)
class Denoisers:
    """The networks that an objective sees, with the services of the trainer.

    Attributes:
        path: The path on which teacher and fake estimate x0.
        teacher: The frozen teacher.
        fake: The fake denoiser. While the fake trains, this is the wrapper that communicates between processes, which
            can only be called. Where the objective builds a Critic around the fake, the call takes `want` as well.
        frozen: Further frozen networks, by the names that `load_frozen` and `further_teachers` give them.
        memory: The tensors of `new_memory`.
        images: The number of samples that the generator has trained on.
        mean: A function from values [B, ...] to their mean [...] over the samples of all processes, without a graph.
            Objectives whose samples depend on each other use it.
        note: A function (name, values [B], nsr) that logs a diagnostic. Where the noise-to-signal ratio `nsr` [B] is
            given, the log has bins of it.
    """

    path: Path
    teacher: GuidableDenoiser
    fake: Callable[..., Any]
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    images: int = 0
    mean: Callable[[Tensor], Tensor] = batch_mean
    note: Callable[..., None] = ignore_note


@dataclass(frozen=True)
class Pairs:
    """ODE pairs: noises, with the samples at the other end of the teacher's probability flow.

    Attributes:
        noise: Unit normal noise [P, C, *spatial].
        target: The samples [P, C, *spatial] that the multi-step teacher makes from `noise` under `cond`.
        cond: The condition [P, ...].
        made: The samples [P, C, *spatial] that the generator makes from `noise` now, with its graph.
    """

    noise: Tensor
    target: Tensor
    cond: Condition = field(default_factory=Condition)
    made: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """The data of one micro-batch.

    Attributes:
        noise: The unit normal input [B, C, *spatial] of the generator.
        random: The random numbers of the samples. Diffusion noise comes from them, because `noise` is not independent
            of the generated sample.
        cond: The condition [B, ...].
        real: Real samples [B, C, *spatial], where the objective needs them. Images are in [-1, 1].
        pairs: ODE pairs, where the objective needs them.
        texts: The B prompts of the condition, as they are written, where the objective needs them.
        real_cond: The condition [B, ...] of the real samples, where it differs from `cond`.
    """

    noise: Tensor
    random: Random
    cond: Condition = field(default_factory=Condition)
    real: Tensor | None = None
    pairs: Pairs | None = None
    texts: Sequence[str] | None = None
    real_cond: Condition | None = None

    @property
    def cond_of_real(self) -> Condition:
        """The condition [B, ...] of the real samples."""
        return self.cond if self.real_cond is None else self.real_cond


class Estimates(NamedTuple):
    """The estimates of x0 by teacher and fake, at one diffusion of the generator's sample.

    Attributes:
        teacher: The teacher's estimate [B, ...].
        fake: The fake's estimate [B, ...].
        t: The times [B] of the diffusion.
        x_t: The diffused samples [B, ...].
        logits: The critic's logits [B, ...] at x_t, where they were asked for.
    """

    teacher: Tensor
    fake: Tensor
    t: Tensor
    x_t: Tensor
    logits: Tensor | None = None


def per_sample(x: Tensor) -> Tensor:
    """Return the sums [B] over the elements of each sample of `x` [B, ...].

    The losses of this package are such sums, and their coefficients are for sums.
    """
    return x.flatten(1).sum(1)


@fused
def l1_normaliser(x: Tensor, teacher: Tensor, floor: float = 1e-5) -> Tensor:
    """Return 1 / max(mean |x - teacher|, floor), the weight of each sample in SiD and DMD, without a graph.

    The sources are arXiv:2404.04057 (SiD) and arXiv:2311.18828, eq. 8 (DMD).

    Args:
        x: Generated samples [B, ...].
        teacher: The teacher's estimate of x0 [B, ...].
        floor: The smallest mean that is divided by. It bounds the weight where the teacher returns x.

    Returns:
        The weights [B].
    """
    return 1 / (x - teacher).detach().abs().flatten(1).mean(1).clamp(min=floor)


@fused
def squared_error(weight: Tensor, estimate: Tensor, x0: Tensor) -> Tensor:
    """Return weight |estimate - x0|^2, [B], for weights [B] and samples [B, ...]."""
    return weight * per_sample((estimate - x0) ** 2)


@fused
def _distances(x: Tensor, teacher: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean |teacher - fake|, mean |fake - x|^2 and mean |teacher - x|^2, [B] each, for samples [B, ...]."""
    gap, fake_error, teacher_error = (teacher - fake).abs(), (fake - x) ** 2, (teacher - x) ** 2
    return gap.flatten(1).mean(1), fake_error.flatten(1).mean(1), teacher_error.flatten(1).mean(1)


def denoising_loss(
    denoise: Denoise,
    path: Path,
    x0: Tensor,
    cond: Condition,
    times: Times,
    weight: Weight | None,
    random: Random,
    sigma_data: float = 0.5,
    uncertainty: bool = False,
) -> Tensor:
    """Return the denoising loss weight(t) |D(x_t) - x0|^2.

    With the learned uncertainty u of D and N elements of a sample, the loss is weight(t) e^-u |D(x_t) - x0|^2 + N u
    (EDM2, arXiv:2312.02696, eq. 21). Its minimum in u is the log of the mean weighted square.

    Args:
        denoise: The denoiser D that trains.
        path: The path of the diffusion.
        x0: Clean samples [B, ...].
        cond: The condition [B, ...].
        times: The law of the times t.
        weight: The weight by noise level (distill.loss_weights).
        random: The random numbers of the samples.
        sigma_data: The standard deviation of the data, for the weight.
        uncertainty: Whether the loss has u in it.

    Returns:
        The loss [B], summed over the elements of each sample.
    """
    x_t, t, _ = path.draw(x0, times, random)
    w = match(denoising_weight(weight, path.nsr(t), sigma_data), x0)
    if not uncertainty:
        return squared_error(w, denoise(x_t, t, cond), x0)
    u = cast(Callable[..., Tensor], denoise)(x_t, t, cond, "uncertainty")
    return squared_error(w * (-u).exp(), denoise(x_t, t, cond), x0) + x0[0].numel() * u


@torch.no_grad()
def certainty(nets: Denoisers, s: Estimates, cond: Condition) -> Tensor:
    """Return e^-u [B] for the uncertainty u that the fake has learned, at the time of estimates, without a graph."""
    return torch.exp(-nets.fake(s.x_t, s.t, cond, "uncertainty"))


def usual_times(path: Path) -> Times | None:
    """Return the law of times that papers have for teachers on a path, or None where EDM's is as usual as any."""
    if isinstance(path, DiscreteVP):
        steps = len(path.alphas_cumprod)
        return UniformSteps(round(0.02 * steps), round(0.98 * steps) - 1)
    return LogNormal(0.0, 1.0) if isinstance(path, Flow) else None


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One method of distillation, whose fields are its hyper-parameters.

    Its losses are named terms [B], weighted but not averaged. The trainer averages each term over the global batch. An
    objective sees the denoisers, the sample x and the batch. It never sees the generator, an optimizer or a rank, and
    it opens no file.

    Attributes:
        fake_times: The law of the times at which the fake trains.
        fake_weight: The weight of the fake's denoising loss by noise level. None for the teacher's own (`following`).
        differentiates_denoisers: Whether the generator's gradient passes through teacher and fake into x.
        trains_fake: Whether there is a fake.
        uses_samples: Whether the generator's loss uses x. Otherwise x is empty, [0, ...], and the loss uses ODE pairs.
        generator_reads_real: Whether the generator's loss reads `batch.real` too. False saves reading samples for it.
        uncertainty: Whether the losses are divided by e^u of the fake's learned uncertainty u. Some objectives make it
            a field.
    """

    fake_times: Times = LogNormal(-1.2, 1.2)
    fake_weight: Weight | None = None

    differentiates_denoisers = False
    trains_fake = True
    uses_samples = True
    generator_reads_real = True
    uncertainty = False

    @property
    def needs(self) -> frozenset[str]:
        """The optional fields of Batch that the losses use: "real", "pairs", "texts"."""
        return frozenset()

    @property
    def taps_teacher(self) -> bool:
        """Whether the losses read features inside the teacher. A sharded teacher gives none."""
        return False

    def check(self, teacher: Denoiser) -> None:
        """Raise UserError, with the name of the field, when the objective cannot be used with this teacher."""
        for setting in fields(self):
            if isinstance(law := getattr(self, setting.name), Times):
                law.check(teacher.path)
        if self.uncertainty and not teacher.network.predicts_uncertainty:
            raise UserError(
                "uncertainty: needs a teacher whose network predicts the uncertainty of its loss, as EDM2's do,"
                f" {teacher.network.display_name} does not; set it to false"
            )

    def following(self, teacher: Denoiser) -> Self:
        """Return this objective with laws and weights that fit the teacher in place of those that were left out.

        The defaults of the classes are the papers' for EDM's networks, and such a teacher keeps them. For all others
        the fake trains at the generator's times, and its weight is the plain squared error of what the network
        predicts. The times are those of the papers for the teacher's path:

        - a grid of steps: uniform over all but the first and the last fiftieth (DMD, SiD-LSG)
        - a flow: logit-normal (SD3, arXiv:2403.03206)
        - any other: those of EDM's networks

        Args:
            teacher: The teacher.
        """
        defaults = {one.name: one.default for one in fields(self) if one.init}

        def left_out(name: str) -> bool:
            # A field that holds its class's own object was left out: a law that was given is another object.
            return getattr(self, name, None) is defaults.get(name)

        changes: dict[str, Any] = {}
        if self.fake_weight is None:
            changes["fake_weight"] = "eps" if teacher.prediction == "score" else teacher.prediction
        times = getattr(self, "times", None)
        if teacher.prediction != "edm" and isinstance(times, Times):
            if left_out("times"):
                changes["times"] = times = usual_times(teacher.path) or times
            if left_out("fake_times"):
                changes["fake_times"] = times
        return replace(self, **changes)

    def build_fake(self, fake: Denoiser) -> nn.Module:
        """Return the network to train as the fake: the copy `fake` of the teacher, or a Critic around this copy."""
        return fake

    def further_teachers(self) -> dict[str, str]:
        """Return the folders of further frozen teachers, by their names in `nets.frozen`."""
        return {}

    def check_further_teacher(self, name: str, other: Denoiser, teacher: Denoiser) -> None:
        """Raise UserError when the further teacher called `name` does not fit the teacher."""

    def load_frozen(self) -> dict[str, nn.Module]:
        """Return further frozen networks, by their names in `nets.frozen`."""
        return {}

    def target(self, teacher: GuidableDenoiser, frozen: Mapping[str, Any] | None = None) -> GuidableDenoiser:
        """Return the denoiser whose samples the generator should make: the teacher, guided where its estimate is.

        Args:
            teacher: The teacher.
            frozen: The further networks of `nets.frozen`. None where they are not loaded, and do not guide.
        """
        return teacher

    def new_memory(self) -> dict[str, Tensor]:
        """Return the initial values of small tensors that live as long as the run, by their names in `nets.memory`.

        The losses change these tensors in place. Their values must be equal on all ranks.
        """
        return {}

    def trains_generator(self, images: int) -> bool:
        """Return whether the generator trains in the round after `images` images, or the fake alone."""
        return True

    def generator_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of the generator.

        Args:
            nets: The networks and the services of the trainer.
            x: The generator's samples [B, ...] of `batch`, with its graph. The gradient in x trains the generator.
            batch: The micro-batch.

        Returns:
            The terms [B] by their names in the log. A term of `batch.pairs` is [P].
        """
        raise NotImplementedError

    def fake_loss(self, nets: Denoisers, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the loss terms of the fake, which by default is trained to denoise the generator's samples.

        Args:
            nets: The networks and the services of the trainer.
            x: The generator's samples [B, ...] of `batch`, without a graph.
            batch: The micro-batch.

        Returns:
            The terms [B] by their names in the log.
        """
        times, weight, random = self.fake_times, self.fake_weight, batch.random.stream("fake")
        sigma_data = nets.teacher.sigma_data
        data, cond, u = x.detach(), batch.cond, self.uncertainty
        return {"denoising": denoising_loss(nets.fake, nets.path, data, cond, times, weight, random, sigma_data, u)}

    def estimate(self, nets: Denoisers, x: Tensor, batch: Batch, times: Times, logits: bool = False) -> Estimates:
        """Diffuse x once, and return the estimates of x0 by teacher and fake.

        The gap between the estimates and both denoising errors are noted for the log.

        Args:
            nets: The networks and the services of the trainer.
            x: The generator's samples [B, ...] of `batch`.
            batch: The micro-batch.
            times: The law of the times of the diffusion.
            logits: Whether the fake's pass also returns the critic's logits at x_t.

        Returns:
            The estimates, with a graph into x where `differentiates_denoisers` is true.
        """
        with torch.set_grad_enabled(self.differentiates_denoisers and torch.is_grad_enabled()):
            x_t, t, _ = nets.path.draw(x, times, batch.random.stream("generator"))
            teacher = nets.teacher(x_t, t, batch.cond)
            if logits:
                fake, critic_logits = nets.fake(x_t, t, batch.cond, "both")
            else:
                fake, critic_logits = nets.fake(x_t, t, batch.cond), None
        with torch.no_grad():
            nsr = nets.path.nsr(t)
            distances = _distances(x, teacher, fake)
            for name, distance in zip(("gap", "fake_error", "teacher_error"), distances, strict=True):
                nets.note(name, distance, nsr)
        return Estimates(teacher, fake, t, x_t, critic_logits)
