"""One-step generators as folders in formats that other software loads.

Each export is read back and compared with its generator before it counts.
"""

from distill.export.export import FORMATS, check_format, export_generator
from distill.export.facts import CardFacts, CardPicture
from distill.export.front_matter import check_license
from distill.export.hub import check_push, push
from distill.export.to_safetensors import load_generator

__all__ = [
    "FORMATS",
    "CardFacts",
    "CardPicture",
    "check_format",
    "check_license",
    "check_push",
    "export_generator",
    "load_generator",
    "push",
]
