"""Checkpoints that cannot be half: staged in a temporary folder, hashed, manifest last, renamed into place.

Every rank writes its share, on a thread of its own beside training. What the disk does wrong ends a save on all ranks,
not the run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from distill.errors import one_line
from trainers.checkpoints.checkpoint import MANIFEST, STATE, contents, folders, state_description
from trainers.checkpoints.tensor_files import Rows, file_name, share, write_tensors
from trainers.engine.collectives import LOST_PROCESS, is_lost_process
from trainers.engine.session import Session
from trainers.engine.stopping import STOP
from trainers.io.atomic import sha256, sync
from trainers.io.console import plain

Files = dict[str, dict[str, Any]]
Share = dict[str, dict[str, Rows]]

PATIENCE = 60.0  # seconds for the save under way when a run ends in an error
ASIDE = 10  # how much nicer than training the thread of a save beside it is


class Failure(NamedTuple):
    """Why there is no checkpoint, in words; `disk`: it is the disk's doing, and the run can go on."""

    why: str
    disk: bool


class SaveError(OSError):
    """A checkpoint that the run cannot do without was not saved. Another rank has `already_printed`, or is to."""

    already_printed = False


class Saver:
    """Saves a session under `root`, one checkpoint at a time, and then removes older ones so that `keep` are left."""

    def __init__(self, root: Path, keep: int, accelerator: Accelerator) -> None:
        """Collective, as every method is. What a kill left half written is removed."""
        self.root, self.keep = root, keep
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.saved: int | None = None  # images of the newest checkpoint that is in place
        self._failed: Failure | None = None
        self._thread: threading.Thread | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}
        if self.rank == 0:
            for leftover in root.glob(".staging-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        # The thread talks past training, which has its own group: their messages must never meet.
        self._group = dist.new_group(backend="gloo") if self.world > 1 else None
        accelerator.wait_for_everyone()

    def save(self, session: Session, aside: bool = True) -> None:
        """Begin to save the state as it is now, unless it is saved; a save under way is waited for.

        `aside`, the cores are training's first.
        """
        self.wait()
        images = session.state.images
        if images == self.saved:
            return
        started = time.monotonic()
        mine = self._copy(session)
        arguments = (images, mine, state_description(session), started, self._failed, aside)
        self._failed = Failure("its thread has died", disk=False)  # until it says otherwise
        self._thread = threading.Thread(target=self._run, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def resumed(self, images: int) -> None:
        """The run goes on from its checkpoint at `images`; of the older ones, those that a kill left are removed."""
        self.saved = images
        if self.rank == 0:
            self._prune(self._folder(images))

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the save under way, if there is one; raises RuntimeError when it failed otherwise than by the
        disk, of which it has told."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed is not None and not self._failed.disk:
            raise RuntimeError(f"checkpoint: {self._failed.why}")

    def save_now(self, session: Session) -> None:
        """Save the state and wait for it; raises SaveError when that fails."""
        self.save(session, aside=False)
        self.wait()
        if self._failed is not None:
            error = SaveError(f"the checkpoint at {session.state.images:,} images was not saved: {self._failed.why}")
            error.already_printed = self.rank > 0
            raise error

    def close(self) -> None:
        """Let the save under way finish as long as it may take, whatever ended the run."""
        if self._thread is not None:
            self._thread.join(max(PATIENCE, 2 * STOP.longest_save))

    def _folder(self, images: int) -> Path:
        return self.root / f"{images:012d}"

    def _copy(self, session: Session) -> Share:
        """This rank's share on the host, in memory that the next save uses again."""
        cuda, copied = session.accelerator.device.type == "cuda", Share()
        for stem, tensors in share(contents(session), self.rank, self.world).items():
            copied[stem] = {name: self._buffered((stem, name), rows, cuda) for name, rows in tensors.items()}
        if cuda:
            torch.cuda.synchronize()
        return copied

    def _buffered(self, key: tuple[str, str], rows: Rows, pinned: bool) -> Rows:
        value = rows.tensor.detach()
        buffer = self._buffers.get(key)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = self._buffers[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned)
        return rows._replace(tensor=buffer.copy_(value, non_blocking=True))

    def _run(
        self,
        images: int,
        mine: Share,
        description: dict[str, Any],
        started: float,
        before: Failure | None,
        aside: bool,
    ) -> None:
        """On the thread: write, agree with the other ranks, put in place, agree on that."""
        if aside:
            _step_aside()
        final = self._folder(images)
        staging, files = self.root / f".staging-{final.name}", Files()
        try:
            failed = _attempt(lambda: self._write(mine, staging, files))
            reports = self._gathered((failed, files))
            failed = next((one for one, _ in reports if one is not None), None)
            if failed is None and self.rank == 0:
                every = {name: facts for _, part in reports for name, facts in part.items()}
                failed = _attempt(lambda: self._finish(description, every, staging, final))
            if failed is not None and self.rank == 0:
                shutil.rmtree(staging, ignore_errors=True)
            self._failed = next((one for one in self._gathered(failed) if one is not None), None)
        except Exception as error:
            self._failed = Failure(LOST_PROCESS if is_lost_process(error) else one_line(error), disk=False)
        if self._failed is None:
            self.saved = images
            STOP.longest_save = max(STOP.longest_save, time.monotonic() - started)
        if self.rank == 0:
            self._report(images, before)
            if self._failed is None:
                self._prune(final)

    def _write(self, mine: Share, staging: Path, files: Files) -> None:
        staging.mkdir(parents=True, exist_ok=True)
        for stem, tensors in mine.items():
            file = staging / file_name(stem, self.rank, self.world)
            write_tensors(tensors, file)
            sync(file)
            files[file.name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}

    def _finish(self, description: dict[str, Any], files: Files, staging: Path, final: Path) -> None:
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
        if final.exists():
            shutil.rmtree(final)  # an invalid folder of this name, which the resume skipped
        os.rename(staging, final)
        sync(self.root)

    def _prune(self, final: Path) -> None:
        """Remove what is older than the newest `keep` up to `final`."""

        def remove() -> None:
            older = [folder for folder in folders(self.root) if folder.name < final.name]  # a later one is damaged
            for old in older[self.keep - 1 :]:
                shutil.rmtree(old)

        if (left := _attempt(remove)) is not None:
            plain(stderr=True).print(f"an older checkpoint was not removed: {left.why}", style="yellow")

    def _report(self, images: int, before: Failure | None) -> None:
        console = plain(stderr=True)
        if self._failed is not None:
            newest = "there is none yet" if self.saved is None else f"the newest is at {self.saved:,}"
            text = f"the checkpoint at {images:,} images was not saved: {self._failed.why}; {newest}"
            console.print(text, style="yellow")
        elif before is not None:
            console.print(f"the checkpoint at {images:,} images is saved again")

    def _gathered(self, mine: Any) -> list[Any]:
        """What every rank gives."""
        if self._group is None:
            return [mine]
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, mine, group=self._group)
        return every


def _step_aside() -> None:
    """Let other threads go first on cores that are short (Linux, where a thread has a priority of its own)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + ASIDE)


def _attempt(work: Callable[[], None]) -> Failure | None:
    try:
        work()
    except Exception as error:  # a rank that fails in any way must still talk to the others
        return Failure(one_line(error) or type(error).__name__, isinstance(error, OSError))
    return None


def save(session: Session, root: Path, keep: int) -> None:
    """Save one checkpoint under `root`, waiting for it; raises SaveError."""
    Saver(root, keep, session.accelerator).save_now(session)
