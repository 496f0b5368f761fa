"""Images as the image encoders of rewards take them: resized, cut or padded, and normalised, with a gradient."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

Statistics = tuple[float, ...]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""The statistics of OpenAI's CLIP (github.com/openai/CLIP, clip/clip.py), which HPSv2 and ImageReward share."""


class Prepare(nn.Module):
    """The step from images [B, 1 or 3, H, W] in [-1, 1] to normalised squares [B, 3, size, size].

    Args:
        size: The pixels to a side of a square.
        mean: The mean of each channel for pixels in [0, 1].
        std: The standard deviation of each channel for pixels in [0, 1].
        square: (pixels [B, C, H, W] in [0, 1], size) -> squares [B, C, size, size]. It is one of this module.
    """

    def __init__(self, size: int, mean: Statistics, std: Statistics, square: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.size, self.square = size, square
        self.mean, self.std = (nn.Buffer(torch.tensor(values)[:, None, None]) for values in (mean, std))

    def forward(self, x: Tensor) -> Tensor:
        squares = self.square((x + 1) / 2, self.size)
        return (squares.expand(-1, 3, -1, -1) - self.mean) / self.std


def cut(pixels: Tensor, size: int) -> Tensor:
    """Return the middle squares of images, as transformers' CLIPImageProcessor cuts them.

    The shorter side is resized to `size` (bicubic, with antialiasing). The processor also rounds to 8 bits, which has
    no gradient.
    """
    pixels, height, width = _shorter_to(pixels, size)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, :, top : top + size, left : left + size]


def cut_rounded(pixels: Tensor, size: int) -> Tensor:
    """Return the middle squares of images, as torchvision's Resize and CenterCrop cut pictures.

    They differ from `cut` by a pixel where the longer side exceeds `size` by an odd number.
    """
    pixels, height, width = _shorter_to(pixels, size)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[:, :, top : top + size, left : left + size]


def fit_inside(pixels: Tensor, size: int) -> Tensor:
    """Return whole images in the middle of black squares, as HPSv2 prepares them.

    The longer side is resized to `size` (bicubic, with antialiasing as in torchvision 0.17 and newer). HPSv2 resizes
    tensors, so overshoots are not clamped and nothing is rounded to 8 bits. The source is ResizeMaxSize in
    hpsv2/src/open_clip/transform.py of github.com/tgxs002/HPSv2.
    """
    height, width = pixels.shape[2:]
    scale = size / max(height, width)
    if scale == 1.0 and height == width:
        return pixels
    sides = round(height * scale), round(width * scale)
    pixels = interpolate(pixels, sides, mode="bicubic", antialias=True)
    rows, columns = size - sides[0], size - sides[1]
    return pad(pixels, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _shorter_to(pixels: Tensor, size: int) -> tuple[Tensor, int, int]:
    """Return images whose shorter side is resized to `size`, with their height and width."""
    height, width = pixels.shape[2:]
    shorter = min(height, width)
    sides = size * height // shorter, size * width // shorter
    return interpolate(pixels, sides, mode="bicubic", antialias=True).clamp(0, 1), *sides
