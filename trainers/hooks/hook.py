"""The contract of a hook."""

from __future__ import annotations

from abc import ABC, abstractmethod

from trainers.engine.session import Session


class Hook(ABC):
    """Called on every rank when the images done pass a multiple of `every`, and at the end of the run; 0: never."""

    every: int

    def due(self, before: int, now: int, total: int) -> bool:
        """Whether the update from `before` to `now` images of `total` calls the hook."""
        return self.every > 0 and (now // self.every > before // self.every or now >= total)

    @abstractmethod
    def __call__(self, session: Session) -> None: ...
