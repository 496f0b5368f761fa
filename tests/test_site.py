"""The site of docs/ is built strictly, loads nothing from elsewhere, and has what is made of the code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from launch.main import COMMANDS
from tests.tiny import ROOT
from trainers.recipe.keys import recipe_keys
from trainers.recipe.shipped import shipped_recipes

NEEDED = ("mkdocs", "material", "mkdocstrings_handlers")
LOADS = re.compile(
    r"<(?:script|img|iframe)[^>]* src=[\"']?([^\"' >]+)|<link(?![^>]*rel=.?canonical)[^>]* href=[\"']?([^\"' >]+)"
)


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The functions that make parts of pages of the code."""
    spec = spec_from_file_location("made", ROOT / "docs/site/made.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(module := module_from_spec(spec))
    return module


def test_every_command_is_in_the_reference(made: ModuleType) -> None:
    text = made.commands()
    for function in (function for functions in COMMANDS.values() for function in functions):
        assert f"\n\n### distill {function.__name__.strip('_')}\n\n" in text
    assert re.findall(r"^### distill import (\w+)$", text, re.MULTILINE) == ["edm", "edm2", "diffusers"]
    assert "| `--processes <int range>` | The processes to start, with one GPU each" in text


def test_every_recipe_is_in_the_index_of_papers(made: ModuleType) -> None:
    assert re.findall(r"\[`(\w+)`\]", made.recipes()) == list(shipped_recipes())
    rows = made.papers().splitlines()[2:]
    with_tiny_forms = [name for name, file in shipped_recipes().items() if "\ntiny:" in file.read_text()]
    assert sorted(name for row in rows for name in re.findall(r"\[`(\w+)`\]", row)) == with_tiny_forms
    assert all(re.match(r"\| [\w*-]+, arXiv:\d{4}\.\d{5} \| \[", row) and row.count("|") == 7 for row in rows)


def test_every_key_is_in_the_reference(made: ModuleType) -> None:
    names = re.findall(r"^\| `([\w.]+)` \|", made.keys(), re.MULTILINE)
    assert sorted(names) == sorted(key.name for key in recipe_keys())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by `mkdocs build --strict`."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-3_000:]
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        for found in LOADS.findall(page.read_text("utf-8")):
            target = found[0] or found[1]
            assert not re.match(r"(https?:)?//", target), f"{page.relative_to(site)} loads {target}"


def test_the_site_has_what_is_made_of_the_code(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert "<!-- made:" not in page.read_text("utf-8"), page
    assert 'id="distill-train"' in (site / "reference/commands.html").read_text("utf-8")
    assert 'id="trainers.train"' in (site / "reference/api.html").read_text("utf-8")
    assert "repository/configs/edm/cifar10_sid.yaml.html" in (site / "papers.html").read_text("utf-8")
    assert 'href="demo_report.html"' in (site / "reports.html").read_text("utf-8")
    assert "<h1>demo_sid</h1>" in (site / "demo_report.html").read_text("utf-8")
    notebook = (site / "tutorials/digits.html").read_text("utf-8")
    assert all((site / "tutorials" / name).is_file() for name in re.findall(r'src="(digits_\d+\.png)"', notebook))
    places = {
        entry["location"].partition("#")[0]
        for entry in json.loads((site / "search/search_index.json").read_text())["docs"]
    }
    assert {"index.html", "troubleshooting.html", "tutorials/digits.html"} <= places
