"""A teacher made elsewhere: a flow-matching transformer of MNIST, 208,705 parameters, by Sofia Dominguez (MIT licence).

Its network knows pixels y in [0, 1] and y_t = (1 - t) noise + t y, with t = 0 for noise, and predicts y. `Teacher`
turns this into an estimate of x = 2 y - 1 on a flow path. From the weights of the repository
github.com/sofia-dominguezc/MNIST-diffusion, as safetensors, make the folder of a teacher, and then its first recipe:

    python examples/flow_vit.py mnist_flow_vit_cfg.safetensors teachers/mnist_flow_vit
    PYTHONPATH=examples distill probe teachers/mnist_flow_vit --data mnist/ --objective sim --trust-code
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WIDTH, PATCH, SIDE = 64, 7, 4
TEACHER = {
    "path": {"name": "flow"},
    "prediction": "x0",
    "sigma_data": 0.62,
    "shape": [1, 28, 28],
    "classes": 10,
    "null": 10,
    "network": {"name": "flow_vit:Teacher"},
}


class FlowViT(nn.Module):
    """The network, with two tokens each for time and label behind the 16 of the patches."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, SIDE * SIDE, WIDTH))
        self.y_encoder = nn.Embedding(11, 2 * WIDTH)
        self.transformer = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=dropout, activation="gelu", batch_first=True)
            for _ in range(4)
        )
        self.unpatch = nn.ConvTranspose2d(WIDTH, 1, PATCH, PATCH)

    def forward(self, y_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Return the estimate of y [B, 1, 28, 28] at the times `t` [B]. The label 10 stands for none."""
        frequencies = 10_000 ** (-torch.arange(WIDTH, device=t.device) / (WIDTH - 1))
        angles = t[:, None] * frequencies
        time = torch.cat([angles.sin(), angles.cos()], 1).unflatten(1, (2, WIDTH))
        patches = self.patch_embed(y_t).flatten(2).transpose(1, 2) + self.pos_embed
        tokens = torch.cat([patches, time, self.y_encoder(label).unflatten(1, (2, WIDTH))], 1)
        for layer in self.transformer:
            tokens = layer(tokens)
        return self.unpatch(tokens[:, : SIDE * SIDE].transpose(1, 2).unflatten(2, (SIDE, SIDE)))


class Teacher(FlowViT):
    """A FlowViT that estimates x = 2 y - 1 from x_t = (1 - s) x + s noise, where `time` is 1000 s."""

    def forward(self, x_t: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """Return the estimate of x [B, 1, 28, 28]."""
        s = (time / 1000)[:, None, None, None].clamp(max=1 - 1e-6)  # a finite noise level at pure noise
        sigma = s / (1 - s)
        t = 1 / (1 + sigma / 2)  # half the range, half the noise: (1 - t)/t = sigma/2
        y_t = t * (x_t / (1 - s) + 1) / 2
        return 2 * super().forward(y_t, t.flatten(), label) - 1


def main(weights: str, folder: str) -> None:
    """Write the folder of a teacher from the weights of the network."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    network = Teacher()
    network.load_state_dict(load_file(weights))
    save_file(network.state_dict(), place / "network.safetensors")
    (place / "denoiser.json").write_text(json.dumps(TEACHER, indent=2) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
