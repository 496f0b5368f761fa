"""Exports for others than diffusers: each card's snippet, where only what it needs can be imported, has our samples."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill import Condition, load_generator
from distill.errors import UserError
from distill.export import FORMATS, export_generator, format, to_graph, to_safetensors
from distill.export.format import inputs
from distill.generator import Generator
from distill.installed import install_command
from distill.paths import Flow
from distill.teachers import load_denoiser
from tests.exports import (
    ADM,
    DDPMPP,
    EDM2,
    FACTS,
    NCSNPP,
    OURS,
    ROOT,
    TOLERANCE,
    content,
    make,
    make_edm,
    make_prompted,
    normal,
    samples,
    snippet,
    strangers,
)

Exports = dict[tuple[str, str], tuple[Generator, Path, float]]
"""(format, case) -> (generator, its export, what the self check found)."""

TINY_EDM2 = EDM2 | {"channel_mult": [1], "attn_resolutions": [], "label_dim": 0}
TINY_UNET = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
CASES: dict[str, Callable[[], Generator]] = {
    "unet": lambda: make(Flow(), "velocity", 0.714, classes=3, norm_num_groups=4, add_attention=False, **TINY_UNET),
    "ddpm++": lambda: make_edm(DDPMPP | {"channel_mult": [1], "attn_resolutions": []}),
    "edm2 of latents": lambda: make_edm(TINY_EDM2, t=80.0, latents=True),
    "prompted": make_prompted,
}
BLOCKED = {
    "safetensors": (),
    "onnx": (*OURS, "torch", "diffusers"),
    "torch-export": (*OURS, "diffusers", "safetensors"),
}
FILES = {
    "safetensors": {"denoiser.json", "generator.json"},
    "onnx": {"model.onnx"},
    "torch-export": {"generator.pt2"},
}
PAIRS = [(name, case) for name in BLOCKED for case in CASES if (name, case) != ("safetensors", "prompted")]
every_export = pytest.mark.parametrize(("name", "case"), PAIRS)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root, done = tmp_path_factory.mktemp("exports"), {}
    for name, case in PAIRS:
        generator, folder = CASES[case](), root / f"{case} {name}"
        done[name, case] = (generator, folder, export_generator(generator, folder, FACTS, name))
    return done


@pytest.fixture(scope="module")
def drawn(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Tensor]:
    """What the cards' snippets give, in one process a format."""
    found = {}
    for name, blocked in BLOCKED.items():
        mine = {case: (folder, snippet(folder)) for (other, case), (_, folder, _) in exports.items() if other == name}
        more = {"PYTHONPATH": str(ROOT)} if name == "safetensors" else {}
        got = strangers(tmp_path_factory.mktemp("stranger"), mine, blocked, **more)
        found |= {(name, case): value for case, value in got.items()}
    return found


def numpys_noise(generator: Generator) -> Tensor:
    import numpy as np

    noise = np.random.RandomState(0).standard_normal((8, *generator.denoiser.network.shape))
    return torch.from_numpy(noise.astype(np.float32))


@every_export
def test_the_cards_snippet_gives_our_samples(
    name: str, case: str, exports: Exports, drawn: dict[tuple[str, str], Tensor]
) -> None:
    generator = exports[name, case][0]
    noise = numpys_noise(generator) if name == "onnx" else normal(generator)
    if case == "prompted":
        ones = {key: torch.ones_like(value) for key, value in generator.denoiser.network.example(8).items()}
        ours = generator(noise, ones).detach().clamp(-1, 1)
    else:
        ours = samples(generator, noise)
    theirs = drawn[name, case] if generator.denoiser.latents else 2 * drawn[name, case] - 1
    assert float((ours.abs() == 1).float().mean()) < 0.5
    assert theirs.dtype == torch.float32 and float((theirs - ours).abs().max()) < TOLERANCE


