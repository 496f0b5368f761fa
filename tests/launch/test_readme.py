"""README and docs: the programs run, and every link, path, command, module and name is there."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import trainers
from launch.main import app
from tests.tiny import ROOT, recipe, teacher_recipe
from trainers.recipe.load import build_experiment
from trainers.recipe.run import Run
from trainers.recipe.shipped import shipped_recipes
from trainers.recipe.teacher_run import TeacherRun
from trainers.runs.classifier import ClassifierRun

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("distill", "trainers", "launch", "configs", "benchmarks", "examples", "tests", "docs")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
KEYS = {one.name for kind in (Run, TeacherRun, ClassifierRun) for one in fields(kind)}
FILES = {"distill.json"}  # names of files that look like modules
TAKES_RECIPE = ("train", "teacher", "classifier", "cache", "plan", "try")
ELSEWHERE = {  # names of other libraries and repositories that our code does not use
    "fake_guidance_scale",
    "fake_score",
    "fid50k_full",
    "fsdp_cpu_offload",
    "max_iter",
    "move_to_device_pass",
    "real_guidance_scale",
    "sid_train",
    "torch_compile_mode",
}
RECORDS = ("docs/results/faults.md",)  # pages that a program wrote, with names of the code of that day
EVERYWHERE = {"--debug", "--help", "--trust-code"}  # options of every command


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_fences(text: str) -> str:
    """The prose and the indented lines of a page."""
    return FENCE.sub("", text)


def inline(text: str) -> list[str]:
    """Everything in backticks outside of blocks, on one line each."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_fences(text))]


def command_lines(text: str) -> Iterator[str]:
    """Everything on a page that someone may type into a shell."""
    yield from inline(text)
    blocks = [block for language, block in FENCE.findall(text) if language == "sh"]
    blocks += re.findall(r"^    (?:.*\n?)", without_fences(text), re.MULTILINE)
    joined = "\n".join(blocks).replace("\\\n", " ")
    yield from (line.strip() for line in joined.splitlines())


