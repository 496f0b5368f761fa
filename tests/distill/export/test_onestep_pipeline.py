"""The pipeline file that travels with the weights, by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from distill.export.shipped.onestep_pipeline import OneStepPipeline

NUMBERS = {"scale": 0.7, "timestep": 714.0, "input_scale": 0.9, "from_x_t": 1.1, "from_output": -0.6}


def make(classes: int | None = 3) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        unet = UNet2DModel(
            sample_size=(8, 4),
            block_out_channels=(8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            num_class_embeds=classes,
        )
        with torch.no_grad():
            for weight in unet.parameters():
                weight += 0.05 * torch.randn_like(weight)
    return OneStepPipeline(unet.eval(), **NUMBERS)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NOISE = torch.randn(6, 3, 8, 4, generator=seeded())
LABELS = [0, 1, 2, 2, 1, 0]


def expected(pipe: Any, noise: Tensor = NOISE, labels: list[int] = LABELS) -> Tensor:
    """The formula, [B, C, H, W] in [0, 1]."""
    with torch.no_grad():
        output = pipe.unet(0.63 * noise, torch.full((len(noise),), 714.0), torch.tensor(labels)).sample
    return ((1.1 * 0.7 * noise - 0.6 * output) / 2 + 0.5).clamp(0, 1)


def close(images: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-6)


def test_every_way_of_asking_gives_the_formula() -> None:
    pipe = make()
    wanted = expected(pipe)
    assert float(((wanted == 0) | (wanted == 1)).float().mean()) < 0.5
    close(pipe(6, LABELS, generator=seeded(), output_type="pt").images, wanted)
    (images,) = pipe(6, torch.tensor(LABELS), latents=NOISE, output_type="pt", return_dict=False)
    close(images, wanted)
    array = pipe(6, LABELS, latents=NOISE.double(), output_type="np").images
    close(torch.from_numpy(array).permute(0, 3, 1, 2), wanted)
    close(pipe(class_labels=0, latents=NOISE[:1], output_type="pt").images, wanted[:1])
    close(pipe(class_labels=0, generator=[seeded()], output_type="pt").images, expected(pipe, NOISE[:1], [0]))
    assert [image.size for image in pipe(2).images] == [(4, 8)] * 2


def test_latents_are_the_formula_itself() -> None:
    pipe = make()
    x0 = pipe(6, LABELS, latents=NOISE, output_type="latent").images
    assert float(x0.abs().max()) > 1
    close((x0 / 2 + 0.5).clamp(0, 1), expected(pipe))
    pipe.register_to_config(makes_latents=True)
    assert torch.equal(pipe(6, LABELS, latents=NOISE).images, x0)
    with pytest.raises(ValueError, match="output_type: must be one of latent, got 'pil'"):
        pipe(6, LABELS, latents=NOISE, output_type="pil")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 2}, "num_inference_steps: must be 1 for a one-step generator, got 2"),
        ({"output_type": "jpg"}, "output_type: must be one of pil, np, pt, latent, got 'jpg'"),
        ({"class_labels": [0, 1]}, r"class_labels: must be 1 of 0 ... 2, got \[0, 1\]"),
        ({"class_labels": 3}, r"class_labels: must be 1 of 0 ... 2, got \[3\]"),
        ({"class_labels": -1}, r"class_labels: must be 1 of 0 ... 2, got \[-1\]"),
        ({"latents": torch.zeros(1, 3, 4, 8)}, r"latents: must be \[1, 3, 8, 4\], got \[1, 3, 4, 8\]"),
    ],
)
def test_what_it_cannot_do_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(**arguments)


def test_a_network_without_classes_refuses_labels() -> None:
    pipe = make(classes=None)
    assert pipe(2, output_type="pt").images.shape == (2, 3, 8, 4)
    with pytest.raises(ValueError, match="class_labels: this network has no classes"):
        pipe(class_labels=[0])


def test_labels_left_out_come_from_the_generator() -> None:
    pipe = make()
    for generators in (seeded, lambda: [seeded(i) for i in range(6)]):
        first, again = (pipe(6, generator=generators(), output_type="pt").images for _ in range(2))
        assert torch.equal(first, again)
    labels = pipe._labels(3000, seeded(), None, torch.device("cpu"))
    assert labels.bincount().tolist() == pytest.approx([1000] * 3, abs=104)  # 4 standard deviations


def test_the_arithmetic_is_float32_around_a_network_in_low_precision() -> None:
    pipe = make().to(torch.bfloat16)
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            weight.zero_()
    images = pipe(6, LABELS, latents=NOISE, output_type="pt").images
    assert images.dtype == torch.float32
    close(images, (1.1 * 0.7 * NOISE / 2 + 0.5).clamp(0, 1))


def test_a_null_label_is_never_drawn() -> None:
    """The network knows 3 labels, of which the last stands for no class."""
    pipe = OneStepPipeline(make().unet, **NUMBERS, classes=2)
    seen: set[int] = set()
    pipe.unet.register_forward_pre_hook(
        lambda _, arguments, options: seen.update(options["class_labels"].tolist()), with_kwargs=True
    )
    pipe.set_progress_bar_config(disable=True)
    pipe(200, generator=seeded(), output_type="pt")
    assert seen == {0, 1}
    with pytest.raises(ValueError, match=r"^class_labels: must be 2 of 0 ... 1, got \[2, 0\]$"):
        pipe(2, [2, 0])


def test_only_classes_that_were_trained_are_drawn() -> None:
    """Where no label is given. A label that is given may be any."""
    pipe, labels = make(), []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, given: labels.extend(given["class_labels"].tolist()), with_kwargs=True
    )
    pipe(64, generator=seeded(), output_type="pt")
    assert set(labels) == {0, 1, 2}
    pipe.register_to_config(drawn=[0, 2])
    labels.clear()
    pipe(64, generator=seeded(), output_type="pt")
    assert set(labels) == {0, 2} and 16 < labels.count(0) < 48
    assert pipe(2, [1, 1], generator=seeded(), output_type="pt").images.shape == (2, 3, 8, 4)
    assert labels[64:] == [1, 1]
