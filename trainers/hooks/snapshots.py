"""The hook that takes snapshots of the power-function averages."""

from pathlib import Path

from trainers.checkpoints.checkpoint import unfrozen_state
from trainers.checkpoints.posthoc_ema import write_snapshot
from trainers.engine.session import Session
from trainers.engine.sharding import gather_to_main
from trainers.hooks.hook import Hook
from trainers.io.console import tolerate_disk_errors
from trainers.recipe.run import PowerEMA


class Snapshots(Hook):
    """A hook that writes the averages of `power_ema` in the recipe to power_ema/IMAGES/ in the run folder."""

    def __init__(self, folder: Path, settings: PowerEMA | None) -> None:
        self.folder, self.every = folder, settings.snapshot_every if settings else 0

    def __call__(self, session: Session) -> None:
        averages = {  # collective where weights are sharded
            std: gather_to_main(unfrozen_state(one.module, one.frozen_names))
            for std, one in session.state.power_ema.items()
        }
        if session.accelerator.is_main_process:
            with tolerate_disk_errors(f"the snapshot at {session.state.images:,} images is"):
                write_snapshot(averages, session.state.images, self.folder)
