"""The training loop of a run: resume, step, call hooks, save."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from filelock import FileLock
from rich.console import Console

from distill.errors import UserError, one_line
from trainers.checkpoints import checkpoint, posthoc_ema
from trainers.checkpoints.content import content_flaw
from trainers.checkpoints.saver import Saver
from trainers.data.digest import accepted_data, data_changes
from trainers.engine.collectives import is_lost_process, on_main_process
from trainers.engine.session import Session
from trainers.engine.step import advance
from trainers.engine.stopping import STOP, Stopped
from trainers.hooks import (
    Checkpoints,
    CompareSamples,
    Evaluate,
    FiniteCheck,
    Hook,
    Log,
    NotFinite,
    Samples,
    Snapshots,
    check_weights,
)
from trainers.hooks.evaluate import METRIC_LINES
from trainers.hooks.finite import ends_skipped
from trainers.hooks.health import LINES, REFERENCE
from trainers.hooks.hook import call_due, call_unfinished
from trainers.hooks.trackers import start_trackers
from trainers.io import jsonl
from trainers.io.atomic import atomic_file, recover, remove_staging_files
from trainers.io.console import plain, tolerate_disk_errors
from trainers.io.lock import LOCK, take_lock
from trainers.recipe.changes import accepted_changes, recipe_changes
from trainers.recipe.load import RUN_FILE
from trainers.recipe.run import Run
from trainers.recipe.strict_yaml import dump, to_yaml
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs.banner import banner
from trainers.runs.distillation import build_distillation
from trainers.runs.open import Opened
from trainers.runs.probe import probe_teacher
from trainers.runs.teacher import build_teacher

PARTS = 10  # checkpoints of a run at least, where the recipe does not say how often it saves
SECONDS = 15 * 60.0  # between two checkpoints at most, where the recipe does not say how often it saves
STOPPED = "stopped.json"  # in the run folder of a run that was told to stop, until it is resumed


def build_session(opened: Opened, accelerator: Accelerator) -> Session:
    """Build the session of a run: players, averages, batches. Collective."""
    opened.run.check_world(accelerator.num_processes)
    return (build_distillation if isinstance(opened.run, Run) else build_teacher)(opened, accelerator)


def fit(opened: Opened, folder: Path, accelerator: Accelerator, allow: Sequence[str] = ()) -> Session:
    """Train a run to its last image. Collective.

    Args:
        opened: The run. If it is not `fresh`, it continues from its newest valid checkpoint.
        folder: The run folder.
        accelerator: Ranks, device and collectives.
        allow: The keys whose change since the checkpoint the user accepts.

    Raises:
        Stopped: The process was told to stop. The state is saved.
        UserError: Another process trains in `folder`, a fresh run finds another there, or the checkpoint does not fit.
    """
    console = plain(stderr=True, quiet=not accelerator.is_main_process)
    session = None
    if not opened.fresh and on_main_process(accelerator, partial(looks_finished, folder, opened.run)):
        session = build_session(opened, accelerator)
        if load_finished(session, folder, allow):  # without the lock, whose file would change
            console.print(finished_line(folder, session.state.images, session.ended))
            return session
    with locked(folder, accelerator):
        session = session or build_session(opened, accelerator)
        run, state = session.run, session.state
        if opened.fresh:
            # Another start in this folder may have ended since the first look, which came before the data were opened.
            on_main_process(accelerator, partial(refuse_used, folder))
            for line in opened.told:
                console.print(line)
            probe_teacher(session)
            # An earlier start may have left something, though no update.
            on_main_process(accelerator, partial(rewind_folder, folder, 0, ()))
        else:
            resume_session(session, folder, console, allow)
        # One rank writes, and an error of the disk ends all ranks.
        on_main_process(accelerator, partial(write_recipe, session, folder))
        start_trackers(run, folder, accelerator, console, opened.fresh, state.changes)
        for line in banner(session, folder):
            console.print(line)
        log, saver = Log(folder, run.log_every, console), Saver(folder / "checkpoints", run.keep, accelerator)
        hooks = [log, *hooks_of(session, folder, saver, opened.objects.hooks)]
        with (
            closing_at_end(session, log, saver),
            STOP.deferred(accelerator),
            saving_at_ends(session, saver, folder, opened.fresh),
        ):
            if state.images >= run.images:  # an end that failed fails again, since nothing is trained
                FiniteCheck(run, hooks)(session)
            for hook in hooks[1:]:
                hook.start(session)
            log.start(session)  # last, since its clock starts
            # A stop came before these hooks, at the image count of the checkpoint.
            call_unfinished(session, hooks)
            while state.images < run.images and session.ended is None:
                STOP.poll()
                before = state.images
                advance(session)
                call_due(session, hooks, before)
            if session.ended is not None:
                console.print(f"ended at {state.images:,} images: {session.ended}")
        return session


@contextmanager
def locked(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of a run folder while the context is open. Collective.

    The main process creates the folder if needed and takes the lock for all ranks. The system releases the lock when
    this process ends, even by SIGKILL.

    Raises:
        UserError: Another process has the lock.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        on_main_process(accelerator, partial(check_places, folder))
        on_main_process(accelerator, partial(take_lock, lock))  # one lock for all ranks, and its error on all of them
        yield
    finally:
        lock.release()


def refuse_used(folder: Path) -> None:
    """Raise UserError when `folder` holds a run that has trained. A run without an update is no hindrance."""
    lines = [file for name in ("log.jsonl", METRIC_LINES) if (file := folder / name).is_file() and file.stat().st_size]
    saved = [one for one in checkpoint.folders(folder / "checkpoints") if int(one.name)]
    if lines or saved or (folder / "best").exists():
        raise UserError(
            f"'{folder}' holds a run already: `distill resume {folder}` continues it, --folder or name= starts another"
        )


def check_places(folder: Path) -> None:
    """Raise UserError when something of another kind is in the place of a file or a folder of a run.

    Reading a pipe, for example, would wait forever.
    """
    files = (LOCK, RUN_FILE, STOPPED, "log.jsonl", METRIC_LINES, LINES, REFERENCE, "wandb.json", "trackio.json")
    folders = ("checkpoints", "samples", "power_ema", "best", "teacher", "tensorboard", "wandb")
    for kind, names, is_kind in (("regular file", files, Path.is_file), ("folder", folders, Path.is_dir)):
        for place in (folder / name for name in names):
            if os.path.lexists(place) and not is_kind(place):
                raise UserError(f"'{place}' is no {kind}, and a run writes there; move it away")


def hooks_of(session: Session, folder: Path, saver: Saver, more: Sequence[Hook]) -> list[Hook]:
    """Return the hooks of a run without its log, in the order in which they are called.

    Checkpoints come last, so that they hold the state after all other hooks of the same image count.

    Args:
        session: The run at work.
        folder: The run folder.
        saver: The saver of its checkpoints.
        more: The hooks of the caller.
    """
    run = session.run
    every = run.checkpoint_every
    hooks = [
        Evaluate(folder, run.evaluation),
        *([CompareSamples(session, folder)] if isinstance(run, Run) else []),
        Samples(folder, run.samples_every),
        Snapshots(folder, run.power_ema),
        *more,
        Checkpoints(saver, max(1, run.images // PARTS), SECONDS) if every is None else Checkpoints(saver, every),
    ]
    return [FiniteCheck(run, hooks), *hooks]


@contextmanager
def closing_at_end(session: Session, log: Log, saver: Saver) -> Iterator[None]:
    """Close the progress bar, the workers, the saver and the trackers when the context ends. Collective."""
    lost = False
    try:
        yield
    except RuntimeError as error:
        lost = is_lost_process(error)
        raise
    finally:
        log.stop()
        session.batches.close()
        if not lost:  # these calls wait for the other ranks, and would wait forever for a lost one
            saver.close()
            # Not `accelerator.end_training`, which ends the process group too: the program may go on to evaluate.
            with tolerate_disk_errors("the last numbers of the trackers are", "log.jsonl has them"):
                for tracker in session.accelerator.trackers:
                    tracker.finish()


@contextmanager
def saving_at_ends(session: Session, saver: Saver, folder: Path, fresh: bool) -> Iterator[None]:
    """Save the state at the beginning of a fresh run, at the end, and where training ends early. Collective."""
    try:
        check_weights(session)
        if fresh:  # so that every run can be resumed, and one that cannot save does not begin to train
            saver.save_now(session)
        else:
            saver.resumed(session.state.images)
        yield
        saver.save_now(session)
        if session.accelerator.is_main_process:
            session.finish(session, folder)
    except NotFinite as error:
        check_weights(session)  # raises again where the weights are the reason: such a state is not saved
        saver.save_now(session)
        images = saver.good_images()
        if images is None or images == session.state.images:
            raise
        text = f"{error}; the newest checkpoint before these updates is at {images:,} images"
        raise NotFinite(text, error.already_printed) from None
    except Stopped as stopped:
        check_weights(session)
        saver.save_now(session)
        if session.accelerator.is_main_process:
            note = {"images": session.state.images, "by": STOP.name}
            with (
                tolerate_disk_errors(f"'{folder / STOPPED}' is", "the run is saved"),
                atomic_file(folder / STOPPED) as new,
            ):
                new.write_text(json.dumps(note) + "\n")
        at = f"{stopped} at {session.state.images:,} images, which are saved"
        raise Stopped(f"{at}: `distill resume {folder}` goes on") from None


def resume_session(session: Session, folder: Path, console: Console, allow: Sequence[str] = ()) -> None:
    """Load the newest valid checkpoint, and rewind the logs to it. Collective.

    Args:
        session: The run, built as for its start.
        folder: The run folder.
        console: Where skipped checkpoints and changes of the recipe are printed.
        allow: The keys whose change since the checkpoint the user accepts.

    Raises:
        UserError: There is no valid checkpoint, or it does not fit the run.
    """
    found, lines, changed = find_checkpoint(session, folder, allow)
    for line in lines:
        console.print(line, style="yellow" if line.startswith("skipped") else "")
    load_checkpoint(session, found)
    if changed:
        session.state.changes.append({"images": session.state.images, "changed": changed})
    run, state = session.run, session.state
    streak = max(player.counters()["streak"] for player in state.players.values())
    ended, failed = state.images >= run.images, streak >= run.max_skipped
    if failed and not ended:
        for player in state.players.values():  # the run ended for it, and the user has changed something since
            player.set_counters(streak=0, longest=0)
    done = ended and not (state.unfinished or failed or any(map(ends_skipped, state.players.values())))
    console.print(finished_line(folder, state.images) if done else f"resumed '{folder}' at {state.images:,} images")
    # One rank rewinds, and no rank trains on, and writes, before it is done.
    on_main_process(session.accelerator, partial(rewind_folder, folder, state.images, state.unfinished))


def load_finished(session: Session, folder: Path, allow: Sequence[str] = ()) -> bool:
    """Load the checkpoint at the end of a run, and return whether there is a valid one. Nothing on the disk changes.

    Args:
        session: The run, built as for its start.
        folder: The run folder.
        allow: The keys whose change since the checkpoint the user accepts.
    """
    found = find_checkpoint(session, folder, allow)[0]
    if session.run.evaluation.stop_when is not None:
        session.ended = checkpoint.read_state(found).get("ended")
    if int(found.name) < session.run.images and session.ended is None:  # a later one is damaged
        return False
    load_checkpoint(session, found)
    return True


def looks_finished(folder: Path, run: Run | TeacherRun) -> bool:
    """Return whether a run folder has a checkpoint at the end, and nothing that is left to write, remove or call."""
    saved = checkpoint.folders(folder / "checkpoints")
    state = checkpoint.newest_state(folder / "checkpoints")
    if state is None or state["unfinished"] or len(saved) > run.keep:
        return False
    if state["images"] < run.images and not ("ended" in state and run.evaluation.stop_when is not None):
        return False
    if any(counters["streak"] for counters in state["counters"].values()):
        return False
    places = (place for name in (".", "checkpoints", "power_ema") if (place := folder / name).is_dir())
    left = [file for place in places for file in place.iterdir() if file.name.startswith(".") and file.name != LOCK]
    written = isinstance(run, Run) or (folder / "teacher").is_dir()
    return written and not left and not (folder / STOPPED).exists()


def finished_line(folder: Path, images: int, ended: str | None = None) -> str:
    """Return the line about a finished run, or about one that ended before its last image for a reason."""
    if ended is not None:
        return f"'{folder}' ended at {images:,} images: {ended}; without evaluation.stop_when a resume trains on"
    return f"'{folder}' is finished at {images:,} images; `distill resume {folder} images=N` trains on until N images"


def find_checkpoint(
    session: Session, folder: Path, allow: Sequence[str] = ()
) -> tuple[Path, list[str], dict[str, Any]]:
    """Return the newest valid checkpoint, the lines about it, and the changes since it in the form of a `Change`.

    Verifying reads every file: one process does it, and all others wait for its choice. Collective.

    Args:
        session: The run, built as for its start.
        folder: The run folder.
        allow: The keys whose change since the checkpoint the user accepts.

    Raises:
        UserError: There is no valid checkpoint, or a change is not accepted.
    """
    run, processes = cast("Run | TeacherRun", session.run), session.accelerator.num_processes

    def find() -> tuple[Path, list[str], dict[str, Any]]:
        found, lines = checkpoint.newest(folder / "checkpoints", content_flaw=partial(content_flaw, session))
        saved = checkpoint.read_state(found)
        lines += accepted_changes(saved, run, folder, allow)
        lines += accepted_data(saved.get("data"), session.source, run.name, allow)
        changes = recipe_changes(saved, run, folder) | data_changes(saved.get("data"), session.source)
        if saved["processes"] != processes:
            changes["processes"] = saved["processes"], processes
        return found, lines, {key: {"old": old, "new": new} for key, (old, new) in changes.items()}

    return on_main_process(session.accelerator, find)


def load_checkpoint(session: Session, found: Path) -> None:
    """Load a valid checkpoint. Raise UserError if it does not fit the run. Collective."""
    try:
        checkpoint.restore(session, found)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"'{found}' does not fit the recipe: {one_line(error)}") from error


def rewind_folder(folder: Path, images: int, unfinished: Sequence[str]) -> None:
    """Remove the parts of logs and snapshots after `images`, and half-written files. The run writes all of these again.

    Args:
        folder: The run folder.
        images: The image count of the checkpoint.
        unfinished: The hooks of this image count that the run has still to call.
    """
    jsonl.rewind(folder / "log.jsonl", images)
    # An unfinished evaluation comes again at `images`, where an earlier attempt may have left its line.
    jsonl.rewind(folder / METRIC_LINES, images - (Evaluate.__name__ in unfinished))
    # The comparison before training comes again too.
    jsonl.rewind(folder / LINES, images - (CompareSamples.__name__ in unfinished or images == 0))
    posthoc_ema.rewind_snapshots(folder, images)
    for name in ("best", "teacher"):
        recover(folder / name)
    remove_staging_files(folder)


def write_recipe(session: Session, folder: Path) -> None:
    """Write run.yaml, if it is missing or has changed, and remove the note of an earlier stop."""
    file = folder / RUN_FILE
    (folder / STOPPED).unlink(missing_ok=True)
    text = to_yaml(dump(session.run))
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with atomic_file(file) as staging:
            staging.write_text(text, encoding="utf-8")
