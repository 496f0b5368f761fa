"""Exports for diffusers: a process that cannot import our packages runs the card's own snippet and gets our images."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, DiffusionPipeline
from diffusers.utils import logging
from safetensors.torch import load_file
from torch import Tensor

from distill.denoiser import Denoiser
from distill.encoders.latents import Normalisation
from distill.errors import UserError
from distill.export import export_generator, to_diffusers
from distill.generator import Generator
from distill.paths import EDM, VP, ContinuousVP, DiscreteVP, Flow
from distill.teachers import build_unet
from tests.exports import (
    ADM,
    DDPMPP,
    EDM2,
    FACTS,
    NCSNPP,
    OURS,
    TOLERANCE,
    UNET,
    content,
    make,
    make_edm,
    make_prompted,
    normal,
    samples,
    snippet,
    strangers,
)

Exports = dict[str, tuple[Generator, Path, float]]
"""Case -> (generator, its export, what the self check found)."""

CASES: dict[str, Callable[[], Generator]] = {
    "edm conditional": lambda: make(EDM(), "edm", 2.5, classes=3),
    "edm unconditional": lambda: make(EDM(), "edm", 80.0, channels=1),
    "flow t=0.714": lambda: make(Flow(), "velocity", 0.714, classes=3),
    "flow t=1": lambda: make(Flow(), "velocity", 1.0),
    "vp eps": lambda: make(VP(), "eps", 0.25, classes=10, channels=1),
    "discrete vp v": lambda: make(DiscreteVP(), "v", 625.0),
    "continuous vp v": lambda: make(ContinuousVP(), "v", 2.5),
    "unet of latents": lambda: make(EDM(), "edm", 2.5, latents=True),
    "ddpm++": lambda: make_edm(DDPMPP),
    "ncsn++": lambda: make_edm(NCSNPP, t=80.0),
    "adm": lambda: make_edm(ADM),
    "edm2 of latents": lambda: make_edm(EDM2, latents=Normalisation((0.0,) * 2, (1.0,) * 2)),
}
NETWORKS = {"ddpm++": "edm", "ncsn++": "edm", "adm": "edm", "edm2 of latents": "edm2"}
LATENTS = {"unet of latents", "edm2 of latents"}
STOCK = {"edm conditional", "edm unconditional"}
CHECKED_ONLY: dict[str, Callable[[], Generator]] = {
    "edm with its own scale": lambda: make(EDM(), "edm", 2.5, scale=2.0),
    "edm not square": lambda: make(EDM(), "edm", 2.5, sample_size=(8, 4)),
    "edm x0": lambda: make(EDM(), "x0", 2.5),
    "vp score": lambda: make(VP(), "score", 0.25, scale=1.0),
    "flow edm": lambda: make(Flow(), "edm", 0.7, classes=2),
}


@pytest.fixture(scope="module", autouse=True)
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """diffusers copies each folder's code to one place of the user's home, which parallel tests must not share."""
    cache = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(cache))
        yield cache


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    root = tmp_path_factory.mktemp("exports")
    done = {}
    for case, build in CASES.items():
        generator = build()
        done[case] = (generator, root / case, export_generator(generator, root / case, FACTS))
    return done


@pytest.fixture(scope="module")
def drawn(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the cards' snippets give in a process of their own, as pictures and as tensors."""
    cases = {}
    for case, (_, folder, _) in exports.items():
        code = snippet(folder)
        cases[f"{case} pil"] = folder, code
        cases[f"{case} pt"] = folder, code if case in LATENTS else code.replace("steps=1", "steps=1, output_type='pt'")
    return strangers(tmp_path_factory.mktemp("stranger"), cases, OURS)


