"""Paths, names and secrets of this machine, which no text that leaves may hold."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from distill.public_text import public_name, public_text, public_value


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine `deepthought.example.org` of the user `zaphod`."""
    monkeypatch.setenv("HOME", "/home/zaphod")
    monkeypatch.setattr("getpass.getuser", lambda: "zaphod")
    monkeypatch.setattr("socket.gethostname", lambda: "deepthought.example.org")


def short_hash(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:8]


NAMES = {
    "/home/zaphod/teacher": "teacher",
    "/home/zaphod/teacher/": "teacher",
    "~/teacher": "teacher",
    "../zaphod/faces": "faces",
    "/home/zaphod/x.py:Class": "x.py:Class",
    "/data/zaphod/*.parquet": "*.parquet",
    "stabilityai/sdxl": "sdxl",
}
HASHED = ["/home/zaphod", "/home/ford/", "/Users/ford", "~", "/data/zaphod", "/scratch/deepthought", "/", "/data/.."]


@pytest.mark.parametrize(("path", "name"), NAMES.items())
def test_a_path_is_named_by_its_last_part(path: str, name: str) -> None:
    assert public_name(path) == name


@pytest.mark.parametrize("path", HASHED)
def test_a_home_is_named_by_a_hash(path: str) -> None:
    assert public_name(path) == short_hash(path)


TEXTS = {
    "cannot read '/home/zaphod/my files/a.json': no": "cannot read 'a.json': no",
    "no file /srv/zaphod/a.json, nor ~/b/c.json": "no file a.json, nor c.json",
    "home /home/zaphod/my files/x": "home my files/x",
    "['/mnt/a', '/mnt/b']": "['a', 'b']",
    "path=/mnt/secret/a:/mnt/secret/b": "path=a:b",
    "see https://zaphod:pass@hub.co/a/b?token=1#c.": "see https://hub.co/a/b",
    "file:///home/zaphod/x.bin": "x.bin",
    "Bearer hf_abcdefghijklmnopqrst": "Bearer (removed)",
    "TypeError:/home/zaphod/x.py": "TypeError:x.py",
}
KEPT = [
    "https://huggingface.co/a/b",
    "images / 2 + 0.5",
    "[B, C] and/or x",
    'load(f"{folder}/model.onnx")',
    "</s> //",
    "one step w/ /s",
    "runs/x/export",
    "unet/config.json",
    "DownBlock2D",
]


@pytest.mark.parametrize(("text", "public"), TEXTS.items())
def test_a_text_holds_no_path_and_no_secret(text: str, public: str) -> None:
    assert public_text(text) == public


@pytest.mark.parametrize("text", KEPT)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert public_text(text) == text


def test_values_are_made_public_at_any_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "faces").mkdir(parents=True)
    given = {
        "/srv/x/a": [{"b": ("~/c", 1, None)}],
        "hub": "uoft-cs/cifar10",
        "local": "lab/faces",
        "deep": "lab/zaphod/set/faces",
        "own": "lab/mine.py:Net",
        "api_key": "0123",
        "pad_token": "<pad>",
        "note": "by zaphod on deepthought",
    }
    assert public_value(given) == {
        "a": [{"b": ["c", 1, None]}],
        "hub": "uoft-cs/cifar10",
        "local": "faces",
        "deep": "faces",
        "own": "mine.py:Net",
        "api_key": "(removed)",
        "pad_token": "<pad>",
        "note": "by (removed) on (removed)",
    }


def test_the_longest_name_is_removed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order of the names, nothing is left of a machine that is named after its user."""
    monkeypatch.setattr("socket.gethostname", lambda: "zaphod-desk.zaphod.org")
    for text in ("[zaphod-desk]:1234", "zaphod-desk.zaphod.org", "zaphod"):
        assert public_value(text).replace("(removed)", "").strip("[]:1234") == ""


def test_words_of_a_config_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user is called like an activation."""
    monkeypatch.setattr("getpass.getuser", lambda: "silu")
    assert public_value({"act_fn": "silu", "path": "/x/y"}, names=False) == {"act_fn": "silu", "path": "y"}
