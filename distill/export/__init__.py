"""One-step generators as folders that ordinary diffusers loads; each is compared with its generator first."""

from distill.export.card import CardFacts
from distill.export.pipeline import export_pipeline

__all__ = ["CardFacts", "export_pipeline"]
