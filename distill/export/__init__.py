"""One-step generators as folders that ordinary diffusers loads; each is compared with its generator first."""

from distill.export.card import CardFacts
from distill.export.pipeline import export_pipeline
from distill.export.state_dict import export_state_dict

__all__ = ["CardFacts", "export_pipeline", "export_state_dict"]
