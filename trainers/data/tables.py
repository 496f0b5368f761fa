"""Tables: a file, a folder of files, a glob, a folder that `save_to_disk` wrote, or a data set on the hub."""

import codecs
import csv
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.errors import UserError, one_line, options
from trainers.data.folders import SPLITS, count_endings, is_hidden
from trainers.io.console import plain

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"encoding": "utf-8-sig"}),
    ".csv": ("csv", {"encoding": "utf-8-sig", "keep_default_na": False}),  # "None" and "NA" are words
    ".tsv": ("csv", {"encoding": "utf-8-sig", "keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
"""{ending of a file: (the builder of `datasets` that reads it, its arguments)}."""
ENCODINGS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def local_path(path: str) -> Path:
    """Return a path on this machine, which need not exist.

    Raises:
        UserError: It can be no path.
    """
    if not path.isprintable() or not path.strip() or len(path.encode()) > 4000 or max(map(len, path.split("/"))) > 255:
        raise UserError(f"data.path: must be a path or an id of the hub, got {path[:80]!r}")
    return Path(path).expanduser()


@contextmanager
def bars_on_a_terminal() -> Iterator[None]:
    """Hide the progress bars of `datasets` where stderr is no terminal, and show them afterwards."""
    import datasets

    hide = not datasets.are_progress_bars_disabled() and not plain(stderr=True).is_terminal
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


@bars_on_a_terminal()
def open_rows(path: str, split: str, config: str | None) -> Any:
    """Open a table by the `datasets` library, and return its datasets.Dataset.

    Args:
        path: A file, a folder, a glob, or an id on the hub.
        split: The split.
        config: The configuration of a data set on the hub.

    Raises:
        UserError: There is no such table.
    """
    from datasets import load_dataset, load_from_disk

    local = local_path(path)
    try:
        if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
            saved = load_from_disk(str(local))
            if isinstance(saved, dict) and split not in saved:
                raise UserError(f"data.split: '{path}' has the splits {options(saved, split)}, got {split!r}")
            return saved[split] if isinstance(saved, dict) else saved
        if local.is_dir():
            if config is not None or _states_its_files(local):
                return load_dataset(str(local), config, split=split)
            return open_files(path, _files_of_splits(local, path, split), split)
        if local.exists() and not local.is_file():  # a pipe would never end
            raise UserError(f"data: cannot load '{path}': it is no regular file")
        if local.is_file() or local.suffix in FORMATS or any(glob.iglob(str(local))):
            files = [local] if local.is_file() else sorted(map(Path, glob.glob(str(local))))
            return open_files(path, {split.partition("[")[0]: files}, split)
        _check_hub_id(path)
        plain(stderr=True).print(f"data: '{path}' is read from the hub; there is no such folder in '{Path.cwd()}'")
        return load_dataset(path, config, split=split)
    except UserError:
        raise
    except Exception as error:  # `datasets` raises a dozen kinds, and the user needs the message alone
        tried = "" if local.exists() else f"there is no such file or folder in '{Path.cwd()}', nor on the hub: "
        raise UserError(f"data: cannot load '{path}': {tried}{one_line(error)}") from error


@bars_on_a_terminal()
def open_files(path: str, files: Mapping[str, Sequence[Path]], split: str) -> Any:
    """Open files of one format as one table, in this order, and return its datasets.Dataset.

    Args:
        path: Their path in messages.
        files: {name of a split: its files}.
        split: The split, or a slice of it such as `train[:100]`.

    Raises:
        UserError: There are none, or one of them is damaged or not in UTF-8.
    """
    from datasets import load_dataset

    every = [file for part in files.values() for file in part]
    if not every:
        raise UserError(f"data: cannot load '{path}': Unable to find such a file in '{Path.cwd()}'")
    ending = every[0].suffix
    if ending not in FORMATS:
        raise UserError(f"data.path: '{path}' must end in one of {', '.join(FORMATS)}, or be a folder or a hub id")
    for file in every:
        if not file.is_file():  # a pipe would never end
            raise UserError(f"data: cannot load '{file}': it is no regular file")
        if file.stat().st_size == 0:
            raise UserError(f"data: cannot load '{file}': it is empty (0 bytes)")
        if ending != ".parquet":
            _check_encoding(file)
    builder, options = FORMATS[ending]
    patterns = {name: [glob.escape(str(file)) for file in part] for name, part in files.items()}
    try:
        return load_dataset(builder, data_files=patterns, split=split, **options)
    except Exception as error:  # `datasets` raises a dozen kinds
        raise UserError(f"data: cannot load '{path}': {one_line(error)}") from error


def check_column(rows: Any, column: str, path: str, key: str, hint: str = "") -> None:
    """Raise UserError when a table lacks a column.

    Args:
        rows: A datasets.Dataset, or Pictures.
        column: The name of the column.
        path: The path of the table, for messages.
        key: The key of the recipe that names the column, for messages.
        hint: The end of the message.
    """
    if column not in rows.column_names:
        raise UserError(f"{key}: no column {column!r} in {path}; it has {options(rows.column_names, column)}{hint}")


def text_column(rows: Any, column: str, path: str, key: str) -> Sequence[str]:
    """Return the strings in a column.

    Args:
        rows: A datasets.Dataset, or Pictures.
        column: The name of the column.
        path: The path of the table, for messages.
        key: The key of the recipe that names the column, for messages.

    Raises:
        UserError: The column is missing, or holds anything else than strings.
    """
    check_column(rows, column, path, key)
    values: Sequence[str] = rows[column][:]
    if wrong := [number for number, value in enumerate(values) if not isinstance(value, str)]:
        found = values[wrong[0]]
        raise UserError(f"{key}: {column!r} in {path} must hold strings; row {wrong[0]} holds {found!r}"[:300])
    return values


def _check_hub_id(path: str) -> None:
    """Raise UserError when a path that does not exist cannot be an id on the hub either."""
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) is None or path.startswith("."):
        raise UserError(
            f"data: cannot load '{path}': Unable to find such a file or folder in '{Path.cwd()}', and it is no id of"
            " the hub (NAME or OWNER/NAME)"
        )


def _check_encoding(file: Path) -> None:
    """Raise UserError when a file of text is not in UTF-8, or holds a zero byte, as no text does."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    with file.open("rb") as stream:
        while True:
            part = stream.read(2**20)
            if position == 0 and (wide := ENCODINGS.get(part[:2])):
                raise UserError(f"data: '{file}' is in {wide}; save it in UTF-8")
            if (zero := part.find(b"\0")) >= 0:
                raise UserError(f"data: '{file}' is no text: its byte number {position + zero:,} is zero")
            try:
                decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"data: '{file}' is not in UTF-8 (byte {error.object[error.start]:#04x} about byte number"
                    f" {position + error.start:,}); save it in UTF-8"
                ) from error
            if not part:
                return
            position += len(part)


def _states_its_files(folder: Path) -> bool:
    """Return whether the README.md of a folder states the files of its splits, as clones from the hub do."""
    readme = folder / "README.md"
    try:
        return readme.is_file() and re.match(r"---\n(.*\n)*?configs:", _beginning(readme)) is not None
    except (OSError, ValueError):
        return False


def _beginning(file: Path) -> str:
    """Return the beginning of a text file."""
    with file.open(encoding="utf-8") as stream:
        return stream.read(20_000)


def _files_of_splits(folder: Path, path: str, split: str) -> dict[str, list[Path]]:
    """Return the files of a folder of tables by split, for the splits that `split` names.

    The files are splits only if the name of each begins with that of a split, or lies in its folder.
    """
    every = [
        f for f in sorted(folder.rglob("*")) if f.is_file() and not any(map(is_hidden, f.relative_to(folder).parts))
    ]
    found = [file for file in every if file.suffix in FORMATS]
    if any(file.suffix != ".txt" for file in found):  # LICENSE.txt
        found = [file for file in found if file.suffix != ".txt"]
    if any(file.suffix == ".parquet" for file in found):  # dataset_infos.json
        found = [file for file in found if file.suffix == ".parquet"]
    if not found:
        raise UserError(f"data: cannot load '{path}': the folder holds no file of {', '.join(FORMATS)}")
    if len(endings := sorted({file.suffix for file in found})) > 1:
        raise UserError(
            f"data: cannot load '{path}': it holds {' and '.join(endings)}; name a glob, as in {path}/*.csv"
        )
    chosen = of_split(found, folder, path, split)
    read = {file for files in chosen.values() for file in files}
    if others := [file.relative_to(folder).as_posix() for file in every if file not in read]:
        plain(stderr=True).print(f"data: left out of '{path}': {', '.join(count_endings(others))}")
    return chosen


def of_split(files: Sequence[Path], folder: Path, path: str, split: str) -> dict[str, list[Path]]:
    """Return the files in a folder by split, for the splits that `split` names.

    The files are splits only if the name of each begins with that of a split, or lies in its folder. Else all of them
    are of the split train.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(_split_of(file.relative_to(folder)) or "", []).append(file)
    if "" in groups:
        groups = {"train": list(files)}
    chosen = {name: part for name, part in groups.items() if re.search(rf"\b{name}\b", split)}
    if not chosen:
        raise UserError(f"data.split: '{path}' has the splits {options(sorted(groups), split)}, got {split!r}")
    return chosen


def _split_of(file: Path) -> str | None:
    """Return the split that the name of a file or of its folder at the top states, or None."""
    if len(file.parts) > 1 and file.parts[0] in SPLITS:
        return file.parts[0]
    word = re.split(r"[-._]", file.name)[0]
    return word if word in SPLITS else None
