"""Folders and archives of pictures: which files are pictures, and which labels and words lie beside them."""

import json
import os
import posixpath
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill.errors import UserError, one_line, options, require
from distill.public_text import printable
from trainers.data.beside import Columns, columns_beside
from trainers.data.labels import in_order
from trainers.data.pictures import Pictures, Tree, ZipTree
from trainers.data.pixels import Damaged, picture_endings

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
EDM_LABELS = "dataset.json"
SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"})


def open_folder(tree: Tree, path: str, split: str, open_metadata: Callable[[Path], Any]) -> Pictures:
    """Return the pictures of a folder or an archive.

    Labels are those of EDM's dataset.json, or of a metadata file, or of the files beside the pictures in a tar archive,
    or the folders in which the pictures lie. Folders are splits only if each folder at the top has the name of a split,
    in any case. Names of files never are.

    Args:
        tree: The files of the folder, or of the archive.
        path: Its path, for messages.
        split: The split.
        open_metadata: (file) -> the table of a metadata file.

    Raises:
        UserError: There are no pictures, or no such split.
    """
    base, bracket, _ = split.partition("[")
    prefix, names, further = _of_split(tree, path, base)
    pictures = [name for name in names if ending(name) in picture_endings()]
    metadata = [name for name in names if posixpath.basename(name) in METADATA]
    left_out = [*tree.left_out, *further]
    words: dict[str, list[Any]] = {}
    class_names: dict[str, Sequence[str]] = {}
    if metadata and tree.kind == "the archive":
        raise UserError(f"data: cannot load '{path}': {shown(metadata[0])} is not read from an archive; unpack it")
    if metadata:
        lines, words = _read_metadata(tree, metadata, open_metadata)
        listed = set(lines)
        if without := [name for name in pictures if name not in listed]:
            left_out.append(
                f"{len(without):,} pictures without a line in {posixpath.basename(metadata[0])}, such as {without[0]}"
            )
        pictures = lines
    if not pictures:
        raise UserError(f"data: cannot load '{path}': {tree.kind} holds no pictures{_instead(names, path)}")
    beside, texts = columns_beside(tree, names, pictures)
    columns: Columns = {"image": None, **beside, **{name: partial(list, values) for name, values in words.items()}}
    used = {*pictures, *metadata, *texts}
    edm = [name for name in names if posixpath.basename(name) == EDM_LABELS]
    numbers = _edm_labels(tree, edm[0]) if len(edm) == 1 else None
    if numbers is not None:
        used.add(edm[0])
        if numbers:
            columns["label"] = partial(_listed_labels, numbers, pictures, path)
    elif "label" not in columns and any("/" in tree.inside(name).removeprefix(prefix) for name in pictures):
        columns["label"] = partial(_folder_labels, tree, pictures, prefix, path)
        class_names["label"] = in_order({class_of(name) for name in pictures})
    left_out += count_endings([name for name in names if name not in used])
    place = path if Path(path).name == tree.root.name else tree.root  # not a glob
    found = Pictures(
        len(pictures),
        lambda number: tree.read(pictures[number]),
        lambda number: shown(f"{place}/{pictures[number]}"),
        lambda: tree.stamp(pictures),
        columns,
        class_names,
        [shown(text) for text in left_out],
    )
    return found.select(_slice(split, len(pictures))) if bracket else found


def _slice(split: str, count: int) -> range:
    """Return the positions that a split such as `train[:100]` or `train[:10%]` means."""
    from datasets import ReadInstruction

    try:
        (part,) = ReadInstruction.from_spec(split).to_absolute({split.partition("[")[0]: count})
    except Exception as error:
        raise UserError(f"data.split: {split!r} is no split: {one_line(error)}") from error
    return range(part.from_ or 0, count if part.to is None else part.to)


