"""distill export: formats, defaults, and the hub, which is a server of this process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import trainers
from distill import EDM, Denoiser, UserError, load_generator
from distill.export import export_generator
from distill.teachers import OwnNet, save_denoiser
from tests.exports import (
    DDPMPP,
    FACTS,
    OURS,
    TOLERANCE,
    content,
    make_edm,
    normal,
    samples,
    snippet,
    strangers,
)
from tests.hub import TOKEN, Hub, serve
from tests.launch.conftest import Command
from tests.tiny import distill as start
from tests.tiny import recipe
from trainers.runs.load import load_trained

HIDDEN_TOKEN = "huggingface_hub.constants.HF_TOKEN_PATH"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Where this process's client and those of its children go, logged in."""
    with serve() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_each_format_has_its_folder(student: Path, distill: Command) -> None:
    for name, folder in (
        ("diffusers", "export"),
        ("safetensors", "export-safetensors"),
        ("torch-export", "export-torch-export"),
    ):
        result = distill("export", student, "--format", name)
        assert result.code == 0, result.err
        assert f"exported to {student / folder} after 16 images" in " ".join(result.out.split())
        assert (student / folder / "export_check.json").is_file()
    generator, noise = load_generator(student / "export-safetensors"), torch.randn(2, 1, 8, 8)
    labels = torch.tensor([3, 7])
    assert torch.equal(generator(noise, labels), load_trained(student).sampler(noise, labels))


def test_pushed_and_loaded_from_the_hub(
    student: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes of their own: upload, then the card's snippet, which finds the model by its id."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    more = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": TOKEN}
    job = start(["export", str(student), "--push-to-hub", "me/tiny", "--private"], tmp_path / "log", **more)
    assert job.finish() == 0, job.text
    assert f"pushed to {hub.url}/me/tiny" in job.text
    assert hub.models["me/tiny"]["private"] and hub.models["me/tiny"]["files"] == content(student / "export")
    code = snippet(student / "export")
    assert 'from_pretrained("me/tiny")' in code
    edm = make_edm(DDPMPP)
    export_generator(edm, tmp_path / "edm", FACTS, hub="me/edm")
    hub.models["me/edm"] = {"private": False, "files": content(tmp_path / "edm")}
    (tmp_path / "stranger").mkdir()
    cases = {"hub": (tmp_path / "nowhere", code), "folder": (student / "export", code.replace("me/tiny", "export"))}
    cases["code"] = tmp_path / "nowhere", snippet(tmp_path / "edm").replace("steps=1", "steps=1, output_type='pt'")
    drawn = strangers(tmp_path / "stranger", cases, OURS, **more)
    assert torch.equal(drawn["hub"], drawn["folder"])
    assert float((2 * drawn["code"] - 1 - samples(edm, normal(edm))).abs().max()) < TOLERANCE


def mistake(distill: Command, *arguments: object) -> str:
    """The one line on stderr."""
    result = distill(*arguments)
    assert result.code == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("distill: ")]
    return line.removeprefix("distill: ")


def test_what_cannot_be_pushed(student: Path, distill: Command, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push = ("export", student, "--push-to-hub")
    assert mistake(distill, *push, "tiny") == "--push-to-hub: must be USER/NAME or ORGANISATION/NAME, got 'tiny'"
    assert mistake(distill, "export", student, "--private").startswith("--private: is about a model on the hub")
    assert mistake(distill, "export", student, "--format", "gguf").startswith("--format: must be one of diffusers, ")
    assert mistake(distill, "export", student, "--license", "MIT").startswith("--license: must be an identifier of ")
    assert mistake(distill, "export", student, "--prompt", "a cat") == "prompts: the teacher takes no prompts"
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(HIDDEN_TOKEN, "nowhere")
    assert mistake(distill, *push, "me/tiny") == (
        "--push-to-hub: no token of the hub: run `hf auth login`, or set HF_TOKEN"
    )
    assert not (student / "export").exists()


def test_what_the_hub_refuses_stays_here(
    student: Path, distill: Command, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push, complete = ("export", student, "--push-to-hub"), f" ('{student / 'export'}' is complete, and not on the hub)"
    line = mistake(distill, *push, "others/tiny")
    assert line.startswith("--push-to-hub: ") and "403" in line and line.endswith(complete)
    assert (student / "export" / "model_index.json").is_file() and hub.models == {}
    hub.models["me/open"] = {"private": False, "files": {}}
    assert mistake(distill, *push, "me/open", "--private") == f"--push-to-hub: 'me/open' exists and is public{complete}"
    assert hub.models["me/open"]["files"] == {}
    monkeypatch.setenv("HF_TOKEN", "hf_stolen")
    line = mistake(distill, *push, "me/tiny")
    assert "401" in line and line.endswith(complete) and hub.models.keys() == {"me/open"}
    hub.server_close()
    line = mistake(distill, *push, "me/tiny")
    assert line.startswith("--push-to-hub: ") and line.endswith(complete)
    assert (student / "export" / "model_index.json").is_file()


@pytest.mark.parametrize("name", ["net.py:Net", "strange_net:Net"])
def test_an_export_has_the_consent_of_its_load(
    name: str, distill: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class lies in the teacher's folder alone, and the card's lines run it from the working directory."""
    small, teacher, out = "tests.distill.teachers.own_networks:Small", tmp_path / "own", tmp_path / "run/export"
    save_denoiser(Denoiser(OwnNet(small, {"classes": 10}, (1, 8, 8), 10), EDM(), "eps"), teacher)
    description = (teacher / "denoiser.json").read_text().replace(small, name)
    (teacher / "denoiser.json").write_text(description)
    code = teacher / f"{name.removesuffix('.py:Net').removesuffix(':Net')}.py"
    code.write_text("from tests.distill.teachers.own_networks import Small\n\n\nclass Net(Small):\n    pass\n")
    trainers.train(recipe(teacher, images=16), tmp_path / "run", trust_code=True)
    trained = trainers.load(tmp_path / "run", trust_code=True)
    assert trained.export(out, format="safetensors") == 0
    export = ("export", tmp_path / "run", tmp_path / "by_command", "--format", "safetensors")
    assert (distill(*export).code, distill(*export, "--trust-code").code) == (2, 0)
    shutil.copy(code, out)
    with pytest.raises(UserError, match="runs only with --trust-code, in Python trust_code=True"):
        load_generator(out)
    noise, labels = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    with torch.no_grad():
        wanted = trained.generator(noise, labels)
        assert torch.equal(load_generator(out, trust_code=True)(noise, labels), wanted)
    shutil.copy(code, out.parent)
    monkeypatch.chdir(out.parent)
    monkeypatch.syspath_prepend(str(out.parent))
    scope: dict[str, Any] = {}
    exec(snippet(out), scope)
    with torch.no_grad():
        wanted = trained.generator(scope["noise"], torch.arange(8))
    assert float((scope["samples"] - wanted).abs().max()) < 1e-5
    sys.modules.pop("strange_net", None)
