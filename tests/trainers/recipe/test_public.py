"""A recipe that may be published: no path, no name of the user or the machine, no secret, at any depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.user_code import trusting
from tests.tiny import experiment, recipe
from trainers.recipe.public import public_recipe
from trainers.recipe.strict_yaml import dump, to_yaml

MARK = "zaphod"
OWN = """
from dataclasses import dataclass
from distill.annotations import LocalPath
from distill.objectives.sid import SiD

@dataclass(frozen=True, kw_only=True)
class Own(SiD):
    weights: LocalPath
    more: tuple[LocalPath, ...] = ()
    text: str = ""
    table: dict[str, str] | None = None
    api_key: str = ""
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder of the user `zaphod`, whose machine is `zaphod-desk`."""
    folder = tmp_path / "home" / MARK
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr("getpass.getuser", lambda: MARK)
    monkeypatch.setattr("socket.gethostname", lambda: f"{MARK}-desk.{MARK}.org")
    return folder


def published(settings: dict[str, Any]) -> dict[str, Any]:
    """The public recipe, which holds no mark."""
    with trusting(True):
        public = public_recipe(experiment(settings))
    assert MARK not in to_yaml(public)
    return public


def test_all_paths_of_a_recipe_are_last_parts(home: Path) -> None:
    objective = {"name": "autoguided", "objective": "sid", "weak_teacher": f"{home}/weak"}
    reward = {"name": "clip_score", "clip": f"{home}/clip", "prompts": ["a cat"]}
    objective = {"name": "rewarded", "objective": objective, "reward": reward, "reward_scale": 1.0}
    changes: dict[str, Any] = {
        "name": f"run of {MARK}",
        "objective": objective,
        "start": f"{home}/first/best",
        "cache": f"{home}/cache",
        "evaluation": {"classifier": f"{home}/judge"},
        "data": {"name": "images", "path": f"{home}/my pictures/*.parquet"},
        "negative_prompt": f"unlike ~/bad/a.png of {MARK}",
    }
    public = published(recipe(home / "net", **changes))
    assert public["teacher"] == "net" and public["start"] == "best" and public["cache"] == "cache"
    assert public["name"] == "run of (removed)" and public["negative_prompt"] == "unlike a.png of (removed)"
    assert public["evaluation"]["classifier"] == "judge" and public["data"]["path"] == "*.parquet"
    inner = public["objective"]
    assert (inner["name"], inner["reward"]["name"], inner["reward"]["clip"]) == ("rewarded", "clip_score", "clip")
    assert inner["objective"]["name"] == "autoguided" and inner["objective"]["weak_teacher"] == "weak"


def test_a_class_of_a_file_is_named_by_the_file(home: Path) -> None:
    (home / "mine.py").write_text(OWN)
    objective = {
        "name": f"{home}/mine.py:Own",
        "weights": f"{home}/w.pt",
        "more": [f"{home}/a", MARK],
        "text": f"see https://{MARK}:pw@host.org/x and /srv/{MARK}/y",
        "table": {f"/srv/{MARK}/k": f"~/{MARK}/v", "password": "1234"},
        "api_key": "5678",
    }
    public = published(recipe(home / "net", objective=objective))["objective"]
    assert (public["name"], public["weights"], public["api_key"]) == ("mine.py:Own", "w.pt", "(removed)")
    assert public["more"][0] == "a" and len(public["more"][1]) == 8
    assert public["text"] == "see https://host.org/x and y"
    assert public["table"] == {"k": "v", "password": "(removed)"}


@pytest.mark.parametrize("teacher", ["home", "parent", "host"])
def test_a_home_as_a_folder_has_a_hash(teacher: str, home: Path) -> None:
    folder = {"home": home, "parent": f"/srv/{MARK}", "host": f"/srv/{MARK}-desk"}[teacher]
    assert len(published(recipe(str(folder)))["teacher"]) == 8


def test_a_hub_id_and_defaults_stay(home: Path) -> None:
    run = experiment(recipe("net", data={"name": "images", "path": "uoft-cs/cifar10"}))
    assert public_recipe(run) == dump(run)
