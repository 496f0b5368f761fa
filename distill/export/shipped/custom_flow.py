"""A stock pipeline whose single step starts at the flow time START from unit normal noise times SCALE.

This file travels with the exported weights and needs only torch and diffusers.
"""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusion3Pipeline


class OneStepFlowPipeline(StableDiffusion3Pipeline):
    """The stock pipeline with one step of its own."""

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        """The stock pipeline's, scaled; beside them whatever it prepares."""
        SCALE = 1.0
        encode_dataset = super().prepare_latents(*args, **kwargs)
        return (
            (SCALE * encode_dataset[0], *encode_dataset[1:])
            if isinstance(encode_dataset, tuple)
            else SCALE * encode_dataset
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the stock pipeline's, from START to 0 at once."""
        START = 1.0
        return super().__call__(*args, **{**kwargs, "num_inference_steps": 1, "sigmas": [START]})
