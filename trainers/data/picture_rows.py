"""Pictures in the rows of a table, and the choice between a folder of pictures and a table."""

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from distill.errors import UserError
from trainers.data.folders import ending, list_folder, list_zip, open_folder
from trainers.data.pictures import Pictures, Tree
from trainers.data.pixels import Damaged, check_bytes, picture_endings, read_file
from trainers.data.tables import check_column, local_path, open_files, open_rows
from trainers.data.tars import find_tars, list_tars


def open_pictures(path: str, split: str, config: str | None, column: str) -> Pictures:
    """Return the pictures of a data set.

    Args:
        path: A folder or a zip archive of pictures, tar archives (one, a glob or a folder of them), or a table as
            `open_rows` opens it.
        split: The split.
        config: The configuration of a data set on the hub.
        column: The column of the pictures.

    Raises:
        UserError: There is no such data set, or the column holds no pictures.
    """
    local = local_path(path)
    tree: Tree | None = None
    if (tars := find_tars(local)) and not (local.is_dir() and _has_pictures(local)):
        tree, split = list_tars(tars, path, split)
    elif local.suffix.lower() == ".zip" and local.is_file():
        tree = list_zip(local)
    elif local.is_dir() and not _is_table(local):
        tree = list_folder(local)
    if tree is not None:
        found = open_folder(tree, path, split, lambda file: open_files(str(file), {"train": [file]}, "train"))
        check_column(found, column, path, "data.image_column")
        if column != "image":
            raise UserError(f"data.image_column: {column!r} in {path} holds no images; its pictures are 'image'")
        return found
    return rows_of_pictures(open_rows(path, split, config), path, column)


def rows_of_pictures(rows: Any, path: str, column: str) -> Pictures:
    """Return the pictures in a column of a table.

    Args:
        rows: A datasets.Dataset.
        path: The path of the table, for messages.
        column: The column: images, lists of one, bytes of pictures, or structs of bytes and path.

    Raises:
        UserError: The column is missing, or holds no pictures.
    """
    from datasets import ClassLabel, Image, List

    check_column(rows, column, path, "data.image_column")
    if not _holds_pictures(rows.features[column]):
        raise UserError(f"data.image_column: {column!r} in {path} holds no images")
    plain_kind = Image(decode=False)  # so that the bytes come as they are
    kind = List(plain_kind) if isinstance(rows.features[column], List) else plain_kind
    encoded = rows.select_columns([column]).cast_column(column, kind)
    names = {name: feature.names for name, feature in rows.features.items() if isinstance(feature, ClassLabel)}

    def values(name: str) -> Callable[[], Sequence[Any]]:
        return lambda: rows[name][:]

    return Pictures(
        len(rows),
        lambda number: _content(encoded[number][column]),
        lambda number: f"row {number} of {path}",
        partial(_stamp, encoded, column),
        {name: None if name == column else values(name) for name in rows.column_names},
        names,
    )


def _is_table(folder: Path) -> bool:
    """Return whether a folder holds a table: parquet files, or what `save_to_disk` writes."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return True
    files = [file for file in folder.rglob("*.parquet") if file.name != "metadata.parquet"]
    return any(file.parent == folder for file in files) or (bool(files) and not _has_pictures(folder))


def _has_pictures(folder: Path) -> bool:
    return any(ending(file.name) in picture_endings() for file in folder.rglob("*"))


def _holds_pictures(feature: Any) -> bool:
    """Return whether a column of this kind can be read as pictures."""
    from datasets import Image, List, Value

    if isinstance(feature, List):
        return isinstance(feature.feature, Image)
    if isinstance(feature, dict):
        return "bytes" in feature and set(feature) <= {"bytes", "path"}
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _content(value: Any) -> bytes:
    """Return the bytes of a picture in a row. Raise Damaged if there are none."""
    if isinstance(value, list):
        if len(value) != 1:
            raise Damaged(f"holds {len(value)} pictures; write one in each row")
        value = value[0]
    if value is None:
        raise Damaged("is empty (no picture)")
    data: bytes | None = value["bytes"]
    if data is not None:
        check_bytes(len(data))
        return data
    if not value["path"]:
        raise Damaged("is empty (no picture)")
    if "://" in value["path"]:
        raise Damaged(f"is an address ({value['path'][:80]}), which is not fetched")
    return read_file(Path(value["path"]))


def _stamp(encoded: Any, column: str) -> str:
    """Return a hash of the files that hold the rows, or of the rows if they are in memory alone."""
    digest = sha256(column.encode())
    files = [Path(file["filename"]) for file in encoded.cache_files]
    for file in files:
        digest.update(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns} {len(encoded)}\n".encode())
    if not files:
        for number in range(len(encoded)):
            digest.update(_content_or_reason(encoded[number][column]))
    return digest.hexdigest()


def _content_or_reason(value: Any) -> bytes:
    try:
        return sha256(_content(value)).digest()
    except Damaged as why:
        return str(why).encode()
