"""A one-step generator: x0 = from_x_t x_t + from_output unet(input_scale x_t, timestep), x_t = scale noise.

This file travels with the exported weights and needs only torch and diffusers. model_index.json holds the five numbers,
which are fixed, because the network was trained for this one step. It also holds `makes_latents`, which says whether x0
is a latent that another model's decoder turns into an image, and `classes`, the number of classes that the generator
was trained on. The network may know one more, which stands for no class, and is never drawn. `id2label` holds the names
of the classes by number, where they have names.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.utils.torch_utils import randn_tensor

from distill.export.shipped.travelling import Travelling

Labels = torch.Tensor | list[int | str] | int | str | None
Generators = torch.Generator | list[torch.Generator] | None


# diffusers executes this file again for each folder that it loads, in one shared module whose names then change. So the
# class holds everything that it needs.
class OneStepPipeline(Travelling, DiffusionPipeline):
    """A pipeline from unit normal noise to images with one evaluation of `unet`, in float32 arithmetic around it."""

    model_cpu_offload_seq = "unet"

    # The numbers have defaults, because diffusers takes every argument without a default for a module.
    def __init__(
        self,
        unet: ModelMixin,
        scale: float = 1.0,
        timestep: float = 0.0,
        input_scale: float = 1.0,
        from_x_t: float = 0.0,
        from_output: float = 1.0,
        makes_latents: bool = False,
        classes: int | None = None,
        id2label: dict[str, str] | None = None,
        drawn: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        self.register_to_config(
            scale=scale,
            timestep=timestep,
            input_scale=input_scale,
            from_x_t=from_x_t,
            from_output=from_output,
            makes_latents=makes_latents,
            classes=classes,
            id2label=id2label,
            drawn=drawn,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Labels = None,
        num_inference_steps: int = 1,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Make images from noise.

        Args:
            batch_size: The number of images.
            class_labels: One label for each image: a number, or a name of `id2label` as text. None draws them from
                `generator`, if the network has classes.
            num_inference_steps: Always 1.
            generator: The source of noise and labels.
            latents: Unit normal noise [B, C, H, W] to use in place of noise from `generator`.
            output_type: "pil" for PIL images, "np" for numpy [B, H, W, C] in [0, 1], "pt" for torch [B, C, H, W] in
                [0, 1], or "latent" for x0 itself, torch [B, C, H, W]. A network of latents allows "latent" alone. The
                default is the first that is allowed.
            return_dict: False returns a tuple.

        Raises:
            ValueError: More than one step, or arguments that do not fit the network.
        """
        if num_inference_steps != 1:
            raise ValueError(f"num_inference_steps: must be 1 for a one-step generator, got {num_inference_steps}")
        c, device = self.config, self._execution_device
        allowed = ("latent",) if c.makes_latents else ("pil", "np", "pt", "latent")
        output_type = output_type or allowed[0]
        if output_type not in allowed:
            raise ValueError(f"output_type: must be one of {', '.join(allowed)}, got {output_type!r}")
        x_t = c.scale * self._noise(batch_size, generator, latents, device)
        labels = self._labels(batch_size, generator, class_labels, device)
        timestep = torch.full((batch_size,), c.timestep, dtype=torch.float32, device=device)
        x_in = (c.input_scale * x_t).to(self.unet.dtype)
        output = self.unet(x_in, timestep, class_labels=labels, return_dict=False)[0]
        x0 = c.from_x_t * x_t + c.from_output * output.float()
        images = x0 if output_type == "latent" else self._images(x0, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _noise(
        self, batch_size: int, generator: Generators, latents: torch.Tensor | None, device: torch.device
    ) -> torch.Tensor:
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, self.unet.config.in_channels, height, width)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents: must be {list(shape)}, got {list(latents.shape)}")
        return latents.to(device, torch.float32)

    def _labels(
        self, batch_size: int, generator: Generators, class_labels: Labels, device: torch.device
    ) -> torch.Tensor | None:
        classes = self.config.classes or self.unet.config.num_class_embeds
        if classes is None:
            if class_labels is not None:
                raise ValueError("class_labels: this network has no classes")
            return None
        if class_labels is None:
            drawn = self.config.drawn or list(range(classes))
            # argmax of equal normals is uniform, and randn_tensor also draws from a list of generators
            chosen = randn_tensor((batch_size, len(drawn)), generator=generator, device=device).argmax(1)
            class_labels = torch.tensor(drawn, device=device)[chosen]
        if not isinstance(class_labels, torch.Tensor):
            given = [class_labels] if isinstance(class_labels, int | str) else class_labels
            class_labels = [self._number(label) if isinstance(label, str) else label for label in given]
        labels = torch.as_tensor(class_labels, device=device).reshape(-1).long()
        if len(labels) != batch_size or not ((labels >= 0) & (labels < classes)).all():
            raise ValueError(f"class_labels: must be {batch_size} of 0 ... {classes - 1}, got {labels.tolist()}")
        return labels

    def _number(self, name: str) -> int:
        names: dict[str, str] = self.config.id2label or {}
        found = [int(number) for number, one in names.items() if one == name]
        if len(found) != 1:
            near = difflib.get_close_matches(name, names.values(), n=3)
            hint = f", such as {', '.join(map(repr, near))}" if near else ""
            raise ValueError(
                f"class_labels: {name!r:.80} must be the name of one class in id2label{hint}, or its number"
            )
        return found[0]

    def _images(self, x0: torch.Tensor, output_type: str) -> Any:
        images = (x0 / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).numpy()
        return array if output_type == "np" else self.numpy_to_pil(array)
