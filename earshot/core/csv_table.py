"""A csv file as text, exactly as written: read in full, or refused with the number of the faulty line."""

from __future__ import annotations

import csv
import itertools
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pandas as pd

from earshot.core.errors import UserError, raise_if_temporary

# far above any competition's; checked before memory is used, as an untrusted csv must not fill it
MAX_BYTES = 2**29
MAX_COLUMNS = 20_000
MAX_CELLS = 50_000_000
MAX_CELL = 2**17  # characters
SEPARATORS = ",;\t|"
QUOTED = re.compile(r'"((?:[^"]|"")*)"')
# Excel's "Unicode text" is the second
BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


def read(path: Path, header_row: bool = True) -> pd.DataFrame:
    """A csv as text exactly as written, so that an id such as 0012, NA or 1e5 survives; headers without outer
    blanks.

    UTF-8 and UTF-16 with its mark; any line ends; commas, else the one of semicolon, tab and bar that the
    header has. Blank lines and columns without any content are left out; a row with too few fields ends in
    empty cells. A stray quote (in prose between tabs) is text, where each line by itself has the header's
    number of fields. A last column whose name is in [brackets] takes the rest of its row; between tabs, so
    does a last column `tags` or `labels`, whose fields are joined by semicolons.

    Args:
        header_row: False where the first row is data: the columns are then called column 1, column 2, ...
    Returns:
        a str in every cell; the index is each row's (first) line in the file, as an editor counts.
        `attrs["stray"]`: for each column with such quotes, the lines of the cells that begin with one.
        `attrs["joined"]`: the first lines of rows of several lines, each of which could be a row.
    Raises:
        UserError: not a regular file or not text, no header, two columns of one name, a row with more fields
            than the header, a quote without its end, or larger than any competition's.
    """
    path, at = Path(path), 1
    try:
        encoding = _detect_encoding(path)
        with open(path, encoding=encoding, newline="") as file:
            first = file.readline(2**24)
            mark = re.match(r"sep=(.)\s*$", first)  # Excel's own way to say it
            done = 1 if mark else 0
            if not mark:
                file.seek(0)
            separator = mark[1] if mark else _detect_separator(first, path)

            def regular(width: int) -> bool:
                """Does every line, read without quotes, have this many fields?"""
                with open(path, encoding=encoding, newline="") as again:
                    rest = itertools.islice(_iterate_lines(again, path, 0), done, None)
                    return all(
                        len(_split_outside_quotes(line, separator)) == width for line in rest if line.strip()
                    )

            records = _parse_records(_iterate_lines(file, path, done), separator, regular)
            lines, cells, header, total, at = [], [], None, 0, done + 1
            ragged = tagged = False
            stray: dict[str, list[int]] = {}
            joined: list[int] = []
            for row, taken, odd, doubtful in records:
                here, at = at, at + taken
                total += len(row)
                if len(row) > MAX_COLUMNS or total > MAX_CELLS:
                    raise UserError(
                        f"{path} is too large: {len(row):,} columns, {total:,} cells by line {here}, where "
                        f"{MAX_COLUMNS:,} and {MAX_CELLS:,} are the limit: leave out what is not needed"
                    )
                if not any(map(str.strip, row)):
                    continue
                if header is None and header_row:
                    header = [name.strip() for name in row]
                    ragged = re.fullmatch(r"\[.+\]", header[-1]) is not None
                    tagged = separator == "\t" and header[-1].lower() in ("tags", "labels")
                    continue
                if header is None:
                    header = [f"column {number}" for number in range(1, len(row) + 1)]
                if tagged and len(row) > len(header):
                    row = [*row[: len(header) - 1], ";".join(filter(None, row[len(header) - 1 :]))]
                elif ragged and len(row) > len(header):
                    row = [*row[: len(header) - 1], separator.join(row[len(header) - 1 :])]
                if len(row) > len(header) and any(map(str.strip, row[len(header) :])):
                    raise UserError(
                        f"{path}, line {here}: {len(row)} fields, and {len(header)} in the header: put a "
                        "field that holds a separator into quotes, or fix the header"
                    )
                joined += [here] if doubtful else []
                for column in odd:
                    stray.setdefault(header[column], []).append(here)
                lines.append(here)
                cells.append(row[: len(header)] + [""] * (len(header) - len(row)))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}{_locate_error(path, error)} is not UTF-8 text: save it as UTF-8") from None
    except csv.Error as error:
        hint = (
            "a quote is missing, or stands inside a field"
            if "limit" not in str(error)
            else "a quote is missing?"
        )
        raise UserError(f"cannot read {path}, line {at}: {error}: {hint}") from None
    except OSError as error:
        raise_if_temporary(path, error)
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if header is None:
        raise UserError(f"cannot read {path}: it is empty: download it again, or delete it")
    frame = pd.DataFrame(cells, columns=range(len(header)), index=lines, dtype=object)
    frame = _set_header(frame, header, path)
    frame.attrs |= {"stray": stray, "joined": joined}
    return frame


