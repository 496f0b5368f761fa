"""The probe of a teacher: measurements without a training run, and the recipe that follows from them."""

from trainers.probe.probe import probe

__all__ = ["probe"]
