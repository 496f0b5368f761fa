"""Build, resume, step until done, call hooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from accelerate import Accelerator
from rich.console import Console

from distill.denoiser import Denoiser
from distill.errors import UserError
from trainers import checkpoint, records, snapshots
from trainers.config import build as build_config
from trainers.config import dump, load_yaml, to_yaml
from trainers.console import plain
from trainers.distillation import build_distillation
from trainers.hooks import Checkpoints, Evaluate, Hook, Log, Samples, Snapshots
from trainers.hooks.log import NotFinite
from trainers.run import EXPERIMENTS, Run, TeacherRun
from trainers.saving import Saver
from trainers.session import Session
from trainers.teacher import build_teacher, write_teacher
from trainers.tracking import start_trackers

RUN_FILE = "run.yaml"


def build(run: Run | TeacherRun, accelerator: Accelerator, fresh: bool = True) -> Session:
    """Load data and teacher, build players and state; not `fresh`, a checkpoint is still to be restored.

    Raises UserError before anything trains.
    """
    run.check_world(accelerator.num_processes)
    if isinstance(run, Run):
        return build_distillation(run, accelerator, fresh)
    return build_teacher(run, accelerator)


def fit(run: Run | TeacherRun, folder: Path, accelerator: Accelerator, resume: bool = False) -> Session:
    """Train `run` in `folder` to its last image, from the newest valid checkpoint with `resume`; collective."""
    console = plain(stderr=True, quiet=not accelerator.is_main_process)
    session = build(run, accelerator, fresh=not resume)
    if resume:
        _resume(session, folder, console)
    elif accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RUN_FILE).write_text(to_yaml(dump(run)), encoding="utf-8")
    accelerator.wait_for_everyone()
    start_trackers(run, folder, accelerator, console)
    log = Log(folder, run.log_every, console)
    saver = Saver(folder / "checkpoints", run.keep, accelerator)
    # Checkpoints come last: what they hold is the state after everything else of the same image count.
    seen = [log, Evaluate(folder, run.evaluation), Samples(folder, run.samples_every)]
    hooks = [*seen, Snapshots(folder, run.power_ema), Checkpoints(saver, run.checkpoint_every)]
    log.start(session)
    try:
        if resume:
            saver.saved = session.state.images
        else:
            saver.must(session)  # a run can be resumed from its first moment, and cannot train where it cannot save
        train(session, hooks)
        saver.must(session)
        if isinstance(run, TeacherRun) and accelerator.is_main_process:
            write_teacher(cast(Denoiser, session.product), folder)
    except NotFinite:
        saver.must(session)
        raise
    finally:
        saver.close()
        log.stop()
        accelerator.end_training()
    return session


def train(session: Session, hooks: Sequence[Hook]) -> None:
    """Step until the run's last image."""
    run, state = session.run, session.state
    while state.images < run.images:
        before = state.images
        session.step()
        state.average(run.batch_size)
        for hook in hooks:
            if hook.due(before, state.images, run.images):
                hook(session)


def _resume(session: Session, folder: Path, console: Console) -> None:
    found, skipped = checkpoint.newest(folder / "checkpoints")
    for line in skipped:
        console.print(line, style="yellow")
    checkpoint.restore(session, found)
    console.print(f"resumed '{folder}' at {session.state.images:,} images")
    if session.accelerator.is_main_process:
        for name in ("log.jsonl", "metrics.jsonl"):
            records.rewind(folder / name, session.state.images)
        snapshots.rewind(folder, session.state.images)
    session.accelerator.wait_for_everyone()


def load_run(folder: Path) -> Run | TeacherRun:
    """The experiment whose run.yaml is in `folder`."""
    file = folder / RUN_FILE
    if not file.is_file():
        raise UserError(f"'{folder}' is not a run folder: it has no {RUN_FILE}")
    return build_experiment(load_yaml(file), str(file))


def build_experiment(data: dict, where: str) -> Run | TeacherRun:
    """The experiment that `data` spells: its key `trains` says which, else what it names says it."""
    kind = data.get("trains", "generator" if {"objective", "teacher"} & set(data) else "teacher")
    if kind not in EXPERIMENTS:
        raise UserError(f"{where}: key 'trains' must be one of {', '.join(EXPERIMENTS)}, got {kind!r}")
    return build_config(EXPERIMENTS[kind], {**data, "trains": kind}, where)
