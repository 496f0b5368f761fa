"""The hook that ends a run whose updates or weights are no longer finite."""

from collections.abc import Sequence

from distill.errors import UserError
from trainers.engine.finite import weights_not_finite
from trainers.engine.player import Player
from trainers.engine.session import Session
from trainers.hooks.hook import Hook
from trainers.recipe.run import Experiment

ADVICE = "Lower its lr, set max_grad_norm, or try precision: float32"


class NotFinite(UserError):
    """Too many updates in a row were not finite, or weights are not.

    Args:
        message: The line for the user.
        already_printed: True on ranks that must not print the line, because rank 0 does.
    """

    def __init__(self, message: str, already_printed: bool = False) -> None:
        super().__init__(message)
        self.already_printed = already_printed


class FiniteCheck(Hook):
    """A hook that raises NotFinite when a run cannot go on with finite numbers.

    It does so after `max_skipped` non-finite updates of a player in a row, and at once when weights are not finite. At
    the end of a run it also does so when a player's last updates were not finite, and they are more than half of all
    its updates. A short run has no `max_skipped` updates.

    The host waits for the device here, and therefore not at every update: the hook is called at log points, after
    `max_skipped` updates, and before every other hook, so that no hook measures or saves what is not finite.

    Args:
        run: The recipe.
        others: The hooks before which the hook is called.
    """

    def __init__(self, run: Experiment, others: Sequence[Hook]) -> None:
        self.every = min(run.log_every, run.max_skipped * run.batch_size)
        self.others = others

    def due(self, before: int, now: int, total: int) -> bool:
        return super().due(before, now, total) or any(hook.due(before, now, total) for hook in self.others)

    def __call__(self, session: Session) -> None:
        check_weights(session)
        run, images, failed = session.run, session.state.images, ""
        for name, player in session.state.players.items():
            streak, longest = (player.counters()[name] for name in ("streak", "longest"))
            player.set_counters(longest=streak)  # a row that is still going on counts into the next check
            ended = (images >= run.images or session.ended is not None) and ends_skipped(player)
            if not failed and (longest >= run.max_skipped or ended):
                failed = f"{name}: {streak if ended else longest} updates in a row had a non-finite loss or gradient"
        if failed:
            text = f"{failed} at {images:,} images; they were skipped and the state saved. {ADVICE}"
            raise NotFinite(text, not session.accelerator.is_main_process)


def ends_skipped(player: Player) -> bool:
    """Return whether a player's last updates were not finite, and are more than half of all its updates."""
    return player.counters()["streak"] > player.updates / 2


def check_weights(session: Session) -> None:
    """Raise NotFinite when weights that train, or their averages, are not finite. Collective."""
    if found := weights_not_finite(session.state, session.accelerator):
        at = f"at {session.state.images:,} images, and are not saved"
        text = f"{', '.join(found)}: the weights are not finite {at}. {ADVICE}"
        raise NotFinite(text, not session.accelerator.is_main_process)
