"""Build, resume, step until done, call hooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from accelerate import Accelerator
from filelock import FileLock
from rich.console import Console

from distill.denoiser import Denoiser
from distill.errors import UserError, one_line
from trainers.checkpoints import checkpoint, posthoc_ema
from trainers.checkpoints.saver import Saver
from trainers.engine.collectives import is_lost_process, on_main_process
from trainers.engine.session import Session
from trainers.engine.stopping import STOP, Stopped
from trainers.hooks import Checkpoints, Evaluate, Hook, Log, Samples, Snapshots
from trainers.hooks.log import NotFinite
from trainers.hooks.trackers import start_trackers
from trainers.io import jsonl
from trainers.io.atomic import atomic_file, recover, remove_staging_files
from trainers.io.console import plain
from trainers.io.lock import LOCK, take
from trainers.recipe.run import EXPERIMENTS, Run, TeacherRun
from trainers.recipe.strict_yaml import build as build_config
from trainers.recipe.strict_yaml import dump, load_yaml, to_yaml
from trainers.runs.distillation import build_distillation
from trainers.runs.teacher import build_teacher, write_teacher

RUN_FILE = "run.yaml"
STOPPED = "stopped.json"  # there while a run that was told to stop waits to be resumed


def build(run: Run | TeacherRun, accelerator: Accelerator, fresh: bool = True) -> Session:
    """Load data and teacher, build players and state; not `fresh`, a checkpoint is still to be restored.

    Raises UserError before anything trains.
    """
    run.check_world(accelerator.num_processes)
    if isinstance(run, Run):
        return build_distillation(run, accelerator, fresh)
    return build_teacher(run, accelerator)


def fit(run: Run | TeacherRun, folder: Path, accelerator: Accelerator, resume: bool = False) -> Session:
    """Train `run` in `folder` to its last image, from the newest valid checkpoint with `resume`; collective.

    Raises Stopped, the state saved, when the process is told to stop.
    """
    folder_lock = FileLock(folder / LOCK, blocking=False)
    on_main_process(accelerator, partial(take, folder_lock))
    try:
        return _fit(build(run, accelerator, fresh=not resume), folder, resume)
    finally:
        folder_lock.release()


def _fit(session: Session, folder: Path, resume: bool) -> Session:
    run, accelerator = cast(Run | TeacherRun, session.run), session.accelerator
    console = plain(stderr=True, quiet=not accelerator.is_main_process)
    if resume:
        _resume(session, folder, console)
    on_main_process(accelerator, partial(_begin, run, folder))
    start_trackers(run, folder, accelerator, console)
    log, saver = Log(folder, run.log_every, console), Saver(folder / "checkpoints", run.keep, accelerator)
    # Checkpoints come last: what they hold is the state after everything else of the same image count.
    seen = [log, Evaluate(folder, run.evaluation), Samples(folder, run.samples_every)]
    hooks = [*seen, Snapshots(folder, run.power_ema), Checkpoints(saver, run.checkpoint_every)]
    log.start(session)
    alone = False
    try:
        with STOP.held(accelerator):
            _train_and_save(session, hooks, saver, folder, resume)
    except RuntimeError as error:
        alone = is_lost_process(error)
        raise
    finally:
        log.stop()
        if not alone:  # else there is nobody to agree with on a save or an end
            saver.close()
            accelerator.end_training()
    return session


def _train_and_save(session: Session, hooks: Sequence[Hook], saver: Saver, folder: Path, resume: bool) -> None:
    try:
        if resume:
            saver.resumed(session.state.images)
        else:
            saver.save_now(session)  # a run can be resumed from its first moment, and cannot train where it cannot save
        train(session, hooks)
        saver.save_now(session)
        if isinstance(session.run, TeacherRun) and session.accelerator.is_main_process:
            write_teacher(cast(Denoiser, session.product), folder)
    except NotFinite:
        saver.save_now(session)
        raise
    except Stopped as stopped:
        saver.save_now(session)
        if session.accelerator.is_main_process:
            note = {"images": session.state.images, "by": STOP.name}
            (folder / STOPPED).write_text(json.dumps(note) + "\n")
        at = f"{stopped} at {session.state.images:,} images, which are saved"
        raise Stopped(f"{at}: `distill resume {folder}` goes on") from None


def train(session: Session, hooks: Sequence[Hook]) -> None:
    """Step until the run's last image."""
    run, state = session.run, session.state
    _call([hook for hook in hooks if type(hook).__name__ in state.unfinished], session)
    while state.images < run.images:
        STOP.poll()
        before = state.images
        session.step()
        state.average(run.batch_size)
        _call([hook for hook in hooks if hook.due(before, state.images, run.images)], session)


def _call(hooks: Sequence[Hook], session: Session) -> None:
    """One after the other; those that a stop came before are noted in the state, for the resume."""
    for index, hook in enumerate(hooks):
        try:
            hook(session)
        except Stopped:
            session.state.unfinished = [type(one).__name__ for one in hooks[index:]]
            raise
    session.state.unfinished = []


def _resume(session: Session, folder: Path, console: Console) -> None:
    found, skipped = on_main_process(session.accelerator, partial(checkpoint.newest, folder / "checkpoints"))
    for line in skipped:
        console.print(line, style="yellow")
    try:
        checkpoint.restore(session, found)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"'{found}' does not fit the recipe: {one_line(error)}") from error
    state = session.state
    console.print(f"resumed '{folder}' at {state.images:,} images")
    on_main_process(session.accelerator, partial(_rewind, folder, state.images, state.unfinished))


def _rewind(folder: Path, images: int, unfinished: Sequence[str]) -> None:
    """Drop what comes after `images`, and what a kill left half written: the run makes it again."""
    jsonl.rewind(folder / "log.jsonl", images)
    jsonl.rewind(folder / "metrics.jsonl", images - (Evaluate.__name__ in unfinished))
    posthoc_ema.rewind(folder, images)
    for name in ("best", "teacher"):
        recover(folder / name)
    remove_staging_files(folder)


def _begin(run: Run | TeacherRun, folder: Path) -> None:
    """What the folder says of the run, now that it trains."""
    file = folder / RUN_FILE
    (folder / STOPPED).unlink(missing_ok=True)
    text = to_yaml(dump(run))
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with atomic_file(file) as staging:
            staging.write_text(text, encoding="utf-8")


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