@pytest.mark.parametrize("case", CASES)
def test_the_cards_snippet_gives_our_images_without_our_packages(
    case: str, exports: Exports, drawn: dict[str, Tensor]
) -> None:
    generator, _, _ = exports[case]
    ours = samples(generator, normal(generator))
    if case in LATENTS:
        assert float((drawn[f"{case} pt"] - ours).abs().max()) < TOLERANCE
        return
    assert float((2 * drawn[f"{case} pt"] - 1 - ours).abs().max()) < TOLERANCE
    levels = ((ours / 2 + 0.5) * 255).permute(0, 2, 3, 1)
    pictures = drawn[f"{case} pil"].reshape(levels.shape)  # PIL has no channel axis for grey
    assert float((pictures - levels).abs().max()) < 0.51


@pytest.mark.parametrize("case", CASES)
def test_the_cases_could_show_a_difference(case: str, exports: Exports) -> None:
    """Not saturated, and different with other noise and other labels."""
    generator, _, _ = exports[case]
    noise = normal(generator)
    ours = samples(generator, noise)
    assert float((ours.abs() == 1).float().mean()) < 0.5
    assert float((ours - samples(generator, normal(generator, seed=1))).abs().max()) > 0.1
    if generator.denoiser.network.classes:
        same = samples(generator, noise[:1].expand_as(noise))
        assert float((same[0] - same[1]).abs().max()) > 0.01


@pytest.mark.parametrize("case", CASES)
def test_the_difference_found_is_returned_and_stored(case: str, exports: Exports) -> None:
    _, folder, difference = exports[case]
    assert 0 <= difference < 2e-6
    check = json.loads((folder / "export_check.json").read_text())
    found = {"largest_difference": difference, "tolerance": TOLERANCE}
    assert check == {"format": "diffusers", **found, "batches": [8], "seed": 0}


