"""DINOv2 as an extractor of features, in which FD-DINOv2 is measured."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from distill.errors import UserError, one_line
from distill.metrics.extractor import Extracted, content_hash
from distill.metrics.images import as_bytes

DINOV2_LARGE = "facebook/dinov2-large"
"""The ViT-L/14 that Stein et al. (arXiv:2306.04675) and EDM2 take, on the Hugging Face hub."""
_SIZE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]
_AT_ONCE = 64  # images in one pass, which bounds the memory


class DINOv2:
    """DINOv2 as an extractor. Its features are the class token after the last norm.

    Images are rounded to 8 bits, grey ones are repeated to three channels, and all are resized to 224 pixels by
    antialiased bicubic interpolation, as in EDM2 (arXiv:2312.02696, appendix).

    Args:
        model: A folder or an id of the Hugging Face hub, with weights as safetensors.

    Raises:
        UserError: The model cannot be read, or it is no DINOv2.
    """

    labels: Tensor | None = None
    logits = False

    def __init__(self, model: str = DINOV2_LARGE) -> None:
        from transformers import AutoConfig, Dinov2Model

        try:
            if (kind := AutoConfig.from_pretrained(model).model_type) != "dinov2":
                raise UserError(f"DINOv2: '{model}' is a {kind}")
            self.network = Dinov2Model.from_pretrained(model, use_safetensors=True).requires_grad_(False).eval()
        except (OSError, ValueError, RuntimeError) as error:
            fetch = f"; `hf download {model}` fetches it" if model == DINOV2_LARGE else ""
            raise UserError(f"DINOv2: cannot read '{model}': {one_line(error):.200}{fetch}") from None
        self.name = "fd_dinov2" if model == DINOV2_LARGE else f"fd_dinov2-{content_hash(self.network.state_dict())}"

    def to(self, device: torch.device) -> DINOv2:
        """Move the network to a device, and return the extractor."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor, labelled: bool = False) -> Extracted:
        """Return features [N, D], float32, of images [N, 1 or 3, H, W] in [-1, 1]."""
        device = self.network.device
        mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _STD))
        found = []
        with torch.autocast(device.type, enabled=False):  # the features of all numbers are of float32
            for part in as_bytes(images, "DINOv2").split(_AT_ONCE):
                pixels = interpolate(part.to(device).float(), (_SIZE, _SIZE), mode="bicubic", antialias=True) / 255
                found.append(self.network((pixels - mean) / std).pooler_output)
        return Extracted(torch.cat(found))
