"""A stock pipeline with the scheduler of a one-step generator, whose code lies in scheduler/onestep.py.

This file travels with the exported weights and needs only torch and diffusers.
"""

from diffusers import StableDiffusion3Pipeline

from distill.export.shipped.travelling import Travelling


class OneStepFamilyPipeline(Travelling, StableDiffusion3Pipeline):
    """The stock pipeline, which takes its code and its card along when it is saved."""
