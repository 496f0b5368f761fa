"""The grid, pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch

from trainers.io.images import grid


def test_grey_images_stand_row_by_row_with_a_white_border() -> None:
    """Three images of one pixel in two columns; each pixel becomes 2x2, framed by one white pixel."""
    picture = grid(torch.tensor([-1.0, 0.0, 0.5]).reshape(3, 1, 1, 1), columns=2, least=2)
    assert (picture.mode, picture.size) == ("L", (8, 8))
    w = 255
    expected = [
        [w, w, w, w, w, w, w, w],
        [w, 0, 0, w, w, 128, 128, w],
        [w, 0, 0, w, w, 128, 128, w],
        [w, w, w, w, w, w, w, w],
        [w, w, w, w, w, w, w, w],
        [w, 191, 191, w, w, w, w, w],
        [w, 191, 191, w, w, w, w, w],
        [w, w, w, w, w, w, w, w],
    ]
    assert np.array(picture).tolist() == expected


def test_values_are_8_bits_as_in_the_papers() -> None:
    """127.5 x + 128, truncated and clamped."""
    x = torch.tensor([-7.0, -1.0, -0.9999, -0.5, 0.0, 0.9921, 0.9999, 1.0, 1.5]).reshape(9, 1, 1, 1)
    picture = np.array(grid(x, columns=9, least=1))
    assert picture[1, 1::3].tolist() == [0, 0, 0, 64, 128, 254, 255, 255, 255]


def test_colours_and_layout_of_large_images() -> None:
    """An image of 64 pixels or more keeps its size; channels stay in order."""
    images = torch.zeros(2, 3, 64, 70)
    images[0, 0], images[1, 2] = 1.0, -1.0
    images[0, 1, 0, 69] = 1.0  # a corner: height before width
    picture = grid(images, columns=1)
    assert (picture.mode, picture.size) == ("RGB", (72, 132))
    pixels = np.array(picture)
    assert pixels[1, 1].tolist() == [255, 128, 128] and pixels[1, 70].tolist() == [255, 255, 128]
    assert pixels[67, 1].tolist() == [128, 128, 0]
    assert (pixels[[0, 65, 66, 131]] == 255).all() and (pixels[:, [0, 71]] == 255).all()


def test_any_number_of_channels_is_a_picture() -> None:
    """Grey shows the first of two channels, colour the first three of more."""
    images = torch.arange(5.0).reshape(1, 5, 1, 1) / 4 - 0.5
    for channels, mode, pixel in ((2, "L", 64), (5, "RGB", [64, 96, 128])):
        picture = grid(images[:, :channels], columns=1, least=1)
        assert picture.mode == mode and np.array(picture)[1, 1].tolist() == pixel


def test_frames_lie_side_by_side_and_a_signal_is_a_row() -> None:
    images = torch.tensor([-1.0, 0.0, 0.5]).reshape(1, 1, 3, 1, 1)
    for shape in ((1, 1, 3, 1, 1), (1, 1, 3)):
        assert np.array(grid(images.reshape(shape), columns=1, least=1))[1].tolist() == [255, 0, 128, 191, 255]


def test_small_images_are_enlarged_to_64_pixels() -> None:
    assert grid(torch.zeros(10, 1, 8, 8), columns=10).size == (10 * 66, 66)
    assert grid(torch.zeros(1, 1, 60, 60), columns=1).size == (122, 122)
