"""A stock pipeline whose single step starts at the flow time START from unit normal noise times SCALE.

This file travels with the exported weights and needs only torch and diffusers.
"""

from typing import Any

from diffusers import StableDiffusion3Pipeline

from distill.export.shipped.travelling import Travelling


class OneStepFlowPipeline(Travelling, StableDiffusion3Pipeline):
    """The stock pipeline, with a single step from START to 0."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        """Return the noise of the stock pipeline times SCALE, and everything else that it prepares."""
        SCALE = 1.0
        noise = super().prepare_latents(*args, **kwargs)
        return (SCALE * noise[0], *noise[1:]) if isinstance(noise, tuple) else SCALE * noise

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the stock pipeline with the arguments, and with one step at the flow time START."""
        START = 1.0
        return super().__call__(*args, **{**kwargs, "num_inference_steps": 1, "sigmas": [START]})
