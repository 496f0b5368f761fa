"""The pace of a distillation: the warm-up of the fake, and how often the fake trains for each update of the generator.

Both follow the fake's denoising error relative to the teacher's, on the generator's samples at the times of the
generator's loss. The errors are summed over a window of rounds. The sums of all processes decide at its end, and the
host waits for the device there alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.errors import UserError
from trainers.engine.meter import BINS, Meter
from trainers.io.console import plain
from trainers.recipe.run import MOST_FAKE_UPDATES, FakeWarmup, Run

WINDOW = 2048  # samples of a window, at least
ERRORS = "fake_error", "teacher_error"  # the names under which an objective notes them
LOW, HIGH = 1.0, 1.1  # the ratios of the errors between which the number of fake updates stays
SHARE = 0.02  # of the samples of a window that a bin must hold to change the number of fake updates


class Pace:
    """The decisions about the pace of a run, with the sums behind the next one.

    Args:
        run: The recipe.
        meter: The meter of the log.

    Attributes:
        waits: Whether the fake warms up, for which the generator waits.
        level: The number of fake updates a round under `fake_updates: auto`.
        samples: The number of samples in the window so far, of all processes.
        errors: The sums of this process in the window.
    """

    def __init__(self, run: Run, meter: Meter) -> None:
        self.run, self.meter = run, meter
        self.waits, self.level, self.samples, self.errors = run.fake_warmup != 0, 1, 0, Meter()

    @property
    def updates(self) -> int:
        """The number of fake updates of this round."""
        return self.level if self.run.fake_updates == "auto" else self.run.fake_updates

    @property
    def compares(self) -> bool:
        """Whether this is a round of a warm-up in which fake and teacher are compared."""
        return self.waits and isinstance(self.run.fake_warmup, FakeWarmup)

    def note(self, name: str, values: Tensor, nsr: Tensor | None = None) -> None:
        """Note a diagnostic for the log, as `Meter.note`, and add up the errors of fake and teacher."""
        self.meter.note(name, values, nsr)
        if name in ERRORS and nsr is not None and (self.compares or self.run.fake_updates == "auto"):
            self.errors.add(name, values, nsr)

    def end_round(self, images: int, asked: bool, accelerator: Accelerator) -> None:
        """Count a round, and decide where a window ends. Collective.

        Args:
            images: The number of images after the round.
            asked: Whether the objective has been asked for its generator loss in the round.
            accelerator: Ranks and device.

        Raises:
            UserError: The objective does not compare fake and teacher.
        """
        warmup, auto = self.run.fake_warmup, self.run.fake_updates == "auto"
        if auto:
            self.meter.add("fake/updates_a_round", torch.full((), float(self.level), device=accelerator.device))
        if isinstance(warmup, int):
            self.waits = images < warmup
        if not asked or not (self.compares or auto):
            return
        if lacking := [name for name in ERRORS if name not in self.errors.totals]:
            key, objective = "fake_warmup" if self.waits else "fake_updates", type(self.run.objective).__name__
            raise UserError(f"{key}: {objective} notes no {lacking[0]}, by which it would be decided; give a number")
        self.samples += self.run.batch_size
        last = isinstance(warmup, FakeWarmup) and self.waits and images >= warmup.most
        if self.samples < WINDOW and not last:
            return
        fake, teacher = (self.errors.rows(accelerator)[name].sum(0) for name in ERRORS)
        self.samples = 0
        self.errors.reset()
        if isinstance(warmup, FakeWarmup) and self.waits:
            worst, ratio = max(ratios(fake, teacher).items(), key=lambda one: one[1])
            good = images >= warmup.images and ratio <= warmup.until
            self.waits = not (good or last)
            if not self.waits:
                advice = "; lower fake.lr, or move objective.fake_times or fake_weight towards this noise"
                plain(stderr=True, quiet=not accelerator.is_main_process).print(
                    f"fake_warmup: ended at {images:,} images: the fake's error is {ratio:.3g} times the teacher's at"
                    f" {worst}{', and no more elsewhere' if good else advice}"
                )
        else:
            self.level = next_level(self.level, fake, teacher)

    def state(self) -> dict[str, Any]:
        """Return all that a checkpoint holds beside the sums."""
        return {"waits": self.waits, "level": self.level, "samples": self.samples}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.waits, self.level, self.samples = state["waits"], state["level"], state["samples"]


def pace_of(run: Run, meter: Meter) -> Pace | None:
    """Return the pace of a run, or None where nothing of it is decided while the run trains."""
    return Pace(run, meter) if run.fake_warmup != 0 or run.fake_updates == "auto" else None


def ratios(fake: Tensor, teacher: Tensor, share: float = 0.0) -> dict[str, float]:
    """Return the ratios of the fake's error to the teacher's in the bins of the noise-to-signal ratio.

    A ratio that is not a number counts as infinite.

    Args:
        fake: Sums and counts [6, 2] of the fake's errors.
        teacher: Those of the teacher's.
        share: The smallest share of the samples that a bin must hold. A bin without samples is left out.
    """
    least = max(1.0, share * float(fake[:, 1].sum()))
    quotients = (fake[:, 0] / teacher[:, 0]).nan_to_num(torch.inf, torch.inf).tolist()
    return {name: q for name, q, count in zip(BINS, quotients, fake[:, 1].tolist(), strict=True) if count >= least}


def next_level(level: int, fake: Tensor, teacher: Tensor) -> int:
    """Return the number of fake updates a round after a window, by the sums and counts [6, 2] of the errors in it.

    It stays where an error is not finite.
    """
    overall = float(fake[:, 0].sum() / teacher[:, 0].sum())
    highest = max([*ratios(fake, teacher, SHARE).values(), overall])
    if HIGH < highest < torch.inf:
        return min(level + 1, MOST_FAKE_UPDATES)
    return max(level - 1, 1) if highest < LOW else level
