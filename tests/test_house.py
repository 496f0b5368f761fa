"""Rules of the source that hold for every file of the packages: sizes, first words of docstrings, unique names.

A check that sees nothing also passes, so the last tests run the rules on a small wrong tree.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.house import Source, begins, imported, length, measures, shared_in_package, sources, trace

MAX_FILE, MAX_FUNCTION = 400, 60


def long_files(files: list[Source]) -> list[str]:
    """Return the files of more than MAX_FILE lines."""
    return [f"{file.name}: {len(file.lines)} lines" for file in files if len(file.lines) > MAX_FILE]


def long_functions(files: list[Source]) -> list[str]:
    """Return the functions of more than MAX_FUNCTION lines, docstring included."""
    found = [(file, function) for file in files for function in file.functions if length(function) > MAX_FUNCTION]
    return [f"{file.name}:{function.lineno} {function.name}: {length(function)} lines" for file, function in found]


def riddles(files: list[Source]) -> list[str]:
    """Return the docstrings that begin with What, Of, Those, How or Where."""
    found = [(file, line, text) for file in files for line, _, text in file.documented if begins(text)]
    return [f"{file.name}:{line} {text.splitlines()[0]}" for file, line, text in found]


def shared(files: list[Source]) -> list[str]:
    """Return the public names that several files of one package define."""
    return [f"{name}: {', '.join(homes)}" for name, homes in shared_in_package(files).items()]


def assert_none(offenders: list[str], rule: str) -> None:
    assert not offenders, "\n  ".join([f"{rule}, but {len(offenders)} break this:", *offenders])


def test_files_are_short() -> None:
    assert_none(long_files(sources()), f"a file has at most {MAX_FILE} lines")


def test_functions_are_short() -> None:
    assert_none(long_functions(sources()), f"a function has at most {MAX_FUNCTION} lines")


def test_docstrings_begin_plainly() -> None:
    assert_none(riddles(sources()), "a docstring begins with a verb in the imperative or a plain noun phrase")


def test_names_are_unique_in_a_package() -> None:
    assert_none(shared(sources()), "two files of one package define no public name in common, `main` excepted")


WRONG = {
    "distill/__init__.py": "",
    "distill/one.py": '"""What it is."""\nB: int = 1\n\ndef a():\n    """How it goes; and why."""\n\ndef main(): ...\n',
    "distill/two.py": '"""The second."""\nA, B = 1, 2\n\nclass a:  # comment\n    """Whatever."""\n\ndef main(): ...\n',
    "trainers/one.py": "def a():\n" + "    # alone\n" * 59 + "    return 0\n",
    "trainers/two.py": "_a = _b = 0\n" + "\n" * 400,
    "launch/one.py": "_a = 0\nfor b in []: ...\n",
}


@pytest.fixture
def wrong(tmp_path: Path) -> list[Source]:
    """The files of a small tree that breaks every rule."""
    for name, text in WRONG.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return sources(tmp_path)


def test_what_is_wrong_is_found(wrong: list[Source]) -> None:
    assert long_files(wrong) == ["trainers/two.py: 401 lines"]
    assert long_functions(wrong) == ["trainers/one.py:1 a: 61 lines"]
    assert riddles(wrong) == ["distill/one.py:1 What it is.", "distill/one.py:5 How it goes; and why."]
    assert shared(wrong) == ["distill.B: distill/one.py, distill/two.py", "distill.a: distill/one.py, distill/two.py"]


def test_measures_count(wrong: list[Source]) -> None:
    found = measures(wrong)
    assert found["files"] == 6 and found["lines"] == 0 + 7 + 7 + 61 + 401 + 2
    assert found["code lines (no blank, docstring or comment lines)"] == 0 + 3 + 3 + 2 + 1 + 2
    assert found["functions"] == 4 and found["classes"] == 1
    assert found["longest function"] == 61
    assert found["share of lines with a comment"] == 60 / 478
    assert found["share of lines that are a comment"] == 59 / 478
    assert found["docstrings that begin with What/Of/Those/How/Where"] == 2
    assert found["semicolons per docstring sentence"] == 1 / 4
    assert found["public names defined in several files"] == 3  # a, B and main
    assert found["functions and classes among them"] == 2


@pytest.mark.parametrize(("module", "most"), [("distill.paths", 6), ("distill.objectives.sid", 15)])
def test_imports_are_light(module: str, most: int) -> None:
    assert module in imported(module) and len(imported(module)) <= most


def test_one_step_is_short(tmp_path: Path) -> None:
    """A reader follows an update of SiD from the command to the optimizer through few functions and files."""
    step = trace(tmp_path)
    assert step["frames"][0] == "launch/main.py: main" and "distill/objectives/sid.py" in step["files"]
    assert len(step["frames"]) <= 8 and len(step["files"]) <= 15
