"""The measures of this code base as a Markdown table: `python -m benchmarks.house`.

`--fast` leaves out the measures that run the program. `--names` lists the names and files behind the counts.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("distill", "trainers", "launch")
RIDDLES = ("What", "Of", "Those", "How", "Where")  # words that no docstring begins with
RELATIVES = (*RIDDLES, "That", "Whether", "Which", "Who", "Why", "There")  # the same, and their relatives
SECTIONS = re.compile(r"^\s*(Args|Returns|Raises|Yields):", re.MULTILINE)
LIGHT = ("distill.paths", "distill.objectives.sid")  # modules whose import is meant to be light
# One pass of the training loop also asks every hook and the stop signal whether anything is due. A reader of the step
# does not follow these questions, nor the code of the network.
LEFT_OUT = {"networks", "teachers", "hooks", "stop.py", "stopping.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True)
class Source:
    """One Python file of the repository."""

    path: Path
    root: Path = ROOT

    @property
    def name(self) -> str:
        """The path of the file in the repository."""
        return self.path.relative_to(self.root).as_posix()

    @cached_property
    def text(self) -> str:
        """The file's text."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def lines(self) -> list[str]:
        """The file's lines, without their ends."""
        return self.text.splitlines()

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the syntax tree."""
        return list(ast.walk(ast.parse(self.text)))

    @property
    def functions(self) -> list[Function]:
        """Every function and method, nested ones included."""
        return [node for node in self.nodes if isinstance(node, Function)]

    @cached_property
    def documented(self) -> list[tuple[int, int, str]]:
        """First line, last line and text of every docstring."""
        found = []
        for node in self.nodes:
            if isinstance(node, ast.Module | Definition) and (text := ast.get_docstring(node)) is not None:
                first = node.body[0]
                found.append((first.lineno, first.end_lineno or first.lineno, text))
        return found

    @cached_property
    def comments(self) -> dict[int, bool]:
        """The lines that carry a comment, and whether they hold nothing else."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        found = [token for token in tokens if token.type == tokenize.COMMENT]
        return {token.start[0]: not token.line[: token.start[1]].strip() for token in found}

    @property
    def code_lines(self) -> int:
        """The number of lines that are neither blank, nor docstring, nor comment alone."""
        docstrings = {line for first, last, _ in self.documented for line in range(first, last + 1)}
        dropped = docstrings | {line for line, alone in self.comments.items() if alone}
        return sum(bool(line.strip()) and number not in dropped for number, line in enumerate(self.lines, 1))

    @cached_property
    def public(self) -> dict[str, bool]:
        """The public names that the file defines at its top level, and whether they are functions or classes."""
        module = self.nodes[0]
        assert isinstance(module, ast.Module)
        found = {name: defined for node in module.body for name, defined in _defined(node)}
        return {name: defined for name, defined in found.items() if not name.startswith("_")}


def _defined(node: ast.stmt) -> Iterator[tuple[str, bool]]:
    """Yield the names that a statement defines, and whether they are functions or classes."""
    if isinstance(node, Definition):
        yield node.name, True
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for part in (part for target in targets for part in ast.walk(target)):
        if isinstance(part, ast.Name):
            yield part.id, False