@every_export
def test_what_is_in_the_folder(name: str, case: str, exports: Exports) -> None:
    _, folder, difference = exports[name, case]
    files = set(content(folder))
    weights = (
        {"network.safetensors"} if case != "unet" else {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    )
    assert files == FILES[name] | {"README.md", "export_check.json"} | (weights if name == "safetensors" else set())
    assert 0 <= difference < 5e-6
    check = json.loads((folder / "export_check.json").read_text())
    assert check["format"] == name and check["largest_difference"] == difference
    assert check["batches"] == ([8] if name == "safetensors" else [1, 2, 5])
    for file, data in content(folder).items():  # a folder goes to others: no path of this machine
        assert str(ROOT).encode() not in data and str(folder.parent).encode() not in data, file


def test_batches_of_any_size(exports: Exports) -> None:
    for name, read in (("onnx", to_graph._read_model), ("torch-export", to_graph._read_program)):
        generator, folder, _ = exports[name, "ddpm++"]
        generator.eval()  # it has dropout
        sample = read(folder)
        for batch in (1, 3, 63):
            given = inputs(generator, Condition(labels=torch.arange(batch) % 3), batch, seed=5)
            assert float((sample(given) - generator(given.noise, given.cond).detach()).abs().max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("settings", [DDPMPP, NCSNPP, ADM, EDM2], ids=["ddpm++", "ncsn++", "adm", "edm2"])
@pytest.mark.parametrize("name", ["onnx", "torch-export"])
def test_all_published_kinds_of_network(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    assert export_generator(make_edm(settings), tmp_path / "export", FACTS, name) < 5e-6


def test_conditions_keep_their_names(exports: Exports) -> None:
    import onnxruntime

    for case, names in (
        ("prompted", ["noise", "prompt", "pooled", "mask"]),
        ("ddpm++", ["noise", "labels"]),
        ("edm2 of latents", ["noise"]),
    ):
        session = onnxruntime.InferenceSession(exports["onnx", case][1] / "model.onnx")
        assert [one.name for one in session.get_inputs()] == names
        assert [one.name for one in session.get_outputs()] == ["sample"]
        assert {one.shape[0] for one in session.get_inputs()} == {"batch"}


def test_our_loader_reads_the_weights_back(exports: Exports) -> None:
    for case in ("unet", "edm2 of latents"):
        generator, folder, difference = exports["safetensors", case]
        assert difference == 0
        loaded = load_generator(folder)
        assert (loaded.t, loaded.scale, loaded.training) == (generator.t, generator.scale, False)
        assert loaded.denoiser.latents == generator.denoiser.latents
        assert torch.equal(samples(loaded, normal(generator)), samples(generator, normal(generator)))
        assert load_denoiser(folder).prediction == generator.denoiser.prediction


def test_a_folder_that_holds_no_generator(exports: Exports, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export_generator(CASES["ddpm++"](), folder, FACTS, "safetensors")
    for text, message in (
        ("{", r"^'.*generator.json' is damaged: it is no JSON: "),
        ('{"t": 2.5}', r"^'.*generator.json' is damaged: key 'scale': is missing$"),
        ('{"t": NaN, "scale": 1}', r"^'.*generator.json' is damaged: key 't': must be a finite number, got nan$"),
        ('{"t": 2.5, "scale": 0}', r"^'.*generator.json' is damaged: key 'scale': must be greater than "),
        ('{"t": -1, "scale": 1}', r"^generator: t = -1 is not a noisy time"),
    ):
        (folder / "generator.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_generator(folder)
    (folder / "generator.json").unlink()
    with pytest.raises(UserError, match=r"^'.*export' is no generator's: it has no generator.json$"):
        load_generator(folder)


def test_the_authors_code_is_told_how_to_load_its_network(exports: Exports) -> None:
    card = (exports["safetensors", "ddpm++"][1] / "README.md").read_text()
    assert "state dict of `EDMPrecond`" in card and '"model_type": "SongUNet"' in card
    assert "x = network(2.5 * torch.randn(8, *(3, 8, 8)), torch.tensor(2.5), torch.eye(3)[labels])" in card
    assert "authors" not in (exports["safetensors", "unet"][1] / "README.md").read_text()


@pytest.mark.parametrize("name", ["safetensors", "torch-export"])
@pytest.mark.parametrize("before", ["nothing", "an export"])
def test_a_wrong_export_is_refused_and_changes_nothing(
    name: str, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, generator = tmp_path / "export", make_prompted() if name == "torch-export" else CASES["ddpm++"]()
    if before == "an export":
        export_generator(generator, folder, FACTS, name)
    old = content(tmp_path)
    right = format.constants
    monkeypatch.setattr(to_graph, "constants", lambda one: right(one) | {"scale": 2.501})
    monkeypatch.setattr(to_safetensors, "Generator", lambda denoiser, t, scale: Generator(denoiser, t, 1.001 * scale))
    with pytest.raises(UserError, match=rf"^export: the samples of the {name} export differ .* by [\d.e-]+, more than"):
        export_generator(generator, folder, FACTS, name)
    assert content(tmp_path) == old
    assert list(tmp_path.iterdir()) == ([folder] if before == "an export" else [])


def test_a_batch_that_the_graph_fixed_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace without a dynamic batch fits one size alone."""
    real = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda module, given, dynamic_shapes: real(module, given))
    with pytest.raises(UserError, match=r"^export: torch-export: AssertionError: Guard failed"):
        export_generator(make_prompted(), tmp_path / "export", FACTS, "torch-export")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^--format: must be one of diffusers, safetensors, lora, onnx, torch-export, got 'gguf'$"
    ):
        export_generator(make_prompted(), tmp_path / "export", FACTS, "gguf")
    monkeypatch.setattr(to_graph, "find_spec", lambda name: None if name == "onnxscript" else sys)
    hint = re.escape(f"--format onnx: needs onnxscript; `{install_command('onnx')}`")
    with pytest.raises(UserError, match=f"^{hint}$"):
        export_generator(make_prompted(), tmp_path / "export", FACTS, "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("diffusers", "lora")])
def test_the_card_names_the_model_of_the_hub(name: str, tmp_path: Path) -> None:
    generator: Any = make_prompted() if name != "safetensors" else CASES["ddpm++"]()
    export_generator(generator, tmp_path / "export", FACTS, name, hub="me/tiny")
    code = snippet(tmp_path / "export")
    assert 'snapshot_download("me/tiny")' in code and "In the folder" not in (tmp_path / "export/README.md").read_text()
