"""CSV and JSONL files with the columns `path`, `label` and, if the data are split already, `split`.

Paths are relative to the file and may not leave its folder, neither by ".." nor by a link. All bad lines are reported
at once. Whether an image is there and readable is found out when images are decoded.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from viapt.data.listing import PART_NAMES, Listing, Record, composed, suggest
from viapt.errors import DataError

MAX_TABLE_BYTES = 256 * 2**20
SHOWN = 5
SYNONYMS = {
    "path": ("file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "name"),
    "label": ("class", "class_name", "category", "target", "y"),
}

Row = dict[str, Any]


def read_table(path: Path) -> Listing:
    """List a .csv or .jsonl file; rows keep their order.

    Raises:
        DataError: another suffix, not UTF-8, too large, missing columns, or bad lines, the first few with reasons.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} is no table that is known", expected="a folder, or a file *.csv or *.jsonl")
    base = path.parent.resolve()
    listing, problems = Listing(), []
    for line, row in readers[path.suffix.lower()](path, _read_text(path)):
        if isinstance(row, str):
            problems.append(f"line {line}: {row}")
            continue
        try:
            listing.records.append(_record(row, base))
        except (ValueError, DataError) as error:
            problems.append(f"line {line}: {error}")
    if problems:
        shown = "; ".join(problems[:SHOWN]) + ("; ..." if len(problems) > SHOWN else "")
        raise DataError(f"{path} has {len(problems)} bad line(s): {shown}", remedy="correct or remove these lines")
    if len({record.part == "" for record in listing.records}) > 1:
        raise DataError(
            f"{path} names the split of some rows only", expected="train, val or test in every row, or in none"
        )
    return listing


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TABLE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_TABLE_BYTES:
        raise DataError(f"{path} is too large", expected=f"a table of at most {MAX_TABLE_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} (line {line}) is 0x{content[error.start]:02x}",
            remedy="save it as UTF-8",
        ) from error


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Row | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    header: list[str] | None = None
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = [name.strip() for name in fields]
                _check_columns(path, header)
            elif len(fields) != len(header):
                yield reader.line_num, f"{len(fields)} fields instead of {len(header)}"
            else:
                yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}, is not CSV: {error}") from error
    if header is None:
        raise DataError(f"{path} is empty", expected="a first line with the columns path,label")


def _check_columns(path: Path, header: list[str]) -> None:
    remedies = _missing(header)
    if remedies and len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        remedies = ["separate the columns by commas"]
    if remedies or len(set(header)) < len(header):
        raise DataError(
            f"{path} has the columns {', '.join(map(repr, header))}",
            expected="path, label and, if you like, split, each once",
            remedy=" and ".join(remedies),
        )


def _missing(names: Collection[str]) -> list[str]:
    """What to do about each column that is not among `names`."""
    remedies = []
    for column, synonyms in SYNONYMS.items():
        if column not in names:
            other = [name for name in names if name.lower() in (column, *synonyms)]
            remedies.append(f"rename {other[0]!r} to {column!r}" if other else f"add {column!r}")
    return remedies


def _jsonl_rows(path: Path, text: str) -> Iterator[tuple[int, Row | str]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield line, f"not JSON ({error})"
            continue
        yield line, row if isinstance(row, dict) else f"{type(row).__name__} instead of an object"


def _record(row: Row, base: Path) -> Record:
    if remedies := _missing(row):
        raise ValueError(" and ".join(remedies))
    label = row["label"]
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise ValueError(f"label {label!r} is not a name")
    key, real = _locate(row["path"], base)
    return Record(key, composed(str(label).strip(), "a class"), _part(row.get("split")), real)


def _locate(path: Any, base: Path) -> tuple[str, Path]:
    pure = PurePosixPath(path) if isinstance(path, str) else PurePosixPath()
    if not pure.parts:
        raise ValueError(f"path {path!r} is not the name of a file")
    key = composed(str(pure), "a file")
    real = Path(os.path.realpath(base / pure))
    outside = pure.is_absolute() or ".." in pure.parts
    if outside or not real.is_relative_to(base):
        raise ValueError(
            f"path {path!r} leaves the folder" + ("" if outside else " through a link, which is not followed")
        )
    return key, real


def _part(name: Any) -> str:
    if name is None or name == "":
        return ""
    known = str(name).strip().lower()
    if known not in PART_NAMES:
        raise ValueError(f"split {name!r} is not train, val or test; {suggest(known, PART_NAMES)}".rstrip("; "))
    return PART_NAMES[known]