def list_folder(root: Path) -> Tree:
    """Return the files under a folder. Links are followed, but not those that lead back into it."""
    names: list[str] = []
    left_out: list[str] = []
    empty: list[str] = []
    hidden, top, seen = 0, os.path.realpath(root), set[str]()
    for place, folders, files in os.walk(root, followlinks=True):
        inside = os.path.relpath(place, root).replace(os.sep, "/")
        prefix = "" if inside == "." else f"{inside}/"
        keep = [name for name in sorted(folders) if not is_hidden(name)]
        hidden += len(folders) - len(keep)
        folders[:] = []
        for name in keep:
            if os.path.islink(link := os.path.join(place, name)):
                real = os.path.realpath(link).rstrip("/")  # empty for the root of the disk
                if real in seen or f"{real}/".startswith(f"{top}/") or f"{top}/".startswith(f"{real}/"):
                    left_out.append(f"the link {prefix}{name}, whose folder is read already")
                    continue
                seen.add(real)
            folders.append(name)
        visible = [name for name in files if not is_hidden(name)]
        hidden += len(files) - len(visible)
        names += [prefix + name for name in visible]
        if prefix and not visible and not keep:
            empty.append(inside)
    if hidden:
        left_out.append(f"{hidden:,} hidden files and folders")
    return Tree(root, sorted(names), left_out, sorted(empty))


