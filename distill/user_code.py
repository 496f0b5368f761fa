"""Classes that a file names as 'module:Class' or 'file.py:Class': their code runs only with the caller's consent.

A teacher's folder, a run folder and a recipe may come from a stranger. The code that they name is found without
importing anything, and the file that would be run is checked before it is run. Consent is given in one of three ways:

- The caller of a function passes `trust_code`: True for all code, or the SHA-256 of the files that may run.
- The caller has written the name: in a recipe that lies outside run folders, in an override, in a Python program.
- A recipe names a class that the program has imported already, so nothing is imported. The class of a teacher's network
  needs consent even then, since the folder also states the arguments that it is called with.
"""

import ast
import importlib
import importlib.machinery
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from os.path import isfile, realpath  # pathlib's raise at a name that is too long, and at a link to itself
from pathlib import Path
from typing import Any

from distill.checked_import import allow_folder, check_file, find_module, run_file
from distill.errors import UserError, one_line, require


@dataclass(frozen=True)
class Consent:
    """The code that the caller of the function at work has agreed to run.

    Attributes:
        everything: Whether all code may run.
        hashes: The SHA-256 of files that may run.
        names: The names that the caller has written.
        own_roots: The folders in which these names are looked for first, beside the Python path.
        roots: The folders that may be a stranger's. No name that is found there counts as the caller's.
    """

    everything: bool = False
    hashes: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    own_roots: tuple[Path, ...] = ()
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Code:
    """The file of a class.

    Attributes:
        file: The file, resolved.
        root: The folder in which Python would have to look, or None if it finds the file without.
        place: The place in which the name was found, or None for the Python path.
    """

    file: Path
    root: Path | None
    place: Path | None


_NONE = Consent()
_CONSENT: ContextVar[Consent] = ContextVar("consent", default=_NONE)


@contextmanager
def trusting(trust_code: bool | Collection[str]) -> Iterator[None]:
    """Let code run while the context is open, as well as what may run already.

    Args:
        trust_code: True for all code, False for none, or the SHA-256 of the files that may run.
    """
    old = _CONSENT.get()
    hashes = old.hashes if isinstance(trust_code, bool) else old.hashes.union(trust_code)
    token = _CONSENT.set(replace(old, everything=old.everything or trust_code is True, hashes=hashes))
    try:
        yield
    finally:
        _CONSENT.reset(token)


@contextmanager
def naming(words: Any, root: Path) -> Iterator[None]:
    """Let the code run that the caller's own words name, while the context is open.

    Args:
        words: The words: strings, and mappings and lists of them. None for a folder whose words are not the caller's.
        root: The folder in which modules and files are looked for, beside the Python path.
    """
    old, root = _CONSENT.get(), root.resolve()
    if words is None:
        new = replace(old, roots=(*old.roots, root))
    else:
        new = replace(old, names=old.names.union(_names(words)), own_roots=(*old.own_roots, root))
    token = _CONSENT.set(new)
    try:
        yield
    finally:
        _CONSENT.reset(token)


def trusted() -> bool | frozenset[str]:
    """Return what `trusting` was given for the function at work, for a process that it starts."""
    consent = _CONSENT.get()
    return consent.everything or consent.hashes


def load_class(name: str, base: type, own: bool = False, places: Sequence[Path] = ()) -> tuple[Any, str]:
    """Import a class of a user's own, if its code may run.

    Args:
        name: 'module:Class' or 'file.py:Class'.
        base: The class that it must be derived from.
        own: Whether the caller has written the name, beside those of `naming`.
        places: Folders to look in, beside those of `naming` and the working directory.

    Returns:
        The class, and the name under which later processes find it.

    Raises:
        UserError: The code is not found or must not run, it fails, or it has no such class.
    """
    source, _, attribute = name.rpartition(":")
    consent = _CONSENT.get()
    own_places, others = (*consent.own_roots, Path.cwd()), (*consent.roots, *(place.resolve() for place in places))
    own = own or name in consent.names
    code = find_code(name, (*own_places, *others) if own else (*others, *own_places))
    own = own and code.place in (None, *own_places)
    hashes = None if own or consent.everything else consent.hashes
    _check_defined(code.file, check_file(code.file, hashes, name), name, attribute)
    if code.root is not None and not own:
        allow_folder(code.root, hashes)
    elif code.root is not None and str(code.root) not in sys.path:
        sys.path.append(str(code.root))  # at the end, so that nothing installed is replaced
    # A module that is one file in a folder of the caller is run and named by its path, so that later commands find it.
    one_file = source.endswith(".py") or (code.root is not None and "." not in source)
    try:
        with _real_tensors():
            module = run_file(code.file, hashes) if one_file else importlib.import_module(source)
        found = getattr(module, attribute)
    except UserError:
        raise
    except Exception as error:  # code of a user's may raise anything
        raise UserError(f"cannot import {name!r}: {type(error).__name__}: {one_line(error)}") from error
    if Path(module.__file__ or "").resolve() != code.file:
        raise UserError(f"{name!r}: another module of this name is imported already, from '{module.__file__}'")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{name!r} must be a class derived from {base.__name__}, got {found!r:.80}")
    return found, f"{code.file}:{attribute}" if own and one_file else name


