"""The hook that evaluates the average while it trains, and keeps the best weights."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.errors import UserError
from distill.metrics import Protocol
from trainers.checkpoints.checkpoint import AVERAGE, save_tensors, unfrozen_state
from trainers.checkpoints.formats import read_best
from trainers.engine.sampler import make_image_sampler
from trainers.engine.session import Session
from trainers.engine.sharding import gather_to_main
from trainers.evaluation import NotMeasured, evaluate, fit_protocol
from trainers.hooks.hook import Hook
from trainers.hooks.trackers import log_numbers
from trainers.io.atomic import atomic_folder
from trainers.io.console import plain, tolerate_disk_errors
from trainers.io.images import free_decoder
from trainers.io.jsonl import append
from trainers.recipe.run import Evaluation


class Evaluate(Hook):
    """A hook that evaluates the averaged network.

    Each evaluation writes a line of metrics.jsonl. best/ holds the averaged weights with the smallest Frechet distance
    so far.
    """

    def __init__(self, folder: Path, settings: Evaluation) -> None:
        self.folder, self.settings, self.every = folder, settings, settings.every
        self.protocol: Protocol | None = None

    def __call__(self, session: Session) -> None:
        if self.protocol is None:
            self.protocol = fit_protocol(session.source, self.settings)
        samples, seed, shape = self.settings.samples, session.run.seed, session.source.shape
        sampler = make_image_sampler(session.sampler, session.model)
        at = f"the evaluation at {session.state.images:,} images is"
        try:
            report = evaluate(sampler, session.dataset, self.protocol, samples, seed, session.accelerator, shape)
        except NotMeasured as error:  # on all ranks alike: samples that are not finite, of weights that are
            plain(stderr=True, quiet=not session.accelerator.is_main_process).print(f"{at} not done: {error}")
            return
        finally:
            free_decoder(session.model)
        # Collective where weights are sharded, hence on all ranks although the main process alone writes.
        weights = gather_to_main(unfrozen_state(session.model, session.state.ema.frozen_names))
        if session.accelerator.is_main_process:
            record = {"images": session.state.images, **report, "halves": self.protocol.halves}
            numbers = {f"evaluation/{key}": value for key, value in report.items() if isinstance(value, float)}
            log_numbers(session.accelerator, numbers, session.state.images)
            with tolerate_disk_errors(at):
                self._write(session, weights, record)

    def _write(self, session: Session, weights: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Write the line of an evaluation, and best/ if the distance is the smallest so far."""
        append(self.folder / "metrics.jsonl", record)
        best = self.folder / "best" / "metrics.json"
        if record["frechet"] < smallest_distance(best):
            with atomic_folder(best.parent) as staging:
                save_tensors(weights, staging / AVERAGE)
                changes = {"changes": session.state.changes} if session.state.changes else {}
                facts = {**record, "teacher": session.teacher_hash, **changes}
                (staging / best.name).write_text(json.dumps(facts) + "\n")


def smallest_distance(file: Path) -> float:
    """Return the Frechet distance in best/metrics.json, or infinity if there is none, as in a damaged file."""
    with suppress(OSError, UserError):
        return float(read_best(file.parent)["frechet"])
    return math.inf
