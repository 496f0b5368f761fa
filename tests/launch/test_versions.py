"""`distill --version` and the completion of a shell, neither of which imports torch."""

from __future__ import annotations

import platform
import subprocess
import sys
import tomllib
from importlib.metadata import version

import distill as package
from tests.launch.conftest import Command
from tests.tiny import ROOT, environment
from trainers.recipe.shipped import shipped_recipes

PROGRAM = """
import sys
sys.argv = ["distill", *ARGUMENTS]
from launch.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
print("HEAVY", sorted({"torch", "trainers.recipe.run"} & set(sys.modules)))
"""


def printed(*arguments: str, **variables: str) -> list[str]:
    """The lines of a command in a fresh process, which ends without torch."""
    program = PROGRAM.replace("ARGUMENTS", repr(arguments))
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment() | variables, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stderr
    *lines, heavy = ended.stdout.splitlines()
    assert heavy == "HEAVY []"
    return lines


def test_the_versions() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert declared == package.__version__
    python = platform.python_version()
    assert printed("--version") == [f"distill {declared}, torch {version('torch')}, Python {python}"]


def test_a_shell_completes_commands_and_recipes() -> None:
    """By the variables that the script of bash sets: the words so far, and the place of the one to complete."""
    ask = {"_DISTILL_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert printed(COMP_WORDS="distill ev", **ask) == ["evaluate"]
    ask["COMP_CWORD"] = "2"
    fashion = sorted(name for name in shipped_recipes() if name.startswith("fashion_s"))
    assert fashion[:2] == ["fashion_sid", "fashion_sida"]
    assert sorted(printed(COMP_WORDS="distill train fashion_s", **ask)) == fashion


def test_the_help_names_both(distill: Command) -> None:
    out = distill("--help").out
    assert "--version" in out and "--install-completion" in out
    assert "Distil a diffusion or flow model into a one-step generator." in out