def distill_commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `distill` command of a page."""
    for line in command_lines(text):
        for start in ("distill ", "-m launch.main "):
            if line.startswith(start) or (start[0] == "-" and f" {start}" in line):
                given = line.partition(start)[2]
                arguments = shlex.split(given, comments=True) if "'" not in given or given.count("'") % 2 == 0 else []
                if arguments and re.fullmatch(r"[a-z]+", arguments[0]):
                    yield arguments


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(there.read_text()), f"{target}: no such heading"


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_fences(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_paths_of_a_page_exist(page: Path) -> None:
    for code in inline(page.read_text()):
        for word in code.split():
            place = word.partition("::")[0].rstrip("/")
            if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})(?:/[\w.*-]+)+", place):
                assert list(ROOT.glob(place)), f"{place}: no such file"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    commands: Any = typer.main.get_command(app)
    for name, *arguments in distill_commands(text):
        assert name in commands.commands, f"distill {name}: no such command"
        command, given = commands.commands[name], list(arguments)
        if (inner := getattr(command, "commands", {})) and given:
            assert given[0] in inner, f"distill {name} {given[0]}: no such command"
            command = inner[given.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts} | {
            "--debug",
            "--help",
            "--trust-code",
        }
        for word in given:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"distill {name} {word}: no such option"
            elif found := re.fullmatch(r"([a-z_]+)(?:\.[a-z_0-9.]+)?=.*", word):
                assert found[1] in KEYS, f"distill {name} {word}: no such key"
        if name in TAKES_RECIPE and given and re.fullmatch(r"[a-z0-9_]+", given[0]):
            assert given[0] in shipped_recipes(), f"distill {name} {given[0]}: no such recipe"
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in command_lines(text):
        if found := re.match(r"make ([a-z-]+)", line):
            assert found[1] in targets, f"make {found[1]}: no such target"
        for module in re.findall(r"python -m ([\w.]+)", line):
            importlib.import_module(module)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_modules_and_names_of_a_page_exist(page: Path, words: frozenset[str]) -> None:
    for code in inline(page.read_text()) if name_of(page) not in RECORDS else ():
        dotted = code.partition("(")[0]
        if not re.fullmatch(r"[A-Za-z_]\w*(?:\.\w+)*", dotted) or (dotted != code and not code.endswith(")")):
            continue
        if dotted.partition(".")[0] in FOLDERS and "." in dotted and dotted not in FILES:
            resolve(dotted)
        elif not dotted.startswith("my_"):
            for word in dotted.split("."):
                assert word in words or word in ELSEWHERE, f"{code}: the code has no {word}"


@pytest.fixture(scope="module")
def words() -> frozenset[str]:
    """Every word of the code, and the names of its files."""
    found: set[str] = set()
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*") if folder != "docs" else ():
            found.update(re.findall(r"\w+", file.name))
            if file.suffix in (".py", ".yaml", ".sh", ".sbatch", ".txt") and file != Path(__file__):
                found.update(re.findall(r"\w+", file.read_text()))
    return frozenset(found)


def resolve(dotted: str) -> Any:
    """The module, or the name in a module."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{dotted}: no such module")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_recipes_of_a_page_are_accepted(page: Path) -> None:
    """Parts of a recipe are completed by the least that a recipe needs."""
    for language, block in FENCE.findall(page.read_text()):
        if language == "json":
            json.loads(block)
        elif language == "yaml":
            settings = yaml.safe_load(block)
            settings.pop("tiny", None)
            build_experiment(completed(settings), name_of(page))


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the least that a recipe needs beside them."""
    common: dict[str, Any] = {"name": "page", "images": 1, "batch_size": 1}
    if settings.get("trains") != "teacher" and "network" not in settings:
        common |= {"teacher": "t", "objective": "dmd" if "pairs" in settings else "sid"}
    if isinstance(settings.get("objective"), dict) and ":" in settings["objective"]["name"]:
        settings = {**settings, "objective": "sid"}  # the user's own file
    return common | settings


def program(text: str) -> str:
    """A program of the docs at a tiny size."""
    text = re.sub(r"(\d+)_000", lambda number: str(int(number[1]) * 1000 // 6000), text.replace("5_000", "64"))
    return re.sub(r"processes=\d", "processes=1", text)


@pytest.fixture
def small_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with the names of the digits' recipes, which a recipe's name finds first, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    common: dict[str, Any] = {"images": 16, "evaluation": {"every": 8, "samples": 64}, "checkpoint_every": 8}
    small = {
        "digits_teacher": teacher_recipe(**common, name="digits_teacher"),
        "digits_sid": recipe("runs/digits_teacher/teacher", **common, name="digits_sid"),
    }
    for name, settings in small.items():
        Path(name).write_text(yaml.safe_dump(settings))


@pytest.mark.usefixtures("small_recipes")
def test_the_program_of_the_readme_runs() -> None:
    (code,) = [block for language, block in FENCE.findall((ROOT / "README.md").read_text()) if language == "python"]
    assert len([line for line in code.splitlines() if line]) <= 12
    scope: dict[str, Any] = {}
    exec(program(code), scope)
    assert scope["images"].shape == (60, 1, 8, 8) and scope["report"]["samples"] == 64
    assert Path("samples.png").stat().st_size > 1_000
    assert Path("runs/digits_sid/export/model_index.json").is_file()
    assert Path("runs/digits_sid/checkpoints/000000000032").is_dir()


@pytest.mark.usefixtures("small_recipes")
def test_the_programs_of_the_page_on_python_run(capfd: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {"__name__": "a_program"}
    for language, block in FENCE.findall((ROOT / "docs/python.md").read_text()):
        if language == "python":
            exec(program(block), scope)
    assert scope["x"].shape == (16, 1, 8, 8) and scope["x"].grad_fn is not None
    assert all(parameter.grad is not None for parameter in scope["generator"].parameters())
    assert re.findall(r"^(\d+) images: \d", capfd.readouterr().out, re.MULTILINE)
    assert "objects:\n- teacher\n" in Path("runs/objects/run.yaml").read_text()


@pytest.mark.usefixtures("small_recipes")
def test_the_reward_of_the_page_on_rewards_trains() -> None:
    (code,) = [
        block
        for language, block in FENCE.findall((ROOT / "docs/objectives/rewarded.md").read_text())
        if language == "python"
    ]
    Path("my_reward.py").write_text(code)
    objective = {"name": "rewarded", "objective": "sid", "reward": "my_reward.py:Mine", "reward_scale": 1.0}
    trainers.train("digits_teacher")
    trainers.train("digits_sid", objective=objective)
    log = [json.loads(line) for line in Path("runs/digits_sid/log.jsonl").read_text().splitlines()]
    assert -1 <= log[-1]["health/brightness"] <= 1 and log[-1]["generator/brightness"] == -log[-1]["health/brightness"]
