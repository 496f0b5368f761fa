"""The code that a file names runs only where the caller has agreed in that call."""

import hashlib
import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from safetensors.torch import save_file

import launch.trust
import trainers
from distill.errors import UserError
from launch.trust import remembered, remembering
from tests.launch.conftest import Command
from tests.trainers.checkpoints.test_content import seal
from trainers.engine.stopping import Stopped
from trainers.recipe.load import load_run

OBJECTIVE = """
from dataclasses import dataclass
from pathlib import Path

from distill.objectives import SiD

Path({ran!r}).touch()


@dataclass(frozen=True, kw_only=True)
class Obj(SiD):
    pass
"""
READERS = (
    ("sample", "--count", "2"),
    ("evaluate", "--samples", "20"),
    ("export",),
    ("resume",),
    ("ema", "--std", "0.1"),
)


@pytest.fixture(autouse=True)
def no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the test have an empty list of remembered files, and leave no module behind."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("distill.checked_import.RAN", ran := {})
    monkeypatch.setattr("launch.trust.RAN", ran)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def downloaded(student: Path, tmp_path: Path) -> Path:
    """A run folder in the working directory whose run.yaml names an objective in a file beside it."""
    folder = Path(student.rename(tmp_path / "cwd" / "dl_run"))
    (folder / "o.py").write_text(OBJECTIVE.format(ran=str(tmp_path / "ran")))
    name_objective(folder, "dl_run/o.py:Obj")
    return folder


def name_objective(folder: Path, name: str) -> None:
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    settings["objective"]["name"] = name
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))


def name_objective_saved(folder: Path, name: str) -> None:
    """Write the name into the recipe in each checkpoint."""
    for saved in (folder / "checkpoints").iterdir():
        state = json.loads((saved / "state.json").read_text())
        state["recipe"]["objective"]["name"] = name
        (saved / "state.json").write_text(json.dumps(state))
        seal(saved)


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_a_run_folder_runs_no_code_of_its_own(
    command: tuple[str, ...], distill: Command, downloaded: Path, tmp_path: Path
) -> None:
    name, *more = command
    result = distill(name, "dl_run", *more)
    sha = hashlib.sha256((downloaded / "o.py").read_bytes()).hexdigest()
    assert result.code == 2 and result.err == (
        f"distill: dl_run/run.yaml: key 'objective': 'dl_run/o.py:Obj' is code in '{downloaded / 'o.py'}'"
        f" (SHA-256 {sha}), which runs only with --trust-code, in Python trust_code=True; read it first\n"
    )
    assert not (tmp_path / "ran").exists()


NAMES: dict[str, dict[str, Any]] = {
    "objective.times": {"objective": {"name": "sid", "times": {"name": "dl_run/o.py:Obj"}}},
    "objective.fake_times": {"objective": {"name": "sid", "fake_times": "dl_run/o.py:Obj"}},
    "objective.objective": {"objective": {"name": "decoupled", "objective": "dl_run/o.py:Obj"}},
    "objective.reward": {
        "objective": {
            "name": "rewarded",
            "objective": "sid",
            "reward": {"name": "dl_run/o.py:Obj"},
            "reward_scale": 1,
        }
    },
    "data": {"data": {"name": "dl_run/o.py:Obj"}},
}


@pytest.mark.parametrize("key", NAMES)
def test_every_key_that_names_code_needs_consent(key: str, distill: Command, downloaded: Path, tmp_path: Path) -> None:
    """In run.yaml, in a recipe beside it, and under a link to that recipe from outside."""
    settings = yaml.safe_load((downloaded / "run.yaml").read_text()) | NAMES[key]
    (downloaded / "run.yaml").write_text(yaml.safe_dump(settings))
    (downloaded / "deep").mkdir()
    (downloaded / "deep" / "recipe.yaml").write_text(yaml.safe_dump(settings))
    Path("link.yaml").symlink_to(downloaded / "deep" / "recipe.yaml")
    train = ("--folder", "other")
    for command in (
        ("sample", "dl_run"),
        ("resume", "dl_run", "images=24"),
        ("plan", "dl_run/run.yaml"),
        ("cache", "dl_run/deep/recipe.yaml"),
        ("train", "dl_run/deep/recipe.yaml", *train),
        ("train", "link.yaml", *train),
    ):
        result = distill(*command)
        mistakes = 2 if key == "data" else 1  # the objective names code too
        assert result.code == 2 and result.err.count("which runs only with --trust-code") == mistakes
        assert f": key '{key}': 'dl_run/o.py:Obj' is code in '{downloaded / 'o.py'}' (SHA-256 " in result.err
    assert not (tmp_path / "ran").exists()


