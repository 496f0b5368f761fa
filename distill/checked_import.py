"""Import of code from a stranger's folder: every file of it is checked before it runs.

A class whose file the caller has agreed to may import other files of its folder, and Python runs the packages around
it. Each of these files is code of the same stranger. All run from their source, since a compiled copy in `__pycache__`
may be of other code.
"""

import hashlib
import importlib.machinery
import sys
from collections.abc import Collection, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import CodeType, ModuleType

from distill.errors import UserError, one_line
from distill.saved_files import read_bounded

MAX_SOURCE = 2**22  # bytes; what Python makes of a source takes a hundred times as many
MAX_COMPILED = 2**28

RAN: dict[str, Path] = {}
"""The files that have run by consent, by SHA-256."""


def allow_folder(root: Path, hashes: Collection[str] | None) -> None:
    """Let modules be imported from a folder, after those that Python finds without it.

    Args:
        root: The folder.
        hashes: The SHA-256 of the files that may run, or None for all.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)  # before the finder that would import a submodule unchecked
    known = _FINDER.roots.get(root, frozenset())
    _FINDER.roots[root] = None if hashes is None or known is None else known | frozenset(hashes)


def find_module(name: str) -> importlib.machinery.ModuleSpec | None:
    """Find a module that has no package around it, outside the allowed folders. Nothing is imported."""
    others = (finder for finder in sys.meta_path if finder is not _FINDER)
    return next((spec for finder in others if (spec := finder.find_spec(name, None))), None)


def check_file(file: Path, hashes: Collection[str] | None, name: str) -> bytes:
    """Return the content of a file of code that may run, and note that it runs.

    Args:
        file: The file.
        hashes: The SHA-256 of the files that may run, or None for all.
        name: The name by which the file is imported, for the error.

    Raises:
        UserError: The hash of the file is not among them, or the file is very large or no regular file.
    """
    try:
        content = read_bounded(file, MAX_SOURCE if file.suffix == ".py" else MAX_COMPILED)
    except OSError as error:
        raise UserError(f"cannot import {name!r}: '{file}': {one_line(error)}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if hashes is not None and sha256 not in hashes:
        raise UserError(
            f"{name!r} is code in '{file}' (SHA-256 {sha256}), which runs only with --trust-code, in Python"
            " trust_code=True; read it first"
        )
    RAN[sha256] = file
    return content


def run_file(file: Path, hashes: Collection[str] | None) -> ModuleType:
    """Run a file once, and return it as a module. The name of the module is the full path of the file.

    Args:
        file: The file, resolved.
        hashes: As in `check_file`.
    """
    name = str(file)
    if name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)  # before it runs, since its dataclasses look the module up
        module.__file__ = name
        try:
            _CheckedLoader(name, name, hashes).exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


class _CheckedLoader(importlib.machinery.SourceFileLoader):
    """Compiles the bytes that were checked."""

    def __init__(self, name: str, path: str, hashes: Collection[str] | None) -> None:
        super().__init__(name, path)
        self._hashes = hashes

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(check_file(Path(self.path), self._hashes, fullname), self.path)


class _CheckedFinder(MetaPathFinder):
    """Finds the modules of the allowed folders, and their submodules.

    Attributes:
        roots: The hashes that may run, by folder, or None for all.
        packages: The folder of each top-level module that was found, by name.
    """

    def __init__(self) -> None:
        self.roots: dict[Path, frozenset[str] | None] = {}
        self.packages: dict[str, Path] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is None:
            return self._find_first(fullname)
        root = self.packages.get(fullname.partition(".")[0])
        return None if root is None else self._find_in(root, fullname, path)

    def _find_first(self, name: str) -> importlib.machinery.ModuleSpec | None:
        """Find a module that has no package around it."""
        if find_module(name):
            return None
        for root in self.roots:
            if spec := self._find_in(root, name, [str(root)]):
                self.packages[name] = root
                return spec
        return None

    def _find_in(self, root: Path, name: str, path: Sequence[str]) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, list(path))
        if spec is not None and spec.origin is not None:  # a package without a file of its own runs nothing
            if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
                spec.loader = _CheckedLoader(name, spec.origin, self.roots[root])
            else:  # a compiled module
                check_file(Path(spec.origin), self.roots[root], name)
        return spec


_FINDER = _CheckedFinder()