def _parse_records(
    lines: Iterator[str], mark: str, regular: Callable[[int], bool]
) -> Iterator[tuple[list[str], int, list[int], bool]]:
    """The rows: fields, how many lines they take, the numbers of the fields that begin with a stray quote,
    and whether each of several lines could be a row.

    A quote that opens in one line and closes in another may hide the rows between them. It is a stray one
    where its lines, read without quotes, have the header's number of fields, and so has every line of the
    file; between tabs, which prose has none of, its own lines are enough.

    Args:
        regular: does every line of the file, read without quotes, have that many fields?
    """
    even: bool | None = None
    ahead: deque[str] = deque()
    width = 0
    while True:
        first = ahead.popleft() if ahead else next(lines, None)
        if first is None:
            return
        bare, taken, fault = _split_outside_quotes(first, mark), [first], None
        row, odd, doubtful = bare, [], False
        if '"' in first or len(first) > MAX_CELL:

            def following(taken: list[str] = taken) -> Iterator[str]:
                yield taken[0]
                while (line := ahead.popleft() if ahead else next(lines, None)) is not None:
                    taken.append(line)
                    yield line

            try:
                row = next(csv.reader(following(), delimiter=mark, strict=True))
            except csv.Error as error:
                fault = error
            alone = taken[:1] if fault else [line for line in taken if line.strip()]
            possible = (fault or len(taken) > 1 or len(row) != width) and all(
                1 < len(_split_outside_quotes(line, mark)) == width and len(line) <= MAX_CELL
                for line in alone
            )
            if possible and not fault and len(taken) > 1 and mark != "\t":
                even = regular(width) if even is None else even
                doubtful = not even
            if possible and not doubtful:
                ahead.extendleft(reversed(taken[1:]))
                del taken[1:]
                whole = [QUOTED.fullmatch(field) for field in bare]
                row = [
                    match[1].replace('""', '"') if match else field
                    for field, match in zip(bare, whole, strict=True)
                ]
                odd = [i for i, field in enumerate(bare) if field.startswith('"') and not whole[i]]
            elif fault:
                raise fault
        width = width or (len(row) if any(map(str.strip, row)) else 0)
        yield row, len(taken), odd, doubtful


def _split_outside_quotes(line: str, mark: str) -> list[str]:
    """A line's fields, read without quotes."""
    return line.rstrip("\r\n").split(mark)


def _detect_encoding(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"cannot read {path}: it is not a regular file")
    if status.st_size > MAX_BYTES:
        raise UserError(
            f"{path} has {status.st_size / 1e9:.1f} GB, more than the {MAX_BYTES / 1e9:.1f} GB that a csv "
            "may have: leave out what is not needed"
        )
    with open(path, "rb") as file:
        head = file.read(4)
    return next((name for mark, name in BOMS if head.startswith(mark)), "utf-8")


def _iterate_lines(file: IO[str], path: Path, done: int) -> Iterator[str]:
    for number, line in enumerate(file, done + 1):
        if "\0" in line:  # numpy's text ends at it, so that two labels could become one
            raise UserError(
                f"{path}, line {number}: a NUL character: the file is damaged, or UTF-16 without its mark: "
                "save it as UTF-8"
            )
        yield line


def _detect_separator(header: str, path: Path) -> str:
    """A comma where the header has one (outside quotes), else the first of the others that it has; of a .tsv
    the tab; of a .txt without any the blank."""
    bare = re.sub(r'"[^"]*"', "", header)
    known = "\t" + SEPARATORS if path.suffix.lower() == ".tsv" else SEPARATORS
    known += " " * (path.suffix.lower() == ".txt")
    return next((mark for mark in known if mark in bare), ",")


def _locate_error(path: Path, error: UnicodeDecodeError) -> str:
    if "utf-8" not in error.encoding:
        return ""
    data = path.read_bytes()  # the error counts from somewhere in the middle
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as of_whole:
        before = re.split(rb"\n|\r(?!\n)", data[: of_whole.start])
        return f", line {len(before)},"
    return ""


def _set_header(frame: pd.DataFrame, header: list[str], path: Path) -> pd.DataFrame:
    """The frame under its header, without the columns that have neither name nor content."""
    kept = [i for i, name in enumerate(header) if name or frame[i].str.strip().any()]
    frame = frame[kept]
    frame.columns = pd.Index([header[i] or f"Unnamed: {i}" for i in kept], dtype=object)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise UserError(f"{path} has two columns {format_cell(twice[0])}: rename one of them, or take it out")
    odd = [name for name in frame.columns if re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", name)]
    if odd:
        raise UserError(
            f"{path}: the header {format_cell(odd[0])} holds a line break or a control character: fix it"
        )
    return frame


def find_nameless(frame: pd.DataFrame) -> list[str]:
    """The columns without a name, as of a written pandas index."""
    return [name for name in frame.columns if re.fullmatch(r"Unnamed: \d+(_level_\d+)?", name)]


def format_cell(text: str) -> str:
    """A cell for a message: one line, printable, shortened."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return text if text.isprintable() else repr(text)


def format_list(texts, most: int = 12) -> str:
    """A list for a message, shortened if long."""
    texts = list(texts)
    return ", ".join(map(format_cell, texts[:most])) + (
        f", ... ({len(texts)} in all)" if len(texts) > most else ""
    )