def test_the_recipe_in_a_checkpoint_needs_consent(distill: Command, downloaded: Path, tmp_path: Path) -> None:
    """A resume compares it with run.yaml, which may name no code at all."""
    name_objective(downloaded, "sid")
    name_objective_saved(downloaded, "dl_run/o.py:Obj")
    for more in ((), ("--allow", "objective")):
        result = distill("resume", "dl_run", "images=24", *more)
        assert result.code == 2 and result.err.count("\n") == 1
        assert "key 'objective': 'dl_run/o.py:Obj' is code in '" in result.err
    assert distill("sample", "dl_run", "--count", "1").code == 0
    assert not (tmp_path / "ran").exists()


def test_an_override_is_the_callers_own_word(distill: Command, student: Path, tmp_path: Path) -> None:
    (tmp_path / "cwd" / "mine.py").write_text(OBJECTIVE.format(ran=str(tmp_path / "ran")))
    result = distill("resume", student, "images=24", "objective.name=mine.py:Obj", "--allow", "objective")
    assert result.code == 0, result.err
    assert (tmp_path / "ran").exists()


def test_an_override_is_found_in_the_working_directory_and_not_in_the_run_folder(
    distill: Command, downloaded: Path, tmp_path: Path
) -> None:
    (downloaded / "mine.py").write_text(OBJECTIVE.format(ran=str(tmp_path / "ran")))
    for name in ("mine.py:Obj", "mine:Obj"):
        result = distill("plan", "dl_run/run.yaml", f"objective.name={name}")
        assert result.code == 2 and f"'{name}' is code in '{downloaded / 'mine.py'}' (SHA-256 " in result.err
    Path("mine.py").write_text(OBJECTIVE.format(ran=str(tmp_path / "mine")))
    for name in ("mine.py:Obj", "mine:Obj"):
        sys.modules.pop(str(Path("mine.py").resolve()), None)
        distill("plan", "dl_run/run.yaml", f"objective.name={name}")
        assert (tmp_path / "mine").exists() and not (tmp_path / "ran").exists()
        (tmp_path / "mine").unlink()


def test_a_resume_finds_the_class_beside_run_yaml(distill: Command, downloaded: Path) -> None:
    """In the recipe of the checkpoint, with changes, and from Python."""
    name_objective(downloaded, "o.py:Obj")
    name_objective_saved(downloaded, "o.py:Obj")
    result = distill("resume", "dl_run", "images=24", "--trust-code")
    assert result.code == 0, result.err
    assert trainers.resume("dl_run", images=32, trust_code=True).images == 32
    assert trainers.load("dl_run", data={"name": "digits"}, trust_code=True).images == 32


@pytest.mark.parametrize("name", ["a\0.py", f"{'a' * 300}.py", "loop.py", "a\0"])
def test_a_name_that_no_file_can_have(name: str, distill: Command, downloaded: Path) -> None:
    Path("loop.py").symlink_to("loop.py")
    name_objective(downloaded, f"{name}:Obj")
    result = distill("sample", "dl_run", "--trust-code")
    assert result.code == 2 and result.err.count("\n") == 1
    assert f"key 'objective': cannot import {f'{name}:Obj'!r}: " in result.err


@pytest.mark.parametrize(
    "name", ["teachers.cifar10.evil:Net", "evil:Net", "teachers/cifar10/evil.py:Net", "my_training:Net"]
)
def test_a_teachers_folder_runs_no_code_of_its_own(
    name: str, distill: Command, teachers: Path, recipe_file: Callable[..., Path], tmp_path: Path
) -> None:
    """`teachers` is a namespace package of the working directory, and my_training a script of the user's in it."""
    folder, file = Path("teachers/cifar10"), Path("teachers/cifar10/evil.py").resolve()
    shutil.copytree(teachers / "edm", folder)
    if name == "my_training:Net":
        file = Path("my_training.py").resolve()
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Net: pass\n")
    description = json.loads((folder / "denoiser.json").read_text())
    (folder / "denoiser.json").write_text(json.dumps({**description, "network": {"name": name}}))
    save_file({}, folder / "network.safetensors")
    recipe = recipe_file(teacher="teachers/cifar10")
    for command in (("pairs", folder, "out", "--count", "4"), ("plan", recipe), ("train", recipe)):
        for trust in ((), (f"--trust-code={'0' * 64}",)):
            result = distill(*command, *trust)
            assert result.code == 2 and result.err.count("\n") == 1, result.err
            assert f"network: '{name}' is code in '{file}' (SHA-256 " in result.err
            assert "which runs only with --trust-code, in Python trust_code=True; read it first" in result.err
    assert not (tmp_path / "ran").exists() and not Path("runs").exists() and "evil" not in sys.modules