def sources(root: Path = ROOT) -> list[Source]:
    """Return the Python files of the packages."""
    return [Source(path, root) for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def length(node: ast.AST) -> int:
    """Return the number of lines of a definition, docstring included and decorators excluded."""
    assert isinstance(node, Definition)
    return (node.end_lineno or node.lineno) - node.lineno + 1


def begins(text: str, words: tuple[str, ...] = RIDDLES) -> bool:
    """Return whether a docstring begins with one of the words."""
    return re.match(rf"({'|'.join(words)})\b", text) is not None


def shared_names(files: list[Source]) -> dict[str, list[Source]]:
    """Return the public top-level names that several of the files define, with these files."""
    homes: dict[str, list[Source]] = {}
    for file in files:
        for name in file.public:
            homes.setdefault(name, []).append(file)
    return {name: found for name, found in sorted(homes.items()) if len(found) > 1}


def shared_in_package(files: list[Source]) -> dict[str, list[str]]:
    """Return the public names that several files of one package define, as `package.name`, with these files.

    Entry points named `main` are left out.
    """
    found = {}
    for package in PACKAGES:
        inside = [file for file in files if file.name.startswith(f"{package}/")]
        for name, homes in shared_names(inside).items():
            if name != "main":
                found[f"{package}.{name}"] = [home.name for home in homes]
    return found


def measures(files: list[Source] | None = None) -> dict[str, object]:
    """Return the measures that are read from the source, by name. Shares are between 0 and 1."""
    files = sources() if files is None else files
    sizes = [len(file.lines) for file in files]
    functions = [length(function) for file in files for function in file.functions]
    documented = [entry for file in files for entry in file.documented]
    texts = [text for *_, text in documented]
    comments = [alone for file in files for alone in file.comments.values()]
    filled = [line for file in files for line in file.lines if line.strip()]
    sentences = [part for text in texts for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]
    twice = shared_names(files)
    total = sum(sizes)
    return {
        "files": len(files),
        "lines": total,
        "code lines (no blank, docstring or comment lines)": sum(file.code_lines for file in files),
        "median file": statistics.median(sizes),
        "longest file": max(sizes),
        "functions": len(functions),
        "mean function": statistics.mean(functions),
        "longest function": max(functions),
        "classes": sum(isinstance(node, ast.ClassDef) for file in files for node in file.nodes),
        "share of lines in docstrings": sum(last - first + 1 for first, last, _ in documented) / total,
        "share of lines with a comment": len(comments) / total,
        "share of lines that are a comment": sum(comments) / total,
        "share of docstrings with Args, Returns or Raises": _share(bool(SECTIONS.search(text)) for text in texts),
        "docstrings that begin with What/Of/Those/How/Where": sum(begins(text) for text in texts),
        "docstrings that begin with these, That, Whether, Which, Who, Why, There": sum(
            begins(text, RELATIVES) for text in texts
        ),
        "semicolons per docstring sentence": sum(text.count(";") for text in texts) / len(sentences),
        "share of lines over 100 columns (of those not blank)": _share(len(line) > 100 for line in filled),
        "public names defined in several files": len(twice),
        "functions and classes among them": sum(any(f.public[name] for f in homes) for name, homes in twice.items()),
        "public names defined in several files of one package": len(shared_in_package(files)),
    }


def _share(flags: Iterator[bool]) -> float:
    return statistics.mean(float(flag) for flag in flags)


def traced() -> dict[str, object]:
    """Return the measures that are taken by running the program in processes of its own, by name.

    The files of one step are those whose functions run from the start of one round of training to the start of the
    next, without LEFT_OUT.
    """
    found: dict[str, object] = {f"modules imported by {module}": len(imported(module)) for module in LIGHT}
    found["seconds of distill --help"] = seconds(["-m", "launch.main", "--help"])
    with tempfile.TemporaryDirectory() as folder:
        step = trace(Path(folder))
    found["frames from the command to optimizer.step"] = len(step["frames"])
    found["files of one SiD step"] = len(step["files"])
    return found


def imported(module: str) -> list[str]:
    """Return the modules of ours that a fresh process loads when it imports `module`."""
    code = f"import sys, {module}; print(*sys.modules)"
    names = _python(["-c", code]).split()
    return sorted(name for name in names if name.partition(".")[0] in PACKAGES)


def seconds(arguments: list[str], runs: int = 3) -> float:
    """Return the shortest time of several runs of Python, after one that fills the caches of the disk."""
    times = []
    for _ in range(1 + runs):
        start = time.perf_counter()
        _python(arguments)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _python(arguments: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


NETWORK = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "num_class_embeds": 10,
    "layers_per_block": 1,
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "norm_num_groups": 4,
    "add_attention": False,
}
DENOISER = {"path": {"name": "edm"}, "prediction": "edm", "sigma_data": 0.5, "shape": [1, 8, 8], "classes": 10}


def trace(folder: Path) -> dict[str, list[str]]:
    """Train a tiny run of two rounds in `folder`, in a process of its own, and follow it.

    Returns:
        `frames`, which are our functions on the stack at the first `optimizer.step`, and `files`, which are those of
        one step.
    """
    from diffusers import UNet2DModel

    UNet2DModel(**NETWORK).save_pretrained(folder / "teacher" / "unet")
    (folder / "teacher" / "denoiser.json").write_text(json.dumps(DENOISER))
    recipe: dict[str, Any] = {"name": "tiny", "teacher": str(folder / "teacher"), "data": "digits", "objective": "sid"}
    recipe |= {"images": 16, "batch_size": 8, "generator": {"lr": 1e-3}, "fake": {"lr": 1e-3}}
    recipe |= {"evaluation": {"samples": 64}, "log_every": 16, "samples_every": 16, "checkpoint_every": 16}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    _python(["-c", f"from benchmarks.house import follow; follow({str(folder)!r})"])
    found: dict[str, list[str]] = json.loads((folder / "trace.json").read_text())
    return found


def follow(folder: str) -> None:
    """Run `distill train` on the recipe in `folder` in this process, follow it, and write trace.json there."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from launch.main import main

    stacks: list[list[FrameType]] = []
    calls: list[CodeType] = []

    def at_step(*_: object) -> None:
        stacks.append(_stack())

    def at_call(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and _ours(frame.f_code):
            calls.append(frame.f_code)

    register_optimizer_step_pre_hook(at_step)
    os._exit = sys.exit  # type: ignore[assignment]  # a command may end its process at once; this one has more to do
    sys.argv = ["distill", "train", f"{folder}/recipe.yaml", "--folder", f"{folder}/run"]
    sys.setprofile(at_call)  # of this thread alone
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
    result = {"frames": [_label(frame.f_code) for frame in stacks[0]], "files": _files(stacks, calls)}
    (Path(folder) / "trace.json").write_text(json.dumps(result))


def _files(stacks: list[list[FrameType]], calls: list[CodeType]) -> list[str]:
    """Return the files of one step.

    The fake's update and the generator's follow each other in the same call of one function, which is the round.
    """
    fake, generator = stacks[:2]
    (*_, common) = (one for one, other in zip(fake, generator, strict=False) if one is other)
    first, second = [index for index, code in enumerate(calls) if code is common.f_code][:2]
    files = {_file(code) for code in calls[first:second]}
    return sorted(file for file in files if not LEFT_OUT & set(Path(file).parts))


def _stack() -> list[FrameType]:
    """Return the frames of ours on the stack, the outermost first."""
    frame: FrameType | None = sys._getframe()
    found = []
    while frame is not None:
        if _ours(frame.f_code):
            found.append(frame)
        frame = frame.f_back
    return found[::-1]


def _file(code: CodeType) -> str:
    return os.path.relpath(code.co_filename, ROOT)


def _ours(code: CodeType) -> bool:
    return code.co_filename.startswith(tuple(f"{ROOT / package}{os.sep}" for package in PACKAGES))


def _label(code: CodeType) -> str:
    return f"{_file(code)}: {code.co_qualname}"


def table(found: Mapping[str, object]) -> str:
    """Return measures as a Markdown table."""
    rows = [f"| {name} | {_shown(name, value)} |" for name, value in found.items()]
    return "\n".join(["| measure | value |", "| --- | --- |", *rows])


def _shown(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if name.startswith("share") else f"{value:.2f}".removesuffix(".00")
    return f"{value:,}"


def names() -> str:
    """Return the names and files behind the counts, as Markdown."""
    lines = ["## Public names defined in several files of one package", ""]
    lines += [f"- `{name}`: {', '.join(homes)}" for name, homes in shared_in_package(sources()).items()]
    for module in LIGHT:
        lines += ["", f"## Modules imported by {module}", "", *(f"- {name}" for name in imported(module))]
    with tempfile.TemporaryDirectory() as folder:
        step = trace(Path(folder))
    for title, key in (("Frames from the command to optimizer.step", "frames"), ("Files of one SiD step", "files")):
        lines += ["", f"## {title}", "", *(f"- {entry}" for entry in step[key])]
    return "\n".join(lines)


def main() -> None:
    """Print the measures."""
    parser = argparse.ArgumentParser(description="Print the measures of this code base as a Markdown table.")
    parser.add_argument("--fast", action="store_true", help="leave out what runs the program")
    parser.add_argument("--names", action="store_true", help="list the names and files behind the counts as well")
    options = parser.parse_args()
    print(table({**measures(), **({} if options.fast else traced())}))
    if options.names:
        print(f"\n{names()}")


if __name__ == "__main__":
    main()
