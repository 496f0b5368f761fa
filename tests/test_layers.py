"""What may import what, read from the source: `distill` <- `trainers` <- `launch`, and the order inside the packages.

A new room needs a floor in the tables below. The last part runs the rules on a wrong tree: a blind check passes too.
"""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("distill", "trainers", "launch")
FOLDERS = (*PACKAGES, "configs", "tests", "benchmarks")
MAX_LINES, IMPORT_SECONDS = 400, 1.5
TRACKERS = ("wandb", "tensorboard", "trackio")
NEVER = {
    "distill": {*TRACKERS, "accelerate", "trainers", "launch", "configs", "torch.utils.tensorboard"},
    "trainers": {"launch", "configs"},
}

# A module imports only modules of its package with a lower floor; a sub-package counts as one module.
FLOORS = {
    "distill": {
        "errors": 0,
        "annotations": 0,
        "public_text": 0,
        "saved_files": 0,
        "pickles": 1,
        "installed": 0,
        "records": 1,
        "weights": 1,
        "quiet": 0,
        "checked_import": 1,
        "user_code": 2,
        "compilation": 0,
        "random": 1,
        "conditions": 2,
        "power_ema": 1,
        "metrics": 2,
        "paths": 2,
        "lora": 1,
        "pipeline_folder": 2,
        "encoders": 3,
        "times": 3,
        "loss_weights": 2,
        "networks": 4,
        "prediction": 3,
        "denoiser": 5,
        "generator": 6,
        "augmentation": 6,
        "guidance": 6,
        "discriminator": 6,
        "perceptual": 6,
        "samplers": 7,
        "sampling": 8,
        "teachers": 7,
        "rewards": 7,
        "tiny": 8,
        "objectives": 8,
        "export": 9,
    },
    "trainers": {
        "io": 0,
        "data": 1,
        "recipe": 2,
        "engine": 3,
        "checkpoints": 4,
        "evaluation": 5,
        "hooks": 6,
        "runs": 7,
        "reports": 9,
        "plan": 8,
        "probe": 9,
        "loop": 8,
        "api": 9,
        "floor": 10,
    },
}
# Modules that may import even less than their floor allows:
ONLY = {("distill", "metrics"): {"annotations", "errors", "installed", "pickles", "records", "saved_files", "weights"}}
NO_FILES = "distill.objectives"  # an objective declares what it needs; the trainer opens it
FILE_MODULES = ("pathlib", "os", "io", "json", "safetensors", "shutil", "tempfile", "distill.teachers")
READS_ENVIRONMENT = ("launch",)  # the package that may read os.environ
HEAVY = ("diffusers", "transformers", "peft")  # slow to import: at module level only in these places, and there only if
HEAVY_HOMES = ("distill.tiny", "distill.export.shipped")  # `import distill` does not load them


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, and when it runs ("module", "function" or "types")."""

    module: str
    target: str
    line: int
    scope: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def under(name: str, *prefixes: str) -> bool:
    """True if the dotted `name` is one of the prefixes or lies inside one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def find_modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every .py file of ours; a package is named without `__init__`."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


class Collector(ast.NodeVisitor):
    """Collects the imports of one file, absolute and relative, by statement or by `import_module("name")`."""

    def __init__(self, module: str, path: Path, modules: dict[str, Path]) -> None:
        self.module, self.modules, self.scope = module, modules, "module"
        self.package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        self.imports: list[Import] = []

    def add(self, target: str, line: int) -> None:
        self.imports.append(Import(self.module, target, line, self.scope))

    def inside(self, scope: str, nodes: list[ast.stmt]) -> None:
        outer, self.scope = self.scope, scope
        for node in nodes:
            self.visit(node)
        self.scope = outer

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self.package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *base.split(".")]).strip(".")
        for alias in node.names:
            name = f"{base}.{alias.name}"
            self.add(name if name in self.modules or not under(base, *FOLDERS) else base, node.lineno)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.inside("types" if self.scope == "types" else "function", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        checking = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self.inside("types" if checking else self.scope, node.body)
        self.inside(self.scope, node.orelse)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func).rpartition(".")[2]
        first = node.args[0] if node.args else None
        if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
            self.add(str(first.value), node.lineno)
        self.generic_visit(node)


def find_imports(root: Path) -> list[Import]:
    """Every import in every .py file of ours."""
    modules, found = find_modules(root), []
    for module, path in modules.items():
        collector = Collector(module, path, modules)
        collector.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        found += collector.imports
    return found