def test_the_ways_to_agree(distill: Command, downloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, ran = ("sample", "dl_run", "--count", "1"), tmp_path / "ran"
    sha = hashlib.sha256((downloaded / "o.py").read_bytes()).hexdigest()

    def runs(*more: str) -> bool:
        ran.unlink(missing_ok=True)
        sys.modules.pop(str(downloaded / "o.py"), None)
        code = distill(*sample, *more).code
        assert code in (0, 2) and (code == 0) == ran.exists()
        return ran.exists()

    assert not runs() and not runs(f"--trust-code={'0' * 64}")
    assert runs("--trust-code") and runs(f"--trust-code={sha}") and not runs()
    for value, expected in (("1", True), ("0", False), (sha, True), ("f" * 64, False)):
        monkeypatch.setenv("DISTILL_TRUST_CODE", value)
        assert runs() == expected
    monkeypatch.setenv("DISTILL_TRUST_CODE", "1")
    assert not runs("--trust-code=no") and not runs(f"--trust-code={'0' * 64}")  # the command line holds alone
    monkeypatch.delenv("DISTILL_TRUST_CODE")
    assert runs("--trust-code=remember") and runs() and not runs("--trust-code=no")
    assert list(yaml.safe_load((tmp_path / "config/distill/trusted_code.json").read_text())) == [sha]
    (downloaded / "o.py").write_text((downloaded / "o.py").read_text() + "# changed\n")
    assert not runs()  # another content is another file
    result = distill(*sample, "--trust-code=yess")
    assert result.code == 2
    assert result.err == "distill: --trust-code: takes nothing, 'remember', or SHA-256 of files, got 'yess'\n"

    sys.modules.pop(str(downloaded / "o.py"), None)
    with pytest.raises(UserError, match="runs only with --trust-code, in Python trust_code=True"):
        trainers.load("dl_run")
    assert trainers.load("dl_run", trust_code=True).images == 16


def test_the_list_of_remembered_files_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    launch.trust.RAN["a" * 64], file = Path("a.py"), tmp_path / "config/distill/trusted_code.json"
    file.parent.mkdir(parents=True)
    file.write_text("[" * 100_000)  # damaged: it counts as empty
    assert remembered() == {}

    def remember() -> None:
        with remembering(True):
            pass

    thread = threading.Thread(target=remember)
    with FileLock(file.with_suffix(".lock")):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        file.write_text(json.dumps({"b" * 64: "b.py"}))
    thread.join()
    assert remembered() == {"a" * 64: "a.py", "b" * 64: "b.py"}


def test_a_run_that_is_stopped_remembers_before_it_exits(
    distill: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(**arguments: Any) -> None:
        launch.trust.RAN["a" * 64] = Path("a.py")
        raise Stopped("stopped")

    monkeypatch.setattr("launch.main.app", stop)
    monkeypatch.setattr("launch.main.exit_now", lambda code: sys.exit(code if remembered() else 1))
    assert distill("sample", "run", "--trust-code=remember").code == 75


def test_a_hash_agrees_to_one_file_and_to_no_other_that_it_imports(
    distill: Command, downloaded: Path, tmp_path: Path
) -> None:
    """Python would run packages around the file, files beside it, and compiled copies of other code."""
    sample, ran = ("sample", "dl_run", "--count", "1"), tmp_path / "ran"
    package, beside = Path("strange_package"), Path("strange_beside.py")
    package.mkdir()
    files = {package / "__init__.py": "", package / "o.py": OBJECTIVE.format(ran=str(ran)), beside: ""}
    files[package / "o.py"] = "import strange_beside\n" + files[package / "o.py"]
    for file, text in files.items():
        file.write_text(text)
    touch = f"open({str(tmp_path / 'compiled')!r}, 'w')"
    exec_source = tmp_path / "compiled.py"
    exec_source.write_text(touch)
    for file in files:  # compiled copies that Python takes without a look at the source
        py_compile.compile(
            str(exec_source),
            cfile=importlib.util.cache_from_source(str(file)),
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    name_objective(downloaded, "strange_package.o:Obj")
    agreed: list[str] = []
    for file in (package / "o.py", package / "__init__.py", beside):
        sha = hashlib.sha256(file.read_bytes()).hexdigest()
        result = distill(*sample, *([f"--trust-code={','.join(agreed)}"] if agreed else []))
        assert result.code == 2 and result.err.count("\n") == 1
        assert f"is code in '{file.resolve()}' (SHA-256 {sha}), which runs only with --trust-code" in result.err
        assert not ran.exists()
        agreed.append(sha)
        if file.name == "__init__.py":
            file.write_text("# other content than the other empty file\n")
            agreed[-1] = hashlib.sha256(file.read_bytes()).hexdigest()
    assert distill(*sample, f"--trust-code={','.join(agreed)}").code == 0 and ran.exists()
    for module in [name for name in sys.modules if name.startswith("strange_")]:
        del sys.modules[module]
    assert distill(*sample, "--trust-code=remember").code == 0
    assert set(agreed) <= set(yaml.safe_load((tmp_path / "config/distill/trusted_code.json").read_text()))
    assert not (tmp_path / "compiled").exists()


@pytest.mark.parametrize("module", ["antigravity", "this", "subprocess", "os.path"])
def test_the_standard_library_has_no_class_of_ours(module: str, distill: Command, downloaded: Path) -> None:
    name_objective(downloaded, f"{module}:Net")
    for more in ([], ["--trust-code"]):
        result = distill("sample", "dl_run", *more)
        assert result.code == 2 and result.err.count("\n") == 1
        assert f"cannot import '{module}:Net': the standard library has no class of this kind" in result.err


def test_a_script_without_the_class_is_not_run(distill: Command, downloaded: Path, tmp_path: Path) -> None:
    """The class is looked for in the source before anything of it runs."""
    Path("my_training.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    name_objective(downloaded, "my_training:Net")
    result = distill("sample", "dl_run", "--trust-code")
    assert result.code == 2 and "my_training.py' defines no Net" in result.err
    assert not (tmp_path / "ran").exists()


def test_the_file_of_a_class_is_a_regular_file_of_bounded_size(distill: Command, downloaded: Path) -> None:
    with (downloaded / "o.py").open("wb") as sparse:
        sparse.truncate(2**40)
    for more in ([], ["--trust-code"]):
        result = distill("sample", "dl_run", *more)
        assert result.code == 2 and result.err.count("\n") == 1
        assert f"'{downloaded / 'o.py'}': it has more than 4,194,304 bytes" in result.err


def test_a_recipe_is_its_callers_unless_it_lies_in_a_run_folder(
    distill: Command, teachers: Path, downloaded: Path, tmp_path: Path
) -> None:
    """Beside the recipe, a file and a module are found from any working directory, and later from run.yaml."""
    settings = yaml.safe_load((downloaded / "run.yaml").read_text()) | {"images": 8, "name": "mine"}
    settings.pop("objects", None)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "o.py").write_text((downloaded / "o.py").read_text())
    for number, name in enumerate(("o.py:Obj", "o:Obj")):
        settings["objective"]["name"] = name
        (mine / "recipe.yaml").write_text(yaml.safe_dump(settings))
        assert distill("train", mine / "recipe.yaml", "--folder", f"run{number}").code == 0
        assert load_run(Path(f"run{number}")).objective is not None  # type: ignore[union-attr]
        written = yaml.safe_load(Path(f"run{number}/run.yaml").read_text())["objective"]["name"]
        assert written == f"{mine / 'o.py'}:Obj"
        for module in (str(mine / "o.py"), "o"):
            sys.modules.pop(module, None)
        sys.path.remove(str(mine))
    (downloaded / "recipe.yaml").write_text(yaml.safe_dump(settings | {"objective": {"name": "dl_run/o.py:Obj"}}))
    result = distill("train", "dl_run/recipe.yaml", "--folder", "other")
    assert result.code == 2 and "which runs only with --trust-code" in result.err
    assert distill("train", "dl_run/recipe.yaml", "--folder", "other", "--trust-code").code == 0


def test_the_working_directory_is_not_on_the_path(tmp_path: Path) -> None:
    """A folder with the name of a library is not imported in its place, nor where the library is missing."""
    for name in ("triton", "flash_attn", "torchvision", "sentencepiece", "wandb", "typer", "yaml", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "launch.main", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1, 2) and "torch" in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()
