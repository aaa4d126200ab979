"""JSON Lines: one JSON object per line, UTF-8."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tf_fashion.core.files import atomic_write
from tf_fashion.datasets.records import OnProblem, Problem, raise_errors, short_repr


def read_lines(path: Path, on_problem: OnProblem = raise_errors) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file, one by one, with their line numbers from 1.

    Blank lines are passed over. Everything that is no object goes to `on_problem`, and reading goes on after it; a file that cannot
    be read, or that is not UTF-8, is one problem.
    """
    path = Path(path)
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    what = f"expected a JSON object, found {short_repr(line.strip())} (column {error.colno}: {error.msg})."
                    on_problem(Problem("error", where, what, "", "bad line"))
                except (ValueError, RecursionError) as error:
                    on_problem(Problem("error", where, f"JSON that cannot be read ({error}).", "", "bad line"))
                else:
                    if isinstance(value, dict):
                        yield number, value
                    else:
                        what = f"expected a JSON object, found {short_repr(value)}."
                        on_problem(Problem("error", where, what, "", "bad line"))
    except UnicodeDecodeError as error:
        where = f"{path}, after line {number}"
        what = f"expected UTF-8, found the byte 0x{error.object[error.start]:02x}."
        on_problem(Problem("error", where, what, "Save the file as UTF-8.", "unreadable file"))
    except OSError as error:
        on_problem(Problem("error", str(path), f"cannot be read ({error.strerror}).", "", "unreadable file"))


def write_lines(path: str | Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes one object per line, atomically; returns how many."""
    count = 0
    with atomic_write(path) as file:
        for count, record in enumerate(records, 1):  # noqa: B007
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return count


def field_problem(record: Mapping[str, Any], fields: Mapping[str, type], where: str) -> Problem | None:
    """The first field that is missing or of another type, or None. `bool` is no `int`."""
    names = {int: "a whole number", str: "a string", list: "a list"}
    for name, kind in fields.items():
        if name not in record:
            found = ", ".join(map(short_repr, record)) or "nothing"
            return Problem("error", where, f"expected the key {name!r}, found {found}.", "", "missing key")
        value = record[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            fix = f"Write it without quotes: {value}." if kind is int and isinstance(value, str) and value.strip().isdigit() else ""
            what = f"expected {names[kind]} as {name!r}, found {short_repr(value)}."
            return Problem("error", where, what, fix, "bad value")
    return None
