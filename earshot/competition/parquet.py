"""Unpacks audio in parquet files, such as Hugging Face's data sets, as audio files and a csv."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from earshot.competition import zip_file
from earshot.core.errors import UserError, raise_if_temporary
from earshot.core.file_names import is_audio

MAGIC = b"PAR1"
LARGEST_FOOTER = 64 << 20  # bytes
LARGEST_CELL = 1 << 30  # of audio
LARGEST_TEXT = 1 << 16  # characters of another cell
BATCH = 64 << 20  # bytes that are decoded together, or one row
SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?", re.IGNORECASE)
SUFFIXES = (
    (rb"RIFF....WAVE|RF64....WAVE", ".wav"),
    (rb"fLaC", ".flac"),
    (rb"OggS", ".ogg"),
    (rb"ID3|\xff[\xe2-\xff]", ".mp3"),
    (rb"FORM....AIF", ".aiff"),
    (rb"\.snd", ".au"),
    (rb"....ftyp", ".m4a"),
)


def is_parquet(name: str) -> bool:
    """Whether a file name is that of a parquet file."""
    return name.lower().endswith(".parquet")


def get_split(name: str) -> str:
    """The split of a parquet file: `train` for train-00000-of-00002.parquet."""
    stem = name[: -len(".parquet")]
    match = SHARD.fullmatch(stem)
    return re.sub(r"[^\w.-]", "_", match[1] if match else stem).lstrip(".") or "data"


def read_footer(path: Path) -> bytes:
    """The footer of a parquet file, which describes it; empty for a file of another kind.

    Raises:
        UserError: it is cut off.
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                return b""
            size = file.seek(-8, os.SEEK_END) + 8
            length, end = int.from_bytes(file.read(4), "little"), file.read(4)
            if end == MAGIC and length + 12 <= size and length <= LARGEST_FOOTER:
                file.seek(-8 - length, os.SEEK_END)
                return file.read(length)
    except OSError as error:
        raise_if_temporary(path, error)
        if error.strerror and error.errno != 22:  # a file shorter than the seek
            raise UserError(f"can't read {path}: {error.strerror}") from None
    raise zip_file.DamagedArchive(f"{path} is not a complete parquet file: download it again")


def can_hold_audio(path: Path) -> bool:
    """Whether a parquet file has a column of embedded files that are not images."""
    text = read_footer(path)
    return b'"Audio"' in text or b"bytes" in text and b"path" in text and b'"Image"' not in text


def compute_signature(files: Sequence[Path]) -> str:
    """A signature of parquet files, from their sizes and footers."""
    digest = hashlib.sha256(b"parquet")
    for path in files:
        digest.update(f"{path.name}\0{os.path.getsize(path)}\0".encode("utf-8", "surrogateescape"))
        digest.update(hashlib.sha256(read_footer(path)).digest())
    return digest.hexdigest()


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """pyarrow's ParquetFile.

    Raises:
        UserError: pyarrow is not installed; the file is damaged.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} holds audio, which needs pyarrow: pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            yield file
    except UserError:
        raise
    except OSError as error:
        raise_if_temporary(path, error)
        if error.errno:
            raise zip_file.UnpackError(f"cannot unpack {path}: {error.strerror}") from None
        raise zip_file.DamagedArchive(
            f"{path} is damaged ({_format_error(error)}): download it again"
        ) from None
    except (pyarrow.ArrowException, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise UserError(f"cannot read {path}: {_format_error(error)}") from None


def _format_error(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_features(schema: Any) -> dict[str, Any]:
    """The features that Hugging Face's `datasets` stores for the columns, by name."""
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(text)["info"]["features"]
        return features if isinstance(features, dict) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def find_audio_column(schema: Any) -> str | None:
    """The column of embedded audio, by its features, or else by its name; None without any."""
    from pyarrow import types

    known = read_features(schema)
    columns = []
    for column in schema:
        kinds = {f.name: f.type for f in column.type} if types.is_struct(column.type) else {}
        bytes_field = kinds.get("bytes")
        if bytes_field is not None and (types.is_binary(bytes_field) or types.is_large_binary(bytes_field)):
            feature = known.get(column.name)
            feature = feature.get("_type") if isinstance(feature, dict) else None
            if feature in (None, "Audio"):
                columns.append((feature != "Audio", column.name != "audio", column.name))
    return min(columns)[2] if columns else None


def check_files(files: Sequence[Path]) -> tuple[int, int]:
    """Rows and bytes of audio in parquet files, as they declare them.

    Raises:
        UserError: implausible sizes; no column of audio.
    """
    rows = size = 0
    for path in files:
        with open_parquet(path) as file:
            column = find_audio_column(file.schema_arrow)
            if column is None:
                raise UserError(f"{path} has no column of audio as bytes")
            bytes_there = 0
            for group in range(file.metadata.num_row_groups):
                row_group = file.metadata.row_group(group)
                chunk = _count_audio_bytes(row_group, column)
                if chunk < 0 or row_group.num_rows < 0 or chunk > LARGEST_CELL * max(row_group.num_rows, 1):
                    raise UserError(f"{path} has a cell of more than {LARGEST_CELL >> 20} MB: left out")
                bytes_there += _count_column_bytes(row_group, {column, *list_columns(file.schema_arrow)})
            zip_file.check_size(path, bytes_there)
            rows, size = rows + file.metadata.num_rows, size + bytes_there
    zip_file.check_count(files[0], rows)
    return rows, size