@pytest.mark.parametrize("case", CASES)
def test_code_travels_only_where_no_stock_pipeline_is_exact(case: str, exports: Exports) -> None:
    _, folder, _ = exports[case]
    files = {"README.md", "export_check.json", "model_index.json"}
    files |= {"unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    files |= {f"unet/{NETWORKS[case]}.py"} if case in NETWORKS else set()
    assert set(content(folder)) == files | ({"scheduler/scheduler_config.json"} if case in STOCK else {"pipeline.py"})
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    if case not in STOCK:
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("case", CHECKED_ONLY)
def test_other_generators_export_too(case: str, tmp_path: Path) -> None:
    assert export_generator(CHECKED_ONLY[case](), tmp_path / "export", FACTS) < 2e-6
    assert (tmp_path / "export" / "pipeline.py").is_file()


def test_a_bfloat16_training_exports_its_float32_weights_and_stays_as_it_is(tmp_path: Path) -> None:
    generator = make(EDM(), "edm", 2.5)
    generator.denoiser.autocast_dtype = torch.bfloat16
    generator.train()
    assert export_generator(generator, tmp_path / "export", FACTS) < 2e-6
    assert generator.denoiser.autocast_dtype == torch.bfloat16
    assert all(module.training for module in generator.modules())
    assert all(weight.requires_grad for weight in generator.parameters())


def test_float64_weights_are_stored_in_float32(tmp_path: Path) -> None:
    generator = make(Flow(), "velocity", 0.714).double()
    assert export_generator(generator, tmp_path / "export", FACTS) < 2e-6
    weights = load_file(tmp_path / "export" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert {weight.dtype for weight in generator.parameters()} == {torch.float64}


def tamper_scheduler(key: str, factor: float) -> Callable[[Generator], Any]:
    right = to_diffusers._scheduler

    def wrong(generator: Generator) -> Any:
        config = dict(right(generator).config)
        return CMStochasticIterativeScheduler.from_config({**config, key: factor * config[key] + 0.002 * (not factor)})

    return wrong


def tamper_settings(key: str, factor: float) -> Callable[[Generator], dict[str, float]]:
    right = to_diffusers.constants
    return lambda generator: {**right(generator), key: factor * right(generator)[key]}


TAMPERED = [
    ("edm conditional", "_scheduler", tamper_scheduler("sigma_max", 1.001)),
    ("edm conditional", "_scheduler", tamper_scheduler("sigma_data", 1.001)),
    ("edm conditional", "_scheduler", tamper_scheduler("sigma_min", 0)),  # 0.002, the default
    *(
        ("flow t=0.714", "constants", tamper_settings(key, 1.001))
        for key in ("scale", "timestep", "input_scale", "from_x_t", "from_output")
    ),
]


@pytest.mark.parametrize(("case", "name", "wrong"), TAMPERED)
@pytest.mark.parametrize("before", ["nothing", "an export"])
def test_a_wrong_export_is_refused_and_changes_nothing(
    case: str, name: str, wrong: Callable[..., Any], before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, generator = tmp_path / "export", CASES[case]()
    if before == "an export":
        export_generator(generator, folder, FACTS)
    old = content(tmp_path)
    monkeypatch.setattr(to_diffusers, name, wrong)
    with pytest.raises(UserError, match=r"differ from the generator's by [\d.e-]+, more than 0.0001"):
        export_generator(generator, folder, FACTS)
    assert content(tmp_path) == old
    assert list(tmp_path.iterdir()) == ([folder] if before == "an export" else [])


@pytest.mark.parametrize(("first", "second"), [(DDPMPP, ADM), (EDM2, EDM2)], ids=["edm", "edm2"])
def test_a_network_runs_after_another_of_its_file_was_loaded(
    first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    """diffusers executes the file again, in the same module: its classes are new ones then."""
    drawn = []
    for name, settings in (("first", first), ("second", second)):
        export_generator(make_edm(settings), tmp_path / name, FACTS)
    for name in ("first", "second"):
        pipe = DiffusionPipeline.from_pretrained(tmp_path / name, trust_remote_code=True)
        noise = torch.ones(2, first["img_channels"], 8, 8)
        drawn.append((pipe, pipe(2, [0, 1], latents=noise, output_type="pt").images))
    pipe, before = drawn[0]
    assert torch.equal(pipe(2, [0, 1], latents=noise, output_type="pt").images, before)


@pytest.mark.parametrize("case", ["ddpm++", "ncsn++", "edm2 of latents"])
def test_half_precision_runs(case: str, exports: Exports) -> None:
    generator, folder, _ = exports[case]
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
    assert pipe.unet.dtype == torch.bfloat16
    labels = [i % generator.denoiser.network.classes for i in range(8)] if generator.denoiser.network.classes else None
    rough = pipe(8, labels, latents=normal(generator), output_type="latent").images
    exact = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert float((rough - exact(8, labels, latents=normal(generator), output_type="latent").images).abs().max()) < 0.1


def test_images_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    generator = make(EDM(), "edm", 2.5)
    with torch.no_grad():
        generator.denoiser.network.unet.conv_in.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="by nan"):
        export_generator(generator, tmp_path / "export", FACTS)
    assert list(tmp_path.iterdir()) == []


def two_lines(*_: object) -> None:
    raise OSError("two\nlines")


def test_a_folder_that_diffusers_cannot_read_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_diffusers, "_write_custom", lambda generator, write_part, folder: folder.mkdir())
    with pytest.raises(UserError, match=r"^export: diffusers: OSError: .*model_index.json") as refused:
        export_generator(make(Flow(), "velocity", 1.0), tmp_path / "export", FACTS)
    assert f"{tmp_path}/export" in str(refused.value) and "staging" not in str(refused.value)
    monkeypatch.setattr(to_diffusers, "_read", lambda folder, trust: two_lines)
    with pytest.raises(UserError, match=r"^export: diffusers: OSError: two lines$"):
        export_generator(make(Flow(), "velocity", 1.0), tmp_path / "export", FACTS)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "export"
    export_generator(make(EDM(), "edm", 2.5), folder, FACTS)
    export_generator(make(Flow(), "velocity", 1.0), folder, FACTS)
    assert not (folder / "scheduler").exists() and (folder / "pipeline.py").is_file()
    assert list(folder.parent.iterdir()) == [folder]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    for mine in (tmp_path / "thesis", tmp_path / "thesis" / "chapter"):
        with pytest.raises(UserError, match="exists and is not an export"):
            export_generator(make(EDM(), "edm", 2.5), mine, FACTS)
    assert content(tmp_path / "thesis") == {"chapter": b"years of work"}


def test_an_interrupted_replacement_puts_the_old_export_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, generator = tmp_path / "export", make(EDM(), "edm", 2.5)
    export_generator(generator, folder, FACTS)
    old, rename = content(folder), os.rename

    def interrupted(source: Path, target: Path) -> None:
        if target == folder and source.parent.parent == tmp_path and source.name == "export":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_generator(generator, folder, dataclasses.replace(FACTS, name="Later"))
    assert content(folder) == old and list(tmp_path.iterdir()) == [folder]


def test_a_killed_replacement_is_put_back_by_the_next_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL between the two renames leaves the earlier export in the staging folder alone."""
    folder, generator = tmp_path / "export", make(EDM(), "edm", 2.5)
    export_generator(generator, folder, FACTS)
    old, staging = content(folder), tmp_path / ".export-staging"
    staging.mkdir()
    folder.rename(staging / "old")
    monkeypatch.setattr("distill.export.export.largest_difference", lambda *_: float("nan"))
    with pytest.raises(UserError, match="was not written"):
        export_generator(generator, folder, FACTS)
    assert content(folder) == old and list(tmp_path.iterdir()) == [folder]


def test_two_exports_to_one_folder_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object) -> None:
        export_generator(make(EDM(), "edm", 2.5), tmp_path / "export", FACTS)

    monkeypatch.setattr("distill.export.export.largest_difference", export)
    with pytest.raises(UserError, match=f"another process exports to '{tmp_path}/export' now"):
        export()
    assert list(tmp_path.iterdir()) == []


def test_other_networks_are_refused(tmp_path: Path) -> None:
    refusal = r"^export: no diffusers pipeline takes a network of type Prompted; give another --format$"
    with pytest.raises(UserError, match=refusal):
        export_generator(make_prompted(), tmp_path / "export", FACTS)


@pytest.mark.parametrize("shown", [True, False])
def test_diffusers_progress_bars_are_left_as_they_were(shown: bool, tmp_path: Path) -> None:
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        export_generator(make(EDM(), "edm", 2.5), tmp_path / "export", FACTS)
        assert logging.is_progress_bar_enabled() == shown
    finally:
        logging.enable_progress_bar()


def card(folder: Path) -> str:
    return (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize("case", CASES)
def test_the_cards_snippet_is_three_lines_that_name_what_is_needed(case: str, exports: Exports) -> None:
    generator, folder, _ = exports[case]
    code = snippet(folder)
    assert len(code.splitlines()) == 3
    assert ("trust_remote_code=True" in code) == (case not in STOCK)
    assert ("`pipeline.py` comes with the weights" in card(folder)) == (case not in {*STOCK, *NETWORKS})
    assert ("the network's own file in `unet/` come with" in card(folder)) == (case in NETWORKS)
    assert ("its images are then wrong" in card(folder)) == (case in STOCK)  # of more steps
    assert ("class_labels" in code) == (generator.denoiser.network.classes > 0)


@pytest.mark.parametrize("kind", ["edm", "velocity"])
def test_a_null_label_is_no_class_of_the_pipeline(kind: Any, tmp_path: Path) -> None:
    """Also where ConsistencyModelPipeline computes the generator: it would draw the null label among the others."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        unet = build_unet({**UNET, "in_channels": 3, "out_channels": 3, "num_class_embeds": 4}, null=3)
    path = EDM() if kind == "edm" else Flow()
    generator = Generator(Denoiser(unet, path, kind), 2.5 if kind == "edm" else 1.0)
    export_generator(generator, tmp_path / "out", FACTS)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["classes"] == 3 and index["_class_name"] == ["pipeline", "OneStepPipeline"]
