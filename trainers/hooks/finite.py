"""The hook that ends a run whose updates are no longer finite."""

from distill.errors import UserError
from trainers.engine.session import Session
from trainers.hooks.hook import Hook


class NotFinite(UserError):
    """Too many updates in a row were not finite."""


class FiniteCheck(Hook):
    """A hook that raises NotFinite after `max_skipped` non-finite updates of a player in a row."""

    def __init__(self, every: int) -> None:
        self.every = every

    def __call__(self, session: Session) -> None:
        counts = {name: int(player.longest) for name, player in session.state.players.items()}
        failed = [name for name, longest in counts.items() if longest >= session.run.max_skipped]
        for player in session.state.players.values():
            if failed:
                player.streak.zero_()  # a resume begins to count anew, since the user has changed something
            player.longest.copy_(player.streak)  # a row that is still going on counts into the next check
        if failed:
            raise NotFinite(
                f"{failed[0]}: {counts[failed[0]]} updates in a row had a non-finite loss or gradient at"
                f" {session.state.images:,} images; they were skipped and the state saved. Lower its lr, set"
                " max_grad_norm, or try precision: float32"
            )