def wrong_direction(root: Path) -> list[str]:
    """Imports from a package to one it must not know."""
    imports = find_imports(root)
    return [str(i) for i in imports if under(i.target, *NEVER.get(i.module.split(".")[0], ()))]


def wrong_order(root: Path) -> Iterator[str]:
    """Imports inside a package that do not go to a lower floor; the package's `__init__.py` may import all of it."""
    for module in find_modules(root):
        package, _, rest = module.partition(".")
        if rest and package in FLOORS and rest.split(".")[0] not in FLOORS[package]:
            yield f"{module} has no floor: add {rest.split('.')[0]!r} to FLOORS in tests/test_layers.py"
    for i in find_imports(root):
        package = i.module.split(".")[0]
        if package not in FLOORS or i.module == package or not under(i.target, package):
            continue
        unit, target = i.module.split(".")[1], (*i.target.split("."), "")[1]
        if unit == target:
            continue
        lower = FLOORS[package].get(target, sys.maxsize) < FLOORS[package].get(unit, -1)
        if not target or not lower or target not in ONLY.get((package, unit), {target}):
            yield str(i)


def environment_readers(root: Path) -> list[str]:
    """Places outside READS_ENVIRONMENT that read the environment."""
    found = []
    for module, path in find_modules(root).items():
        if not under(module, *PACKAGES) or under(module, *READS_ENVIRONMENT):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name in ("os.environ", "os.environb", "os.getenv"):
                found.append(f"{module}:{node.lineno} reads {name}")
    return found


def file_users(root: Path) -> list[str]:
    """Imports and calls inside NO_FILES with which a file could be opened."""
    imports = [i for i in find_imports(root) if under(i.module, NO_FILES) and under(i.target, *FILE_MODULES)]
    found = [str(i) for i in imports if i.scope != "types"]
    for module, path in find_modules(root).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if under(module, NO_FILES) else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                found.append(f"{module}:{node.lineno} opens a file")
    return found


def loaded_by(start: str, root: Path) -> set[str]:
    """The modules of ours that run when `start` is imported, parent packages included."""
    imports, loaded, todo = find_imports(root), set[str](), [start]
    while todo:
        name = todo.pop()
        if name in loaded:
            continue
        loaded.add(name)
        todo += [i.target for i in imports if i.module == name and i.scope == "module"]
        todo += [parent] if (parent := name.rpartition(".")[0]) else []
    return loaded & set(find_modules(root))


def heavy_imports(root: Path) -> list[str]:
    """Module-level imports of slow libraries where they are not allowed."""
    eager, imports = loaded_by("distill", root), find_imports(root)
    heavy = [i for i in imports if i.scope == "module" and under(i.target, *HEAVY) and under(i.module, *PACKAGES)]
    return [str(i) for i in heavy if i.module in eager or not under(i.module, *HEAVY_HOMES)]


def find_cycle(root: Path) -> list[str]:
    """One cycle of module-level imports, those for annotations included, or nothing."""
    graph: dict[str, set[str]] = {name: set() for name in find_modules(root)}
    for i in find_imports(root):
        if i.scope != "function" and i.target in graph and i.target != i.module:
            graph[i.module].add(i.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def too_long(root: Path) -> list[str]:
    """Files of more than MAX_LINES lines."""
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in find_modules(root).values()}
    return [f"{path.relative_to(root)}: {lines} lines" for path, lines in sizes.items() if lines > MAX_LINES]


MODULES = sorted(m for m in find_modules(ROOT) if under(m, *PACKAGES) and not m.endswith("__main__"))


def test_the_packages_are_seen() -> None:
    assert {*PACKAGES, "configs"} <= set(find_modules(ROOT))


def test_packages_import_one_way() -> None:
    assert wrong_direction(ROOT) == []


def test_modules_import_only_lower_floors() -> None:
    assert list(wrong_order(ROOT)) == []


def test_only_launch_reads_the_environment() -> None:
    assert environment_readers(ROOT) == []


def test_objectives_open_no_file() -> None:
    assert file_users(ROOT) == []


def test_slow_libraries_are_not_imported_early() -> None:
    assert heavy_imports(ROOT) == []


def test_no_import_cycles() -> None:
    assert find_cycle(ROOT) == []


