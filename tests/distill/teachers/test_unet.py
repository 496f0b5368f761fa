"""A UNet denoiser comes back from its folder bit for bit, and a damaged folder is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch

from distill import EDM, VP, Condition, Denoiser, DiscreteVP, Flow, Path, UserError
from distill.teachers import UNet, build_unet, load_denoiser, save_denoiser

CONFIG: dict[str, Any] = {
    "sample_size": 4,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "norm_num_groups": 4,
    "add_attention": False,
}
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1])
LABELLED = CONFIG | {"num_class_embeds": 3}


def denoiser(path: Path, config: dict[str, Any] = LABELLED) -> Denoiser:
    return Denoiser(build_unet(config), path, "v", sigma_data=0.37).eval()


@pytest.fixture
def folder(tmp_path: FilePath) -> FilePath:
    save_denoiser(denoiser(EDM()), tmp_path / "teacher")
    return tmp_path / "teacher"


def refusal(folder: FilePath) -> str:
    with pytest.raises(UserError) as error:
        load_denoiser(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "path",
    [
        EDM(),
        VP(0.2, 15.5),
        Flow(),
        DiscreteVP(0.001, 0.02, "linear", 500),
        DiscreteVP(betas=(0.1, 1 / 3, 0.7)),
    ],
    ids=str,
)
def test_round_trip_is_bit_equal(path: Path, tmp_path: FilePath) -> None:
    saved = denoiser(path)
    save_denoiser(saved, tmp_path / "a" / "b")
    loaded = load_denoiser(tmp_path / "a" / "b")
    assert loaded.path == path
    assert (loaded.prediction, loaded.sigma_data, loaded.autocast_dtype) == ("v", 0.37, None)
    assert not loaded.training
    ours, theirs = saved.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    t = path.time(torch.tensor([0.1, 0.7, 2.0], dtype=torch.float64))
    assert torch.equal(saved(X, t, LABELS), loaded(X, t, LABELS))
    assert not torch.equal(saved(X, t, LABELS), saved(X, t, LABELS.flip(0)))


def test_null_condition_and_latents(tmp_path: FilePath) -> None:
    """Stated where they are, absent elsewhere; the null condition is a label of the network, not a class."""
    network = build_unet(LABELLED, null=2)
    save_denoiser(Denoiser(network, EDM(), "edm", latents=True), tmp_path / "both")
    loaded = load_denoiser(tmp_path / "both")
    assert (loaded.network.null_label, loaded.network.classes, loaded.latents) == (2, 2, True)
    assert loaded.null(LABELS)["labels"].tolist() == [2, 2, 2]
    description = json.loads((tmp_path / "both/denoiser.json").read_text())
    assert (description["classes"], description["null"], description["latents"]) == (2, 2, True)
    save_denoiser(denoiser(EDM()), tmp_path / "neither")
    assert not {"null", "latents"} & set(json.loads((tmp_path / "neither/denoiser.json").read_text()))
    loaded = load_denoiser(tmp_path / "neither")
    assert (loaded.network.null_label, loaded.network.classes, loaded.latents) == (None, 3, False)


def test_a_null_condition_that_the_network_has_not(folder: FilePath, tmp_path: FilePath) -> None:
    file = folder / "denoiser.json"
    for null in (3, 0):
        file.write_text(edit(lambda d, null=null: d.update(null=null))(file.read_text()))
        line = f"teacher: '{file}': null: must be the label after the network's classes, got {null!r}"
        assert refusal(folder) == line
    save_denoiser(denoiser(EDM(), CONFIG), tmp_path / "plain")
    file = tmp_path / "plain/denoiser.json"
    file.write_text(edit(lambda d: d.update(null=0))(file.read_text()))
    assert refusal(tmp_path / "plain").endswith("null: must be the label after the network's classes, got 0")


def test_diffusers_reads_the_folder(folder: FilePath) -> None:
    from diffusers import UNet2DModel

    theirs = UNet2DModel.from_pretrained(folder, subfolder="unet")
    network = load_denoiser(str(folder)).network
    time = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(theirs(X, time, class_labels=LABELS).sample, network(X, time, Condition(labels=LABELS)))


def test_shape_and_classes() -> None:
    conditional, plain = build_unet(LABELLED), build_unet(CONFIG | {"sample_size": (4, 8)})
    assert (conditional.shape, conditional.classes) == ((2, 4, 4), 3)
    assert (plain.shape, plain.classes) == ((2, 4, 8), 0)
    assert plain(torch.ones(1, 2, 4, 8), torch.ones(1), Condition()).shape == (1, 2, 4, 8)


def test_a_config_diffusers_refuses() -> None:
    for change in ({"down_block_types": ("NoBlock",)}, {"blocks": 3}, {"block_out_channels": (8, 8)}):
        with pytest.raises(UserError, match=r"^unet: diffusers refuses this UNet2DModel config: [^\n]+$"):
            build_unet(CONFIG | change)


def test_missing_folder(tmp_path: FilePath) -> None:
    message = f"teacher: no folder '{tmp_path / 'none'}'; `distill teacher` trains one, `distill import` fetches one"
    assert refusal(tmp_path / "none") == message


def test_missing_description(folder: FilePath) -> None:
    (folder / "denoiser.json").unlink()
    message = f"teacher: '{folder / 'denoiser.json'}' is missing; it states path and prediction kind of the network"
    assert refusal(folder) == message


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        description = json.loads(text)
        change(description)
        return json.dumps(description)

    return edited


DAMAGED: dict[str, tuple[Callable[[str], str], str]] = {
    "cut": (lambda text: text[:40], " is damaged: it is no JSON: EOF while parsing a string at line 5 column 3"),
    "empty": (lambda text: "", " is damaged: it is no JSON: EOF while parsing a value"),
    "list": (lambda text: "[]", " is damaged: must be an object, got []"),
    "null": (lambda text: "null", " is damaged: must be an object, got None"),
    "deep": (lambda text: "[" * 200_000, " is damaged: it is no JSON: recursion limit exceeded"),
    "long": (lambda text: f'{{"path": {"1" * 10_000_000}}}', " is damaged: it is no JSON: number out of range"),
    "a zero byte": (lambda text: text + "\0", " is damaged: it is no JSON: trailing characters"),
    "half a letter": (lambda text: '{"path": "\\ud800"}', " is damaged: it is no JSON: "),
    "twice": (lambda text: text.replace("{", '{"sigma_data": 1,', 1), " is damaged: key 'sigma_data' stands twice"),
    "unknown": (edit(lambda d: d.update(nul=3)), " is damaged: key 'nul': is no key of this file"),
    "no path": (edit(lambda d: d.pop("path")), " is damaged: key 'path': is missing"),
    "no kind": (edit(lambda d: d.pop("prediction")), " is damaged: key 'prediction': is missing"),
    "path in words": (edit(lambda d: d.update(path="edm")), " is damaged: key 'path': "),
    "path without name": (edit(lambda d: d.update(path={})), " is damaged: key 'path': has no name"),
    "path field": (
        edit(lambda d: d["path"].update(beta=1)),
        " is damaged: key 'path.beta': is no key of this file",
    ),
    "sigma_data": (
        edit(lambda d: d.update(sigma_data="wide")),
        " is damaged: key 'sigma_data': must be a valid number",
    ),
    **{
        f"sigma_data {value}": (
            edit(lambda d, value=value: d.update(sigma_data=value)),
            " is damaged: key 'sigma_data': ",
        )
        for value in (float("nan"), float("inf"), 0, -1, 1e300, True, None, [0.5])
    },
    "path name": (
        edit(lambda d: d["path"].update(name="ve")),
        " is damaged: key 'path': name must be one of 'edm', 'vp', 'discrete_vp', ",
    ),
    "path of a list": (edit(lambda d: d["path"].update(name=["vp"])), " is damaged: key 'path': "),
    "schedule": (
        edit(lambda d: d.update(path={"name": "discrete_vp", "schedule": "cosine"})),
        ": schedule: must be 'scaled_linear' or 'linear', got 'cosine'",
    ),
    **{
        f"steps {value}": (
            edit(lambda d, value=value: d.update(path={"name": "discrete_vp", "steps": value})),
            ": steps: must be from 1 to 100,000, got ",
        )
        for value in (0, -1, 10**9)
    },
    "half a step": (
        edit(lambda d: d.update(path={"name": "discrete_vp", "steps": 1e3 + 0.5})),
        " is damaged: key 'path.steps': must be a valid integer",
    ),
    "betas": (
        edit(lambda d: d.update(path={"name": "discrete_vp", "betas": [0.1, 2.0]})),
        ": betas: must lie in (0, 1], go from 0.1 to 2",
    ),
    "betas in words": (
        edit(lambda d: d.update(path={"name": "discrete_vp", "betas": "0.1"})),
        " is damaged: key 'path.betas': must be ",
    ),
    "a beta of 0": (
        edit(lambda d: d.update(path={"name": "discrete_vp", "beta_start": -0.1})),
        ": betas: must lie in (0, 1], go from ",
    ),
    "path value": (
        edit(lambda d: d.update(path={"name": "vp", "beta_max": "big"})),
        " is damaged: key 'path.beta_max': must be a valid number, got 'big'",
    ),
    "no number": (
        edit(lambda d: d.update(path={"name": "vp", "beta_min": float("nan")})),
        " is damaged: key 'path.beta_min': must be a finite number, got nan",
    ),
    **{
        f"beta_max {value}": (
            edit(lambda d, value=value: d.update(path={"name": "vp", "beta_max": value})),
            ": beta_min and beta_max: must be 0 <= beta_min <= beta_max <= 1000 and not 0, got 0.1 and ",
        )
        for value in (-20.0, 0.05, 1e300)
    },
    "latents": (edit(lambda d: d.update(latents="no")), " is damaged: key 'latents'"),
    "latents of other lengths": (
        edit(lambda d: d.update(latents={"mean": [0.0], "std": [1.0, 1.0]})),
        ": latents: must have as many finite means as positive stds, got [0.0] and [1.0, 1.0]",
    ),
    "prediction": (
        edit(lambda d: d.update(prediction="epsilon")),
        " is damaged: key 'prediction': must be 'x0', 'eps', 'v', 'velocity', 'score' or 'edm', got 'epsilon'",
    ),
    **{
        f"null {value}": (edit(lambda d, value=value: d.update(null=value)), " is damaged: key 'null': must be ")
        for value in ("3", -1, 2.5, True)
    },
    "network of a list": (
        edit(lambda d: d.update(network={"name": ["edm"]})),
        " is damaged: key 'network.name': must be ",
    ),
    "network in words": (edit(lambda d: d.update(network="edm")), " is damaged: key 'network': must be an object"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_description(folder: FilePath, how: str) -> None:
    file = folder / "denoiser.json"
    damage, message = DAMAGED[how]
    file.write_text(damage(file.read_text()))
    assert refusal(folder).startswith(f"teacher: '{file}'{message}")


def test_damaged_weights(folder: FilePath) -> None:
    (weights,) = (folder / "unet").glob("*.safetensors")
    content = weights.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\xff" * 100):
        weights.write_bytes(damaged)
        assert refusal(folder).startswith(f"teacher: cannot read '{folder / 'unet'}' (UNet2DModel): ")
    weights.unlink()
    assert refusal(folder).startswith(f"teacher: cannot read '{folder / 'unet'}': ")


def test_missing_network(folder: FilePath) -> None:
    (folder / "unet").rename(folder / "elsewhere")
    assert refusal(folder).startswith(f"teacher: cannot read '{folder / 'unet'}': ")


def test_weights_of_another_network(folder: FilePath) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"num_class_embeds": 3', '"num_class_embeds": null'))
    name = "class_embedding.weight"
    assert refusal(folder) == f"teacher: the weights in '{folder / 'unet'}' do not fit their config, first at {name}"
    wider = build_unet(LABELLED | {"block_out_channels": (16,)})
    wider.unet.save_config(folder / "unet")
    assert refusal(folder).startswith("teacher: ")
    assert str(folder / "unet") in refusal(folder)


def test_unet_is_called_by_its_interface() -> None:
    network = build_unet(CONFIG)
    assert isinstance(network, UNet)
    x = network(X, torch.tensor([1.0, 2.0, 3.0]), Condition())
    assert x.shape == X.shape