def list_zip(file: Path) -> Tree:
    """Return the files in a zip archive.

    Raises:
        UserError: It is damaged, or encrypted.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    # NotImplementedError: zipfile's for an archive of a newer version than it reads.
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"data: cannot load '{file}': {error}") from error
    if any(entry.flag_bits & 1 for entry in entries):
        raise UserError(f"data: cannot load '{file}': it is encrypted")
    names = [entry.filename for entry in entries if not entry.is_dir()]
    kept = {name for name in names if not any(is_hidden(part) for part in name.split("/"))}
    hidden = [f"{count:,} hidden files and folders"] if (count := len(set(names) - kept)) else []
    folders = {entry.filename.rstrip("/") for entry in entries if entry.is_dir()}
    empty = folders - {posixpath.dirname(name) for name in kept | folders}
    return ZipTree(file, sorted(kept), hidden, sorted(name for name in empty if not is_hidden(class_of(f"{name}/"))))


def is_hidden(name: str) -> bool:
    """Return whether a file or a folder is one that systems put there: `.DS_Store`, `._1.png`, `__MACOSX`."""
    return name.startswith((".", "__"))


def ending(name: str) -> str:
    """Return the ending of a file, in small letters."""
    return posixpath.splitext(name)[1].lower()


def shown(text: str) -> str:
    """Return text that can be printed in one line. Names of files may hold line breaks, and bytes that are no UTF-8."""
    decoded = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return printable(decoded, len(decoded))


def class_of(name: str) -> str:
    """Return the folder in which a picture lies."""
    return posixpath.basename(posixpath.dirname(name))


def _instead(names: Sequence[str], path: str) -> str:
    """Return words about what a folder without pictures holds."""
    if archives := [name for name in names if ending(name) in (".zip", ".tar")]:
        return f"; name the archive, as in {path}/{archives[0]}"
    return f", but {shown(count_endings(names)[0])}" if names else ""


def _of_split(tree: Tree, path: str, split: str) -> tuple[str, Sequence[str], list[str]]:
    """Return the folder of a split, with a slash, the names of its files, and words about the other splits."""
    pictures = [name for name in tree.names if ending(name) in picture_endings()]
    tops = Counter(name.split("/")[0] if "/" in name else "" for name in pictures)
    if not tops or not {top.lower() for top in tops} <= SPLITS:
        if split != "train":
            raise UserError(f"data.split: '{path}' has no folders of splits: 'train' is all of it, got {split!r}")
        return "", tree.names, []
    chosen = split if split in tops else next((top for top in sorted(tops) if top.lower() == split), None)
    if chosen is None:
        raise UserError(f"data.split: '{path}' has the splits {', '.join(sorted(tops))}, got {split!r}")
    others = [f"{count:,} pictures of the split {name}" for name, count in sorted(tops.items()) if name != chosen]
    return f"{chosen}/", [name for name in tree.names if name.startswith(f"{chosen}/")], others


def _read_metadata(
    tree: Tree, files: Sequence[str], open_metadata: Callable[[Path], Any]
) -> tuple[list[str], dict[str, list[Any]]]:
    """Return the pictures that metadata files list, and the columns beside them."""
    pictures: list[str] = []
    columns: dict[str, list[Any]] = {}
    for file in files:
        rows = open_metadata(tree.root / file)
        if "file_name" not in rows.column_names:
            raise UserError(
                f"data: '{tree.root / file}' has no column 'file_name'; it has {options(rows.column_names)}"
            )
        further = {name: list(rows[name][:]) for name in rows.column_names if name != "file_name"}
        if columns and set(columns) != set(further):
            raise UserError(f"data: '{tree.root / file}' has other columns than '{tree.root / files[0]}'")
        for row, name in enumerate(rows["file_name"][:]):
            place = posixpath.normpath(posixpath.join(posixpath.dirname(file), name)) if isinstance(name, str) else ".."
            if place.startswith(("/", "..")) or "://" in name or "\0" in name:
                raise UserError(
                    f"data: '{tree.root / file}', row {row}: file_name must be a path inside the folder, got {name!r}"
                )
            pictures.append(place)
        for name, values in further.items():
            columns.setdefault(name, []).extend(values)
    return pictures, columns


def _edm_labels(tree: Tree, file: str) -> dict[str, Any] | None:
    """Return {picture: label} of EDM's dataset.json, empty if it states that there are none. None for another file."""
    where = f"'{shown(str(tree.root))}/{shown(file)}'"
    try:
        content = json.loads(tree.read(file))
    except (Damaged, ValueError, RecursionError) as error:
        raise UserError(f"data: cannot read {where}: {one_line(error)[:150]}") from error
    if not isinstance(content, dict) or "labels" not in content:
        return None
    labels = content["labels"] or []
    pairs = list(labels.items()) if isinstance(labels, dict) else labels
    form = f"data: {where} must hold labels: [[file, number], ...]"
    require(isinstance(pairs, list), form)
    found: dict[str, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(f"{form}, got {str(pair)[:80]}")
        name = pair[0].replace("\\", "/")  # Windows wrote it
        found[posixpath.join(posixpath.dirname(file), name)] = pair[1]
    return found


def _listed_labels(labels: dict[str, Any], pictures: Sequence[str], path: str) -> list[Any]:
    """Return the labels of pictures by dataset.json."""
    if missing := [name for name in pictures if name not in labels]:
        raise UserError(
            f"data.label_column: '{path}/{EDM_LABELS}' has no label for {len(missing):,} of {len(pictures):,} pictures,"
            f" such as {shown(missing[0])}"
        )
    return [labels[name] for name in pictures]


def _folder_labels(tree: Tree, pictures: Sequence[str], prefix: str, path: str) -> list[str]:
    """Return the folder in which each picture lies, as its class. `prefix` is the folder of the split."""
    inside = [tree.inside(name).removeprefix(prefix) for name in pictures]
    empty = [name.removeprefix(prefix) for name in tree.empty if name.startswith(prefix)]
    depths = {name.count("/"): name for name in reversed(inside)}
    hint = "(null trains without labels)"
    if len(depths) > 1:
        examples = " and ".join(shown(depths[depth]) for depth in sorted(depths))
        raise UserError(
            f"data.label_column: pictures of '{path}' lie at different depths, such as {examples[:200]}, so that their"
            f" folders are no classes {hint}"
        )
    depth = next(iter(depths))
    if classes := [name for name in empty if name.count("/") == depth - 1]:
        raise UserError(
            f"data.label_column: the class folder {shown(classes[0])} of '{path}' is empty; fill or remove it {hint}"
        )
    return [class_of(name) for name in inside]


def count_endings(names: Sequence[str]) -> list[str]:
    """Return words for files that are not read: one file by its name, several by their ending."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(ending(name) or "no ending", []).append(name)
    counted = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [group[0] if len(group) == 1 else f"{len(group):,} files of {end}" for end, group in counted]