def test_files_are_short() -> None:
    assert too_long(ROOT) == []


@pytest.mark.parametrize("module", MODULES)
def test_module_imports(module: str) -> None:
    assert importlib.import_module(module).__name__ == module


PROBE = f"""
import sys, time
import torch
start = time.perf_counter()
import distill
print(time.perf_counter() - start, *({ {*HEAVY, *TRACKERS, "accelerate"} } & set(sys.modules)))
"""


def test_import_distill_is_fast() -> None:
    """What `import distill` adds to `import torch`, in fresh processes; the minimum is the least disturbed."""
    runs = [subprocess.check_output([sys.executable, "-c", PROBE], cwd=ROOT, text=True) for _ in range(3)]
    assert runs[0].split()[1:] == []
    assert min(float(run.split()[0]) for run in runs) < IMPORT_SECONDS


WRONG = {
    "distill/__init__.py": "from distill.paths import Path\nfrom .sampling import sample\n",
    "distill/errors.py": "",
    "distill/random.py": "",
    "distill/paths.py": "if TYPE_CHECKING:\n    from .denoiser import Denoiser\n",
    "distill/times.py": "from . import paths\ndef f():\n    from distill.denoiser import Denoiser\n",
    "distill/denoiser.py": "import distill\nfrom distill import errors\n\nimportlib.import_module('wandb')\n",
    "distill/sampling.py": "import diffusers\n",
    "distill/extra.py": "class A:\n    import transformers.models\n",
    "distill/metrics/__init__.py": "from ..errors import UserError\nfrom ..random import Random\n",
    "distill/objectives/__init__.py": "from distill.objectives.sid import SiD\n",
    "distill/objectives/sid.py": "async def f():\n    from launch import main\n    import diffusers\n    open('f')\n",
    "distill/teachers/__init__.py": "from diffusers import UNet2DModel\nif TYPE_CHECKING:\n    import peft\n",
    "trainers/__init__.py": "def f():\n    import configs\n    from accelerate import Accelerator\n",
    "trainers/engine/step.py": "try:\n    from trainers.engine import player\nexcept ImportError:\n    pass\n",
    "trainers/engine/player.py": "from trainers.engine.step import update\nos.environ['A']\n" + "\n" * MAX_LINES,
    "trainers/io/files.py": "import trainers.engine.step\n",
    "launch/__init__.py": "from trainers.engine.step import update\nimport distill.objectives.sid\nos.environ['A']\n",
}


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A small tree that breaks every rule."""
    for name, text in WRONG.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_wrong_direction_is_found(wrong: Path) -> None:
    assert wrong_direction(wrong) == [
        "distill.denoiser:4 imports wandb",
        "distill.objectives.sid:2 imports launch",
        "trainers:2 imports configs",
    ]


def test_wrong_order_is_found(wrong: Path) -> None:
    assert list(wrong_order(wrong)) == [
        "distill.extra has no floor: add 'extra' to FLOORS in tests/test_layers.py",
        "distill.denoiser:1 imports distill",
        "distill.metrics:2 imports distill.random",
        "distill.paths:2 imports distill.denoiser",
        "distill.times:3 imports distill.denoiser",
        "trainers.io.files:1 imports trainers.engine.step",
    ]


def test_readers_of_the_environment_are_found(wrong: Path) -> None:
    assert environment_readers(wrong) == ["trainers.engine.player:2 reads os.environ"]


def test_files_in_objectives_are_found(wrong: Path) -> None:
    assert file_users(wrong) == ["distill.objectives.sid:4 opens a file"]


def test_early_heavy_imports_are_found(wrong: Path) -> None:
    assert heavy_imports(wrong) == [
        "distill.extra:2 imports transformers.models",
        "distill.sampling:1 imports diffusers",
        "distill.teachers:1 imports diffusers.UNet2DModel",
    ]


def test_cycles_are_found(wrong: Path) -> None:
    (wrong / "distill/denoiser.py").write_text("")
    assert set(find_cycle(wrong)) == {"trainers.engine.step", "trainers.engine.player"}
    (wrong / "trainers/engine/player.py").write_text("")
    (wrong / "distill/paths.py").write_text("from distill import times\n")
    assert set(find_cycle(wrong)) == {"distill.paths", "distill.times"}


def test_long_files_are_found(wrong: Path) -> None:
    assert too_long(wrong) == ["trainers/engine/player.py: 402 lines"]
