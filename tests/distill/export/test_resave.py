"""A copy of an export that diffusers saves again has the code and the card of the export, and loads elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from distill.export import export_generator
from distill.export.format import WITHOUT_CARD
from distill.generator import Generator
from distill.paths import EDM, Flow
from tests.distill.export.test_family import ENTRIES
from tests.distill.export.test_family import make as make_family
from tests.exports import DDPMPP, EDM2, FACTS, OURS, make, make_edm, snippet, strangers
from tests.pipelines import call

MODULES = "diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give diffusers an empty cache of modules, as on another machine."""

    def use(name: str) -> None:
        monkeypatch.setattr(MODULES, str(tmp_path / name))
        for module in [module for module in sys.modules if module.startswith("diffusers_modules")]:
            monkeypatch.delitem(sys.modules, module)

    use("modules")
    return use


def load(folder: Path, **settings: Any) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def export(case: str, pipelines: Callable[[str], Path], folder: Path) -> Generator:
    """Export a generator that needs code, to `folder`."""
    if case in ("edm", "edm2"):
        generator = make_edm({"edm": DDPMPP, "edm2": EDM2}[case], latents=case == "edm2")
        export_generator(generator, folder, FACTS)
    elif case == "unet":
        generator = make(Flow(), "velocity", 0.7, classes=3)
        export_generator(generator, folder, FACTS)
    else:
        (t, scale), source = ENTRIES["scaled"][0], pipelines(case)
        generator = make_family(source, ((t + 1) / 1000 if case == "sd3" else t, scale))
        export_generator(generator, folder, FACTS, teacher=source)
    return generator


def drawn(case: str, pipe: Any) -> torch.Tensor:
    """Return images or latents of a fixed seed."""
    common: dict[str, Any] = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(3)}
    if case.startswith("edm") or case == "unet":
        return torch.as_tensor(pipe(2, output_type="latent", **common).images)
    arguments = call(case, **common, guidance_scale=1.0 if case == "sd15" else 0.0)
    return torch.as_tensor(pipe(**arguments).images)


@pytest.mark.parametrize("case", ["edm", "edm2", "unet", "sd15", "sd3"])
def test_a_copy_loads_elsewhere(
    case: str, pipelines: Callable[[str], Path], tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    export(case, pipelines, tmp_path / "export")
    pipe = load(tmp_path / "export")
    images = drawn(case, pipe)
    other = "sd3" if case != "sd3" else "edm"  # its code takes the same place in diffusers' cache of modules
    export(other, pipelines, tmp_path / "other")
    load(tmp_path / "other")
    pipe.save_pretrained(tmp_path / "copy", max_shard_size="20KB")
    codes = {file.relative_to(tmp_path / "export") for file in (tmp_path / "export").rglob("*.py")}
    for file in {*codes, Path("README.md")}:
        assert (tmp_path / "copy" / file).read_bytes() == (tmp_path / "export" / file).read_bytes()
    assert str(tmp_path) not in (tmp_path / "copy" / "model_index.json").read_text()
    elsewhere("other modules")
    shutil.rmtree(tmp_path / "export")
    again = load(tmp_path / "copy")
    assert torch.allclose(drawn(case, again), images, rtol=0, atol=1e-5)  # shards lie elsewhere in memory
    again.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    elsewhere("third modules")
    half = load(tmp_path / "half", variant="fp16", torch_dtype=torch.float16)
    assert next(half.components[n] for n in ("unet", "transformer") if n in half.components).dtype == torch.float16
    assert (tmp_path / "half" / "README.md").is_file()


def test_a_stock_class_saves_the_schedulers_code(
    pipelines: Callable[[str], Path], tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    from diffusers import StableDiffusionPipeline

    export("sd15", pipelines, tmp_path / "export")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "export", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    images = drawn("sd15", pipe)
    pipe.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "model_index.json").read_text())["scheduler"][0] == "onestep"
    elsewhere("other modules")
    assert torch.equal(drawn("sd15", load(tmp_path / "copy")), images)


def test_a_copy_without_its_card_is_refused(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    export("unet", pipelines, tmp_path / "export")
    assert WITHOUT_CARD not in (tmp_path / "export/README.md").read_text()
    pipe = load(tmp_path / "export")
    for push in (lambda: pipe.save_pretrained(tmp_path / "copy", push_to_hub=True), lambda: pipe.push_to_hub("me/x")):
        with pytest.raises(ValueError, match=r"^push_to_hub: replaces the model card; save the pipeline and upload"):
            push()
    (tmp_path / "export").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"^save_pretrained: the model card in '.*export' cannot be read, and a copy"):
        pipe.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    (tmp_path / "moved" / "README.md").unlink()
    load(tmp_path / "moved").save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "pipeline.py").is_file() and not (tmp_path / "copy" / "README.md").exists()


def test_a_copy_needs_none_of_our_packages(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    cases = {}
    for case in ("edm", "sd15"):
        (tmp_path / case).mkdir()
        export(case, pipelines, tmp_path / case / "export")
        load(tmp_path / case / "export").save_pretrained(tmp_path / case / "copy")
        code = snippet(tmp_path / case / "copy").replace('"export"', '"copy"')
        cases[case] = tmp_path / case / "copy", code.replace("steps=1", "steps=1, output_type='np'")
    (tmp_path / "stranger").mkdir()
    assert all(bool(images.isfinite().all()) for images in strangers(tmp_path / "stranger", cases, OURS).values())


@pytest.mark.parametrize("case", ["unet", "family"])
def test_a_stock_copy_has_no_card(case: str, pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    """No code of ours comes with a stock pipeline, so its card asks to be copied. The copy draws the same samples."""
    if case == "unet":
        export_generator(make(EDM(), "edm", 2.5, classes=3), tmp_path / "export", FACTS)
    else:
        source = pipelines("sd15")
        export_generator(make_family(source, (999.0, 1.0)), tmp_path / "export", FACTS, teacher=source)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "export")
    pipe.save_pretrained(tmp_path / "copy")
    assert f"- {WITHOUT_CARD}\n" in (tmp_path / "export/README.md").read_text()
    assert not (tmp_path / "copy/README.md").exists() and not list((tmp_path / "copy").rglob("*.py"))
    again = DiffusionPipeline.from_pretrained(tmp_path / "copy")
    for one, other in zip(pipe.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(one, other)
    assert pipe.scheduler.config == again.scheduler.config
