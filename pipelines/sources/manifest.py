"""A manifest: a CSV, TSV or Parquet file with one row a video, the column `path` and what is known of each.

Paths are absolute, or relative to the manifest's folder (or to a root that is named). Nothing is dropped in silence: a row
whose file is missing stays a row, and the probe rejects it.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import InputError
from pipelines.sources.folder import Listing, SourceFile, left_out, utf8
from pipelines.video.media import media_stat

logger = logging.getLogger("tubelet.sources")

SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
FACTS = ("url", "licence", "uploader", "language", "label")
SPELLINGS = {"license": "licence", "author": "uploader"}  # as other tools write them
EXPECTED = "a CSV, TSV or Parquet file with a column path, and as you like " + ", ".join(FACTS)


def facts_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The words of a record that a `SourceFile` keeps; our spelling first where a record has two. Empty ones are left out."""
    found = {fact: _text(record.get(fact)) for fact in FACTS}
    for spelling, fact in SPELLINGS.items():
        found[fact] = found[fact] or _text(record.get(spelling))
    return {fact: value for fact, value in found.items() if value}


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, dict | list) else utf8(str(value)).strip()


def read_rows(path: Path, needed: tuple[str, ...]) -> tuple[list[str], Iterator[dict[str, str]]]:
    """(column names in lower case, rows of text, one after another) of a table; a missing cell is "".

    Raises `InputError` when it cannot be read, lacks a needed column or has one twice, or, at such a row, when a row does
    not fit.
    """
    columns, rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    missing = [name for name in needed if name not in columns]
    if missing:
        raise InputError(
            f"{path} has no column {', '.join(missing)}", expected="the columns " + ", ".join(needed) + " in the first line",
            found=", ".join(columns) or "nothing", remedy="name the columns in the header; cells are separated by commas (tabs in a .tsv)",
        )  # fmt: skip
    twice = [name for name in sorted({*needed, "path", *FACTS, *SPELLINGS}) if columns.count(name) > 1]
    if twice:
        raise InputError(
            f"{path} has more than one column {', '.join(twice)}", expected="each column once, in upper or lower case", found=", ".join(columns),
            remedy="keep one of them, or rename the others",
        )  # fmt: skip
    return columns, rows


def _csv_rows(path: Path) -> tuple[list[str], Iterator[dict[str, str]]]:
    lines = enumerate(_csv_lines(path), start=1)
    columns = [name.strip().lower() for name in next((cells for _, cells in lines if cells), [])]

    def rows() -> Iterator[dict[str, str]]:
        for number, cells in lines:
            if len(cells) not in (0, len(columns)):
                raise InputError(
                    f"row {number} of {path} does not fit its header", expected=f"{len(columns)} cells ({', '.join(columns)})",
                    found=f"{len(cells)} cells", remedy="put cells that hold a comma in double quotes",
                )  # fmt: skip
            if cells:
                yield dict(zip(columns, cells, strict=True))

    return columns, rows()


def _csv_lines(path: Path) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            yield from csv.reader(handle, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def _parquet_rows(path: Path) -> tuple[list[str], Iterator[dict[str, str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    columns = [name.strip().lower() for name in names]

    def rows() -> Iterator[dict[str, str]]:
        try:
            with pq.ParquetFile(path) as table:
                for batch in table.iter_batches():
                    # Not batch.to_pylist(): its rows are mappings, in which columns of one name are one.
                    for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                        yield {name: "" if value is None else str(value) for name, value in zip(columns, row, strict=True)}
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from error

    return columns, rows()


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read as a manifest", expected=EXPECTED, found=str(error), remedy="name another file, or mend this one")


def list_manifest(path: Path, root: Path) -> Listing:
    """The files a manifest names, each once; `root` is where relative paths start. Missing files are there with 0 bytes."""
    columns, rows = read_rows(path, ("path",))
    unknown = [name for name in columns if name not in ("path", *FACTS, *SPELLINGS)]
    if unknown:
        logger.info("%s: columns that are not kept: %s", path, ", ".join(unknown))
    return files_of_rows(rows, root)


def files_of_rows(rows: Iterable[dict[str, str]], root: Path) -> Listing:
    """The files that rows with a `path` name, sorted by path, whatever the order of the rows."""
    named: dict[str, list[dict[str, str]]] = {}
    empty: list[str] = []
    for number, row in enumerate(rows, start=1):
        if row["path"].strip():
            named.setdefault(str(root / row["path"].strip()), []).append(facts_of(row))
        else:
            empty.append(f"row {number}")
    # Of rows that disagree about one path, the same one counts in every order of the rows.
    files = tuple(stated(path, min(named[path], key=lambda facts: sorted(facts.items())) if len(named[path]) > 1 else named[path][0]) for path in sorted(named))
    return Listing(
        files,
        (
            *left_out("rows without a path", empty),
            *left_out("paths that more than one row names, each taken once", [path for path in named if len(named[path]) > 1]),
        ),
    )


def stated(path: str, facts: Mapping[str, Any]) -> SourceFile:
    """A file by its path; 0 bytes of time 0 when it cannot be found, so that the probe rejects it by name."""
    try:
        status = media_stat(path)
    except (OSError, ValueError):  # a null byte in a cell is no path
        return SourceFile(path, 0, 0, **facts)
    return SourceFile(path, status.bytes, status.mtime_ns, **facts)


def is_missing(file: SourceFile) -> bool:
    """Whether a manifest named a file that was not there."""
    return file.bytes == 0 and file.mtime_ns == 0
