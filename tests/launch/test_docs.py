"""What the docs tell users to do does what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.launch.conftest import Command
from tests.tiny import ROOT


def block(page: str, language: str) -> str:
    """The first block of code in a language on a page of docs/."""
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_an_objective_of_ones_own(distill: Command, teachers: Path) -> None:
    """add_an_objective.md in a folder of the user's: one file, a recipe, the two commands; on the digits, shorter."""
    Path("my_objective.py").write_text(block("add_an_objective.md", "python"))
    Path("my_recipe.yaml").write_text(block("add_an_objective.md", "yaml"))
    shorter = [f"teacher={teachers / 'edm'}", "images=64", "batch_size=32", "log_every=32", "evaluation.samples=64"]
    for command in block("add_an_objective.md", "sh").splitlines():
        name, *arguments = command.removeprefix("distill ").split()
        result = distill(name, *arguments, *(shorter if name == "train" else []))
        assert result.code == 0, result.err
    log = [json.loads(line) for line in Path("runs/my_fisher/log.jsonl").read_text().splitlines()]
    assert [record["images"] for record in log] == [32, 64]
    assert log[0]["generator/grad_norm"] > 0 and log[-1]["health/gap"] > 0
    assert json.loads(Path("runs/my_fisher/evaluation.json").read_text())["student"]["frechet"] > 0