def _real_tensors() -> AbstractContextManager[Any]:
    """Return the context in which a module is imported: the default device, or the CPU where that is `meta`.

    A module stays imported. The tensors that it makes at its top need values, though an outline of its class has none.
    """
    import torch  # here, since `distill --help` knows this file and waits for no torch

    device = torch.get_default_device()
    return torch.device("cpu") if device.type == "meta" else device


def loaded_class(name: str, base: type) -> Any:
    """Return the class of a name if the program has imported it already and it is derived from `base`, or None."""
    source, _, attribute = name.rpartition(":")
    try:
        module = sys.modules.get(realpath(source) if source.endswith(".py") else source)
    except ValueError:  # it can be no path, such as one with a NUL character
        return None
    found = getattr(module, attribute, None)
    return found if isinstance(found, type) and issubclass(found, base) else None


def find_code(name: str, places: Sequence[Path]) -> Code:
    """Find the file of a class without importing anything, nor any package around it.

    Args:
        name: 'module:Class' or 'file.py:Class'.
        places: The folders to look in, after the Python path.

    Raises:
        UserError: There is no such file, or the module is one of the standard library.
    """
    source = name.rpartition(":")[0]
    if source.endswith(".py"):
        for place in places:
            if isfile(place / source):
                file = (place / source).resolve()
                return Code(file, file.parent, place)
        raise UserError(f"cannot import {name!r}: there is no such file in '{places[0]}'")
    top, *rest = source.split(".")
    require(all(map(str.isidentifier, (top, *rest))), f"cannot import {name!r}: {source!r} is no name of a module")
    if top == "__main__":  # another program's is another module
        raise UserError(f"cannot import {name!r}: only the program that defines this class can, by itself")
    if top in sys.stdlib_module_names:
        raise UserError(f"cannot import {name!r}: the standard library has no class of this kind")
    starts: list[tuple[importlib.machinery.ModuleSpec | None, Path | None]] = [(find_module(top), None)]
    starts += [(importlib.machinery.PathFinder.find_spec(top, [str(place)]), place) for place in places]
    for spec, root in starts:
        for part in rest:
            inside = None if spec is None else spec.submodule_search_locations
            # The last part of the name alone: with all of it, Python would look for the package in sys.modules.
            spec = None if inside is None else importlib.machinery.PathFinder.find_spec(part, list(inside))
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            return Code(Path(spec.origin).resolve(), root, root)
    raise UserError(f"cannot import {name!r}: there is no such module on the Python path or in '{places[0]}'")


def _names(words: Any) -> Iterator[str]:
    """Yield the strings of nested mappings and lists."""
    if isinstance(words, str):
        yield words
    elif isinstance(words, dict | list | tuple):
        for one in words.values() if isinstance(words, dict) else words:
            yield from _names(one)


def _check_defined(file: Path, content: bytes, name: str, attribute: str) -> None:
    """Raise UserError when the source of a file shows that it cannot define a name, before it is run."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"cannot import {name!r}: {type(error).__name__}: {one_line(error)}") from error
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name)
        elif isinstance(node, ast.Name):
            bound.add(node.id)
    if not bound & {attribute, "*", "__getattr__", "globals"}:
        raise UserError(f"cannot import {name!r}: '{file}' defines no {attribute}")
