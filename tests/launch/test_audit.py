"""The recipes of papers stand beside what the authors published, setting by setting, and nothing is left out."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill import UserError
from launch import audit
from launch.audit import DIFFERS, NOT_COMPARED, NOT_PUBLISHED, OURS, SAME
from tests.launch.conftest import Command
from trainers.recipe.load import resolve
from trainers.recipe.shipped import find_recipe, shipped_recipes
from trainers.recipe.strict_yaml import load_yaml

PAPERS = sorted(name for name, file in shipped_recipes().items() if "tiny" in load_yaml(file))


def test_every_recipe_of_a_paper_is_there() -> None:
    assert sorted(audit.audited()) == PAPERS
    for name in PAPERS:
        assert not re.search("left out", find_recipe(name).read_text("utf-8"), re.IGNORECASE)
    used = {entry["of"] for entry in audit.authors()["recipes"].values()}
    used |= {source["like"] for source in audit.authors()["sources"].values() if "like" in source}
    assert used == set(audit.authors()["sources"])
    assert all(source["page"].startswith("https://") for source in audit.authors()["sources"].values())


@pytest.mark.parametrize("name", PAPERS)
def test_every_setting_has_a_verdict(name: str) -> None:
    """A difference has a reason, and a reason a difference: `audit` raises otherwise."""
    rows = audit.audit(name)
    assert [row for row in rows if row.verdict == NOT_COMPARED] == []
    assert all(bool(row.why) == (row.verdict != SAME) for row in rows)
    assert all(bool(row.theirs) == (row.verdict in (SAME, DIFFERS)) for row in rows)
    counts = Counter(row.verdict for row in rows)
    assert counts[SAME] >= 3 and counts[OURS] and (counts[NOT_PUBLISHED] > 10) == (counts[SAME] < 10)


def change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str, file: Path) -> None:
    """Let the audit read a changed copy of a recipe."""
    text = file.read_text("utf-8")
    assert text.count(old) == 1
    (changed := tmp_path / file.name).write_text(text.replace(old, new))
    monkeypatch.setattr(audit, "find_recipe", lambda name: changed)
    monkeypatch.setattr(audit, "resolve", lambda name: resolve(changed))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("scale: 100.0", "scale: 50.0", "authors.yaml: cifar10_sid: lsg differs: 50; say why in `differs`"),
        ("images: 500_000_000", "images: 100_000_000", "cifar10_sid: duration differs: 100,000,000; "),
        ("micro_batches: 4 ", "micro_batches: 8 ", "cifar10_sid: batch-gpu differs: 8; "),
        ("dropout: teacher} # the", "dropout: off} # the", "cifar10_sid: dropout differs: 0; "),
    ],
)
def test_a_recipe_that_changes_fails(
    old: str, new: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change(monkeypatch, tmp_path, old, new, find_recipe("cifar10_sid"))
    with pytest.raises(UserError, match=re.escape(line)):
        audit.audit("cifar10_sid")


def test_a_setting_that_nobody_compares_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    more = "images: 500_000_000\nfake_updates: 1"
    change(monkeypatch, tmp_path, "images: 500_000_000", more, find_recipe("cifar10_sid"))
    assert [row.name for row in audit.audit("cifar10_sid") if row.verdict == NOT_COMPARED] == ["fake_updates"]


def test_a_reason_without_a_difference_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    audit_of: Any = audit.authors()
    changed = {**audit_of, "recipes": {**audit_of["recipes"]}}
    changed["recipes"]["cifar10_sid"] = {**changed["recipes"]["cifar10_sid"], "differs": {"alpha": "no"}}
    monkeypatch.setattr(audit, "authors", lambda: changed)
    with pytest.raises(UserError, match=r"^authors.yaml: cifar10_sid: alpha does not differ; delete its reason$"):
        audit.audit("cifar10_sid")


def test_values_have_the_units_of_the_recipe() -> None:
    """Iterations, thousands, batches of a GPU and means become images and sums."""
    both = ("sdxl_dmd2", "afhq64_sid")
    rows = {(name, row.theirs.partition(" ")[0]): row for name in both for row in audit.audit(name)}
    assert rows["sdxl_dmd2", "iterations"][:2] == ("iterations of the fake", "24,000")
    assert rows["sdxl_dmd2", "warmup_step"].ours == "500"
    assert rows["sdxl_dmd2", "max_grad_norm"][1:4] == ("655,360", "max_grad_norm 10", SAME)
    assert rows["sdxl_dmd2", "batch_size"][1:4] == ("128", "batch_size 2", SAME)
    assert rows["afhq64_sid", "duration"][1:4] == ("500,000,000", "duration 500", SAME)
    assert rows["afhq64_sid", "dropout"][1:4] == ("0.05", "dropout 0.05", SAME)


def test_the_command_prints_one_or_all(distill: Command) -> None:
    one = distill("recipes", "cifar10_sid", "--audit")
    assert one.code == 0 and one.out.splitlines()[0].startswith("cifar10_sid: https://github.com/mingyuanzhou/SiD/")
    assert re.search(r"^  objective.alpha +1.2 +alpha 1.2 +as published$", one.out, re.MULTILINE)
    every = distill("recipes", "--audit")
    assert [line.partition(":")[0] for line in every.out.splitlines() if line[:1].strip()] == audit.audited()
    refused = distill("recipes", "digits_sid", "--audit")
    assert refused.code == 2 and "--audit: no published settings of 'digits_sid'; there are " in refused.err
