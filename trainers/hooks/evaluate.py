"""The hook that evaluates the average while it trains, and keeps the best weights."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from distill.denoiser import Denoiser
from distill.errors import UserError
from distill.metrics import Protocol, better
from distill.objectives import Denoisers
from trainers.checkpoints.checkpoint import AVERAGE, save_tensors, unfrozen_state
from trainers.checkpoints.formats import read_best
from trainers.data import Dataset
from trainers.data.encode import DatasetEncoder
from trainers.engine.collectives import on_main_process
from trainers.engine.sampler import make_image_sampler
from trainers.engine.session import Session
from trainers.engine.sharding import gather_to_main
from trainers.evaluation import NotMeasured, evaluate, evaluation_data, fit_protocol
from trainers.hooks.alarms import EVALUATION_RULES, Alarms
from trainers.hooks.hook import Hook
from trainers.hooks.trackers import log_numbers
from trainers.io.atomic import atomic_folder
from trainers.io.console import plain, tolerate_disk_errors
from trainers.io.images import denoiser_of, free_decoder
from trainers.io.jsonl import append, read
from trainers.recipe.measures import Evaluation
from trainers.recipe.run import Run

METRIC_LINES = "metrics.jsonl"


class Evaluate(Hook):
    """A hook that evaluates the averaged network.

    Each evaluation writes a line of metrics.jsonl, with the alarms that it raises. best/ holds the averaged weights
    with the best value of the metric that the recipe names. Where the recipe has `stop_when`, it ends the run.
    """

    def __init__(self, folder: Path, settings: Evaluation) -> None:
        self.folder, self.settings, self.every = folder, settings, settings.every
        self.protocol: Protocol | None = None
        self.dataset: Dataset | None = None
        self.alarms = Alarms(EVALUATION_RULES)

    def start(self, session: Session) -> None:
        """Read all that the evaluations need, so that nothing is missing later. Ranks divide the work.

        Networks wait on the CPU between evaluations. Principal components and a classifier are fitted when they are
        first used, which takes seconds.
        """
        if not self.every:
            return
        if session.accelerator.is_main_process:
            self.alarms = Alarms(EVALUATION_RULES, read(self.folder / METRIC_LINES))
            session.measured = self.alarms.lines[-1] if self.alarms.lines else {}
        self._end_if_exhausted(session)  # a run that has ended so ends again
        if self.settings.features is not None or self.settings.scores.named():
            self.protocol = self._fit(session).to("cpu")
        if self.settings.prompts is not None:
            run, teacher = cast(Run, session.run), cast(Denoisers, session.nets).teacher
            quiet = not session.accelerator.is_main_process
            encoder = DatasetEncoder.of(run, session.accelerator.device, quiet)
            self.dataset = evaluation_data(session.dataset, self.settings, cast(Denoiser, teacher), encoder)

    def _fit(self, session: Session) -> Protocol:
        """Return the protocol, on the device of the run."""
        shape, accelerator = denoiser_of(session.model).image_shape, session.accelerator
        quiet = not accelerator.is_main_process
        return fit_protocol(session.source, self.settings, session.run.cache, accelerator.device, shape, quiet)

    def __call__(self, session: Session) -> None:
        shape, accelerator = denoiser_of(session.model).image_shape, session.accelerator
        self.protocol = self._fit(session) if self.protocol is None else self.protocol.to(accelerator.device)
        sampler = make_image_sampler(session.sampler, session.model)
        at = f"the evaluation at {session.state.images:,} images is"
        try:
            report = evaluate(
                sampler,
                self.dataset or session.dataset,
                self.protocol,
                self.settings,
                session.run.seed,
                accelerator,
                shape,
            )
        except NotMeasured as error:  # on all ranks alike: samples that are not finite, of weights that are
            plain(stderr=True, quiet=not session.accelerator.is_main_process).print(f"{at} not done: {error}")
            return
        finally:
            free_decoder(session.model)
            self.protocol = self.protocol.to("cpu")
        # Collective where weights are sharded, hence on all ranks although the main process alone writes.
        weights = gather_to_main(unfrozen_state(session.model, session.state.ema.frozen_names))
        if session.accelerator.is_main_process:
            record = {"images": session.state.images, **report}
            if self.protocol.halves is not None:
                record["halves"] = self.protocol.halves
            numbers = {f"evaluation/{key}": value for key, value in report.items() if isinstance(value, float)}
            log_numbers(session.accelerator, numbers, session.state.images)
            values = "  ".join(f"{key.partition('/')[2]} {value:.4g}" for key, value in numbers.items())
            name, protocol = session.run.name, report["protocol"]
            plain(stderr=True).print(f"{name}: at {session.state.images:,} images {values}, by {protocol}")
            session.measured = record = self.alarms.judge(record)
            with tolerate_disk_errors(at):
                self._write(session, weights, record)
        self._end_if_exhausted(session)

    def _end_if_exhausted(self, session: Session) -> None:
        """End the run if the rule of the recipe says so. Collective: the main process reads the lines."""
        if self.settings.stop_when is not None:
            decide = partial(exhausted, self.alarms.lines, self.settings)
            session.ended = on_main_process(session.accelerator, decide) or session.ended

    def _write(self, session: Session, weights: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Write the line of an evaluation, and best/ if the metric is the best so far."""
        append(self.folder / METRIC_LINES, record)
        best, metric = self.folder / "best" / "metrics.json", self.settings.best
        if better(metric, record[metric], best_value(best, metric, record)):
            with atomic_folder(best.parent) as staging:
                save_tensors(weights, staging / AVERAGE)
                changes = {"changes": session.state.changes} if session.state.changes else {}
                facts = {**record, "teacher": session.teacher_hash, **changes}
                (staging / best.name).write_text(json.dumps(facts) + "\n")


def exhausted(lines: Sequence[Mapping[str, Any]], settings: Evaluation) -> str | None:
    """Return in words why a run ends by `stop_when`, or None while it goes on.

    Lines of another protocol or another number of samples than the last one do not count.

    Args:
        lines: The lines of metrics.jsonl until now.
        settings: The evaluation of the recipe.
    """
    name, rule = settings.stop_metric, settings.stop_when
    same = [line for line in lines if all(line.get(key) == lines[-1].get(key) for key in ("protocol", "samples"))]
    best: tuple[int, float] | None = None
    for line in same:
        if name in line and better(name, line[name], None if best is None else best[1]):
            best = line["images"], line[name]
    if rule is None or best is None or lines[-1]["images"] - best[0] < rule.patience:
        return None
    kept = "; best/ has it" if name == settings.best else ""
    since = f"since {name} {best[1]:.4g} at {best[0]:,} images{kept}"
    return f"evaluation.stop_when: no better value for {lines[-1]['images'] - best[0]:,} images, {since}"


def best_value(file: Path, metric: str, record: Mapping[str, Any]) -> float | None:
    """Return the value of a metric in best/metrics.json.

    It is None if there is none, as in a damaged file, or if it was measured under another protocol or of another number
    of samples than the record, since such numbers do not compare.
    """
    with suppress(OSError, UserError):
        found = read_best(file.parent)
        if all(found.get(key, record[key]) == record[key] for key in ("protocol", "samples")) and metric in found:
            return float(found[metric])
    return None
