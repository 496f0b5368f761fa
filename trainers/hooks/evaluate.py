"""Evaluate while training, and keep the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.metrics import Protocol
from trainers.checkpoint import save_average, whole_average
from trainers.console import spared
from trainers.evaluation import evaluate, fit_protocol
from trainers.files import replaced
from trainers.hooks.hook import Hook
from trainers.pictures import let_go
from trainers.records import append
from trainers.run import Evaluation
from trainers.session import Session, viewer_of


class Evaluate(Hook):
    """One line a time in metrics.jsonl; best/ holds the averaged weights of the smallest distance so far."""

    def __init__(self, folder: Path, settings: Evaluation) -> None:
        self.folder, self.settings, self.every = folder, settings, settings.every
        self.protocol: Protocol | None = None

    def __call__(self, session: Session) -> None:
        if self.protocol is None:
            self.protocol = fit_protocol(session.source, self.settings)
        samples, seed, shape = self.settings.samples, session.run.seed, session.source.shape
        viewer = viewer_of(session.sampler, session.product)
        report = evaluate(viewer, session.dataset, self.protocol, samples, seed, session.accelerator, shape)
        let_go(session.product)
        weights = whole_average(session)
        if session.accelerator.is_main_process:
            record = {"images": session.state.images, **report, "halves": self.protocol.halves}
            session.accelerator.log(
                {f"evaluation/{k}": v for k, v in report.items() if isinstance(v, float)}, step=session.state.images
            )
            with spared(f"the evaluation at {session.state.images:,} images is"):
                self._write(session, weights, record)

    def _write(self, session: Session, weights: dict[str, Tensor], record: dict[str, Any]) -> None:
        append(self.folder / "metrics.jsonl", record)
        best = self.folder / "best" / "metrics.json"
        if not best.is_file() or record["frechet"] < json.loads(best.read_text())["frechet"]:
            with replaced(best.parent) as staging:
                save_average(weights, staging)
                (staging / best.name).write_text(json.dumps({**record, "teacher": session.teacher_hash}) + "\n")
