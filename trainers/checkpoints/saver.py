"""The saver, which writes checkpoints on a thread beside training.

No checkpoint is ever half there. Every rank writes its tensors into a staging folder and hashes them, rank 0 writes the
manifest last, and the folder is renamed into place. An error of the disk ends this save on all ranks, and not the run.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from distill.errors import UserError, naming_final, one_line
from trainers.checkpoints.checkpoint import MANIFEST, STATE, folders, read_state, state_description, state_tensors
from trainers.checkpoints.tensor_files import Rows, file_name, tensors_of_rank, write_tensors
from trainers.engine.collectives import LOST_PROCESS, is_lost_process
from trainers.engine.session import Session
from trainers.engine.stopping import STOP
from trainers.io.atomic import sha256, sync
from trainers.io.console import plain

FileFacts = dict[str, dict[str, Any]]
"""{file name: its size and hash, as in the manifest}."""
RankTensors = dict[str, dict[str, Rows]]
"""{stem: {name: rows}}: the tensors that one rank writes."""

PATIENCE = 60.0  # seconds that the save in progress gets at least when a run ends
NICENESS = 10  # added to the niceness of the thread of a save beside training


class Failure(NamedTuple):
    """A save that failed.

    Attributes:
        why: The reason, in words.
        disk: Whether the disk is the reason. The run can then continue.
    """

    why: str
    disk: bool


class SaveError(OSError):
    """A required checkpoint could not be saved.

    Attributes:
        already_printed: True on ranks that must not print the error, because rank 0 does.
    """

    already_printed = False


class Saver:
    """The writer of a session's checkpoints, which also removes old ones. Every method is collective.

    Making a saver removes the staging folders of a process that was killed.

    Args:
        root: The folder of the checkpoints.
        keep: The number of newest checkpoints that are kept. The newest good one is kept beside them. So is the one
            that a run resumed from, and all older ones if that is not good, until the run has shown that it goes well.
        accelerator: Ranks and device.
    """

    def __init__(self, root: Path, keep: int, accelerator: Accelerator) -> None:
        self.root, self.keep = root, keep
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.saved: int | None = None  # images of the newest complete checkpoint
        self._resumed = 0  # images of the checkpoint that the run resumed from
        self._needed: set[Path] = set()  # the checkpoints that stay until all goes well
        self._failed: Failure | None = None  # of the last save
        self._thread: threading.Thread | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}  # (stem, name) -> host memory
        if self.rank == 0:
            for leftover in root.glob(".staging-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        # A process group for the threads alone: training sends at the same time, and on one group the order of messages
        # would differ between ranks.
        self._group = dist.new_group(backend="gloo") if self.world > 1 else None
        accelerator.wait_for_everyone()  # no rank may write before rank 0 has removed the old staging folders

    def save(self, session: Session, beside: bool = True) -> None:
        """Start to save the current state in the background, after any save in progress.

        A state that is saved already is not saved again.

        Args:
            session: The run at work.
            beside: Whether training continues meanwhile. The thread then runs at a lower priority than training.

        Raises:
            RuntimeError: The save before failed for another reason than the disk.
        """
        self.wait()
        images = session.state.images
        if images == self.saved:
            return
        started = time.monotonic()
        tensors = self._copy(session)  # the thread gets copies, since training changes the state while it writes
        if self._goes_well(session):
            self._needed.clear()
        arguments = (tensors, state_description(session), started, self._failed, beside)
        self._failed = Failure("its thread has died", disk=False)  # until the thread says otherwise
        self._thread = threading.Thread(target=self._run, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def resumed(self, images: int) -> None:
        """Note that the run continues from its checkpoint at `images`, and remove those that are too old to be kept.

        A process that was killed may not have removed them.
        """
        self.saved = self._resumed = images
        if self.rank == 0:
            final = self._folder(images)
            self._needed = {final} if is_good(final) else set(folders(self.root))
            self._prune(final)

    @property
    def busy(self) -> bool:
        """True while a save is in progress on this rank."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the save in progress, if there is one.

        Raises:
            RuntimeError: It failed for another reason than the disk. An error of the disk has been printed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed is not None and not self._failed.disk:
            raise RuntimeError(f"checkpoint: {self._failed.why}")

    def save_now(self, session: Session) -> None:
        """Save the state and wait for it.

        Raises:
            SaveError: The state could not be saved.
        """
        self.save(session, beside=False)
        self.wait()
        if self._failed is not None:
            error = SaveError(f"the checkpoint at {session.state.images:,} images was not saved: {self._failed.why}")
            error.already_printed = self.rank > 0
            raise error

    def close(self) -> None:
        """Wait for the save in progress when a run ends, at most PATIENCE seconds or twice the longest save."""
        if self._thread is not None:
            self._thread.join(max(PATIENCE, 2 * STOP.longest_save))

    def good_images(self) -> int | None:
        """Return the number of images of the newest good checkpoint, or None if there is none."""
        return next((int(folder.name) for folder in folders(self.root) if is_good(folder)), None)

    def _goes_well(self, session: Session) -> bool:
        """Return whether a resumed run no longer needs the checkpoints before it.

        A setting that was changed for the resume, such as a learning rate, may spoil the weights long before they are
        no longer finite. So the run must come to its end, or through `max_skipped` updates, and skip none.
        """
        run, images = session.run, session.state.images
        if any(player.counters()["streak"] for player in session.state.players.values()):
            return False
        return images >= run.images or images - self._resumed >= run.max_skipped * run.batch_size

    def _folder(self, images: int) -> Path:
        return self.root / f"{images:012d}"

    def _copy(self, session: Session) -> RankTensors:
        """Copy the tensors of this rank to the host, into memory that the next save uses again."""
        cuda, copied = session.accelerator.device.type == "cuda", RankTensors()
        for stem, tensors in tensors_of_rank(state_tensors(session), self.rank, self.world).items():
            copied[stem] = {name: self._buffered((stem, name), rows, cuda) for name, rows in tensors.items()}
        if cuda:  # the copies are asynchronous: the thread must not read, nor training write, before they are done
            torch.cuda.synchronize()
        return copied

    def _buffered(self, key: tuple[str, str], rows: Rows, pinned: bool) -> Rows:
        """Start to copy rows into the buffer of their name, which is pinned so that a GPU writes into it directly."""
        value = rows.tensor.detach()
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = self._buffers[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned)
        return rows._replace(tensor=buffer.copy_(value, non_blocking=True))

    def _run(
        self, tensors: RankTensors, description: dict[str, Any], started: float, before: Failure | None, beside: bool
    ) -> None:
        """Write a checkpoint. This method runs on the thread.

        All ranks reach both gathers, also a rank whose disk fails. After the first, rank 0 knows that every file is
        written and puts the checkpoint in place. After the second, every rank knows whether that worked.
        """
        # Training's threads go first where cores are short. Linux alone has a priority for each thread.
        if beside and sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
        images: int = description["images"]
        final = self._folder(images)
        staging, files = self.root / f".staging-{final.name}", FileFacts()
        try:
            naming = naming_final(final, staging)
            failed = _attempt(naming(lambda: self._write(tensors, staging, files)))
            reports = self._gathered((failed, files))
            failed = next((failure for failure, _ in reports if failure is not None), None)
            if failed is None and self.rank == 0:
                all_files = {name: facts for _, part in reports for name, facts in part.items()}
                failed = _attempt(naming(lambda: self._finish(description, all_files, staging, final)))
            if failed is not None and self.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
            self._failed = next((failure for failure in self._gathered(failed) if failure is not None), None)
        except Exception as error:
            self._failed = Failure(LOST_PROCESS if is_lost_process(error) else one_line(error), disk=False)
        if self._failed is None:
            self.saved = images
            STOP.longest_save = max(STOP.longest_save, time.monotonic() - started)
        if self.rank == 0:
            self._report(images, before)
            if self._failed is None:
                self._prune(final)

    def _write(self, tensors: RankTensors, staging: Path, files: FileFacts) -> None:
        """Write the files of this rank, and fill `files` with their sizes and hashes."""
        staging.mkdir(parents=True, exist_ok=True)
        for stem, rows in tensors.items():
            file = staging / file_name(stem, self.rank, self.world)
            write_tensors(rows, file)
            sync(file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}

    def _finish(self, description: dict[str, Any], files: FileFacts, staging: Path, final: Path) -> None:
        """Write state and manifest, and rename the staging folder into place."""
        for name, facts in files.items():
            if not (staging / name).is_file() or (staging / name).stat().st_size != facts["bytes"]:
                raise OSError(f"'{name}' of another process is not in '{staging}': all must see one run folder")
        state = staging / STATE
        state.write_text(json.dumps(description, indent=2) + "\n")
        sync(state)
        files[state.name] = {"bytes": state.stat().st_size, "sha256": sha256(state)}
        manifest = staging / MANIFEST
        manifest.write_text(json.dumps(dict(sorted(files.items())), indent=2) + "\n")
        sync(manifest)
        sync(staging)
        if final.exists():  # an invalid checkpoint, which the resume skipped
            shutil.rmtree(final)
        os.rename(staging, final)
        sync(self.root)  # the rename is on the disk only after the folder around it is

    def _prune(self, final: Path) -> None:
        """Remove the checkpoints before `final`, but for the newest `keep` - 1 of them and those that must stay."""

        def remove() -> None:
            # Later checkpoints than `final` are damaged ones that the resume skipped, which `_finish` replaces.
            older = [folder for folder in folders(self.root) if folder.name < final.name]
            newest_good = next((folder for folder in (final, *older) if is_good(folder)), None)
            for old in older[self.keep - 1 :]:
                if old != newest_good and old not in self._needed:
                    shutil.rmtree(old)

        if (failure := _attempt(remove)) is not None:
            plain(stderr=True).print(f"an older checkpoint was not removed: {failure.why}", style="yellow")

    def _report(self, images: int, before: Failure | None) -> None:
        """Print that the save failed, or that it worked after the save `before` failed."""
        console = plain(stderr=True)
        if self._failed is not None:
            newest = "there is none yet" if self.saved is None else f"the newest is at {self.saved:,}"
            text = f"the checkpoint at {images:,} images was not saved: {self._failed.why}; {newest}"
            console.print(text, style="yellow")
        elif before is not None:
            console.print(f"the checkpoint at {images:,} images is saved again")

    def _gathered(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in their order. Collective among the threads of the ranks."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._group)
        return values


def is_good(folder: Path) -> bool:
    """Return whether the last update of every player before a checkpoint was made, and not skipped as non-finite."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, UserError):
        return not any(counters["streak"] for counters in read_state(folder)["counters"].values())
    return False


def _attempt(work: Callable[[], None]) -> Failure | None:
    """Call `work`, and return the failure if it raises."""
    try:
        work()
    except Exception as error:  # every kind: a rank that fails must still reach the next gather
        return Failure(one_line(error) or type(error).__name__, isinstance(error, OSError))
    return None