def _count_audio_bytes(group: Any, column: str) -> int:
    """The declared unpacked size of a row group's audio, in bytes."""
    chunks = (group.column(n) for n in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == f"{column}.bytes")


def _count_column_bytes(group: Any, wanted: set[str]) -> int:
    """The declared unpacked size of some columns of a row group, in bytes."""
    chunks = (group.column(n) for n in range(group.num_columns))
    return sum(max(c.total_uncompressed_size, 0) for c in chunks if c.path_in_schema.split(".")[0] in wanted)


def unpack_parquet(files: Sequence[Path], split: str, folder: Path) -> None:
    """Write the rows of parquet files as `folder`/`split`.csv, a column file_name and all columns of numbers,
    text and lists of labels, and their audio as files in `folder`/`split`/.

    Class labels are written by name, unknown ones (-1) as empty cells.

    Raises:
        UserError: damaged; more audio than it declares.
    """
    rows, size = check_files(files)
    zip_file.make_room(folder, files[0], size)
    (folder / split).mkdir()
    used: set[str] = set()
    header: list[str] = []
    number, left = 0, sum(map(zip_file.get_size_limit, files))
    with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as table:
        out = csv.writer(table)
        for path in files:
            with open_parquet(path) as file:
                schema = file.schema_arrow
                column, shown = find_audio_column(schema), list_columns(schema)
                assert column is not None
                if not header:
                    header = list(shown)
                    free = next(n for n in ("file_name", "audio_file", "audio_file_name") if n not in shown)
                    out.writerow([free, *header])
                for row in iterate_rows(file, column, list(shown)):
                    cell = row[column] or {}
                    data, name = cell.get("bytes"), str(cell.get("path") or "")
                    cells = [format_value(row.get(c), shown.get(c)) for c in header]
                    left -= len(data or b"") + sum(map(len, cells))
                    if left < 0:
                        raise UserError(f"{path} unpacks to more than it declares: not safe to unpack")
                    if data is not None:
                        name = f"{split}/{choose_file_name(name, data, number, used)}"
                        (folder / name).write_bytes(data)
                    out.writerow([name, *cells])
                    number += 1


def iterate_rows(file: Any, column: str, others: list[str]) -> Iterator[dict[str, Any]]:
    """The rows as dicts, few enough at once that their audio takes little memory."""
    wanted = [f"{column}.bytes", f"{column}.path", *others]
    for group in range(file.metadata.num_row_groups):
        # a cell may be as large as its whole group
        chunk = _count_column_bytes(file.metadata.row_group(group), {column, *others})
        count = min(max(BATCH // max(chunk, 1), 1), 64)
        for batch in file.iter_batches(count, row_groups=[group], columns=wanted, use_threads=False):
            yield from batch.to_pylist()


def list_columns(schema: Any) -> dict[str, list[str] | None]:
    """The columns that fit a csv, with their class names where they are numbers of classes."""
    from pyarrow import types

    plain = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_string,
        types.is_large_string,
        types.is_date,
        types.is_timestamp,
        types.is_decimal,
        types.is_dictionary,
    )
    known, known_features = read_features(schema), {}
    for column in schema:
        names, column_type = get_class_names(known.get(column.name)), column.type
        inner = (
            column_type.value_type if types.is_list(column_type) or types.is_large_list(column_type) else None
        )
        listed = inner is not None and (names or types.is_string(inner) or types.is_large_string(inner))
        if listed or any(is_plain(column_type) for is_plain in plain):
            known_features[column.name] = names
    return known_features


def get_class_names(feature: Any) -> list[str] | None:
    """The names of a column's classes, or of those in its lists; None where it has none."""
    while isinstance(feature, (dict, list)):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif isinstance(feature.get("names"), list):
            return list(map(str, feature["names"]))
        else:
            feature = feature.get("feature")
    return None


def format_value(value: Any, names: list[str] | None) -> str:
    """A value as a csv's cell, long text cut; a list in Python's notation, which labels are read from."""
    if isinstance(value, list):
        return str([format_value(item, names) for item in value])[:LARGEST_TEXT] if value else ""
    if value is None or value != value:
        return ""
    if names is not None and type(value) is int:
        return names[value] if 0 <= value < len(names) else "" if value == -1 else str(value)
    return str(value)[:LARGEST_TEXT].replace("\0", "")


def choose_file_name(path: str, data: bytes, number: int, used: set[str]) -> str:
    """A name for a file: its own without folders, where that is valid, else the row's number; with an audio
    suffix, found by the content where it has none."""
    name = re.sub(r'[\x00-\x1f\x7f:*?"<>|]', "_", re.split(r"[\\/]", path)[-1]).lstrip(". ")
    name = name.encode("utf-8", "backslashreplace")[-150:].decode("utf-8", "ignore").lstrip(". ")
    if not is_audio(name):
        suffixes = (suffix for magic, suffix in SUFFIXES if re.match(magic, data, re.DOTALL))
        name = (name or f"{number:06d}") + next(suffixes, ".wav")
    while name.casefold() in used:
        name = f"{number:06d}_{name}"
    used.add(name.casefold())
    return name
