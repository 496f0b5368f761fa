"""EDM's and EDM2's networks equal the authors' own, outputs and input gradients (tests/golden/README.md)."""

from __future__ import annotations

import json
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from distill import EDM, Denoiser, Random
from distill.conditions import Condition
from distill.teachers.edm import EDM2Net, EDMNet

GOLDEN = FilePath(__file__).parents[2] / "golden"
TOLERANCE = 5e-6  # of the largest entry


def load(name: str) -> tuple[dict[str, Tensor], EDMNet | EDM2Net]:
    """Return the numbers, and the network with the stored weights, read strictly."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        golden = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        settings: dict[str, Any] = json.loads(file.metadata()["init_kwargs"])
    for key in ("use_fp16", "sigma_data"):
        settings.pop(key, None)
    network = (EDM2Net if name.startswith("edm2") else EDMNet)(**settings)
    state = {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}
    network.load_state_dict(state or seeded_weights(network))
    return golden, network


def seeded_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return weights that follow from their names.

    Biases and scales of norms are near 0 and 1, other weights are of size 1/sqrt(inputs).
    """
    state = {}
    for name, value in network.state_dict().items():
        if name.endswith("resample_filter"):
            state[name] = value
            continue
        normal = Random.at(0, torch.zeros(1, dtype=torch.int64)).stream(name).normal(value.numel()).reshape(value.shape)
        inputs = value[0].numel() if value.ndim > 1 else 25
        state[name] = normal / inputs**0.5 + (1.0 if ".norm" in name and name.endswith("weight") else 0.0)
    return state


def condition(golden: dict[str, Tensor], augmented: bool) -> Condition:
    cond = Condition(labels=golden["class_labels"].argmax(1)) if "class_labels" in golden else Condition()
    return Condition(cond | {"augment": golden["augment_labels"]}) if augmented else cond


def assert_same(ours: Tensor, golden: Tensor) -> None:
    assert ours.dtype == torch.float32
    assert ours.shape == golden.shape
    assert float((ours.detach() - golden).abs().max() / golden.abs().max()) < TOLERANCE


@pytest.mark.parametrize(
    "name", ["edm_ddpmpp", "edm_ddpmpp_uncond", "edm_ncsnpp", "edm_adm", "edm2_cond", "edm2_uncond"]
)
def test_outputs_and_input_gradients(name: str) -> None:
    golden, network = load(name)
    denoiser = Denoiser(network, EDM(), "edm").eval()
    x = golden["x"].requires_grad_()
    denoised = denoiser(x, golden["sigma"], condition(golden, "augment_labels" in golden))
    assert_same(denoised, golden["denoised"])
    assert_same(torch.autograd.grad((denoised * golden["cotangent"]).sum(), x)[0], golden["input_gradient"])
    if "augment_labels" in golden:
        assert_same(denoiser(x, golden["sigma"], condition(golden, False)), golden["denoised_without_augment"])


@pytest.mark.parametrize("name", ["edm2_cond", "edm2_uncond"])
def test_forced_weight_normalisation(name: str) -> None:
    """No forward touches a weight; one `after_step` gives the state that the authors' training forward leaves."""
    golden, network = load(name)
    denoiser = Denoiser(network, EDM(), "edm").train()
    assert_same(network.logvar(250 * golden["sigma"].log()), golden["logvar"].flatten())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    denoiser(golden["x"], golden["sigma"], condition(golden, False))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.after_step()
    after = network.state_dict()
    changed = {key for key in after if f"ratio.{key}" in golden}
    head = "logvar_linear.weight"  # which the authors' forward normalises where it is called
    assert changed and all(torch.equal(after[key], before[key]) for key in after.keys() - changed - {head})
    assert float(after[head].square().mean().sqrt()) == pytest.approx(1, abs=2e-4)  # 1e-4 is in the denominator
    for key in changed:
        scaled = before[key] * golden[f"ratio.{key}"].reshape(-1, *[1] * (before[key].ndim - 1))
        assert_same(after[key], scaled)
    denoised = denoiser(golden["x"], golden["sigma"], condition(golden, False))
    assert_same(denoised, golden["denoised_train_mode"])
