"""The scheduler of a one-step generator: its single step is x0 = from_x_t x_t + from_output output.

x_t is unit normal noise times a scale. A pipeline may multiply its noise by `init_noise_sigma`, which then holds the
scale. Otherwise `input_scale` holds it.

This file travels with the exported weights and needs only torch and diffusers.
"""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput


class OneStepScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler with a single step at `timestep`. Training fixed all its numbers, so they should stay as they are."""

    __module__ = "onestep"  # diffusers notes the module of a part in model_index.json, and then looks for this file
    order = 1
    _code = Path(__file__).read_text("utf-8")  # now, since diffusers replaces the file when it loads another export

    @register_to_config
    def __init__(
        self,
        timestep: float = 999.0,
        init_noise_sigma: float = 1.0,
        input_scale: float = 1.0,
        from_x_t: float = 0.0,
        from_output: float = 1.0,
    ) -> None:
        self.init_noise_sigma = init_noise_sigma
        self.timesteps = torch.tensor([timestep])

    def save_config(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the config, and this file beside it."""
        super().save_config(save_directory, *args, **kwargs)
        (Path(save_directory) / "onestep.py").write_text(self._code, "utf-8")

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Set the single step.

        Raises:
            ValueError: `num_inference_steps` is not 1.
        """
        if num_inference_steps != 1:
            raise ValueError(f"num_inference_steps: must be 1 for a one-step generator, got {num_inference_steps}")
        self.timesteps = torch.tensor([self.config.timestep], device=device)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Return x_t, the input of the network."""
        return cast(torch.Tensor, self.config.input_scale * sample)

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True, **_: Any
    ) -> Any:
        """Return x0 from `sample` = x_t and the network's output, computed in float32."""
        x0 = self.config.from_x_t * sample.float() + self.config.from_output * model_output.float()
        x0 = x0.to(sample.dtype)
        return SchedulerOutput(prev_sample=x0) if return_dict else (x0, x0)
