"""The hint at an extra is a command that works from where the package came."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from distill import installed
from distill.installed import install_command

ROOT = Path(__file__).resolve().parents[2]
METADATA = [
    "torch>=2.8",
    'wandb>=0.18; extra == "wandb"',
    "onnx>=1.17; extra=='onnx'",
    'onnxscript>=0.5 ; python_version > "3" and extra == "onnx"',
    'distill-onestep[onnx]; extra == "dev"',
]


def test_a_clone_is_installed_again() -> None:
    assert shlex.split(install_command("wandb")) == ["pip", "install", "-e", f"{ROOT}[wandb]"]


def test_a_wheel_names_the_packages_of_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the installed packages may be a project of somebody else's."""
    monkeypatch.setattr(installed, "requires", lambda name: METADATA)
    for other in (None, 'name = "another"\n'):
        if other is not None:
            (tmp_path / "pyproject.toml").write_text(other)
        monkeypatch.setattr(installed, "ROOT", tmp_path)
        assert install_command("onnx") == "pip install 'onnx>=1.17' 'onnxscript>=0.5'"
        assert install_command("wandb") == "pip install 'wandb>=0.18'"


def test_the_name_and_the_extras_are_those_of_the_project() -> None:
    from importlib.metadata import metadata

    assert metadata(installed.NAME)["Name"] == installed.NAME
    assert {"wandb", "tensorboard", "onnx"} <= set(metadata(installed.NAME).get_all("Provides-Extra") or ())


def test_no_hint_names_this_package_as_one_of_an_index() -> None:
    files = [file for package in ("distill", "trainers", "launch") for file in (ROOT / package).rglob("*.py")]
    files += [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    for file in files:
        assert f"install '{installed.NAME}" not in file.read_text("utf-8"), file
        assert f"install {installed.NAME}" not in file.read_text("utf-8"), file
