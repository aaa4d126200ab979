"""Filters for "only women's, only black": conditions on predicted labels, on a catalogue's own columns, or on both.

A condition is `task=name`, `task=name,name` (any of them) or a name alone where only one task has it. An `only` condition keeps
rows with one of the names, a `without` condition drops them; rows must pass all conditions. Capitals do not matter, and names may
contain commas ("Hosiery, Stockings, Tights"). Nothing is evaluated: a condition can only name what the table has. No TensorFlow here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.datasets.labels import LabelMap


class AttributeTable:
    """Which rows carry which names, task by task.

    Args:
        count: Number of rows n.
        carriers: Task -> name -> rows that carry it, int64, ascending. A row may carry several names of a task.
        known: Task -> bool (n,), where it is known what a row carries; tasks that are not named are known everywhere.
    """

    def __init__(
        self, count: int, carriers: Mapping[str, Mapping[str, np.ndarray]], known: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.count = count
        self.carriers = {task: dict(names) for task, names in carriers.items()}
        self.known = {task: np.ones(count, bool) for task in self.carriers} | dict(known or {})

    @classmethod
    def of_labels(cls, decided: np.ndarray, label_map: LabelMap) -> AttributeTable:
        """The labels that a model decided on, bool (n, L).

        Raises:
            UsageError: another shape or type.
        """
        decided = np.asarray(decided)
        if decided.ndim != 2 or decided.shape[1] != len(label_map) or decided.dtype != bool:
            raise UsageError(f"Decided labels are bool (n, {len(label_map)}), got {decided.dtype} {decided.shape}.")
        names = label_map.names
        return cls(
            len(decided),
            {task: {names[place]: np.flatnonzero(decided[:, place]) for place in group} for task, group in label_map.groups.items()},
        )

    @classmethod
    def of_columns(
        cls, image_ids: Sequence[str], columns: Mapping[str, Mapping[str, Any]], separator: str | None = None
    ) -> AttributeTable:
        """What a catalogue says about its pictures.

        Args:
            image_ids: Ids of the rows.
            columns: Image id -> column -> value: a string, or several strings. Ids and columns may be absent; blank values are unknown.
            separator: What stands between several values in one string ("|"); None for one value each.

        Raises:
            DataError: a value of another type.
        """
        found: dict[str, dict[str, list[int]]] = {}
        spelled: dict[str, dict[str, str]] = {}
        known: dict[str, np.ndarray] = {}
        for row, image_id in enumerate(image_ids):
            for column, value in columns.get(image_id, {}).items():
                for name in _values(value, separator, f"picture {image_id!r}, column {column!r}"):
                    first = spelled.setdefault(column, {}).setdefault(name.casefold(), name)
                    rows = found.setdefault(column, {}).setdefault(first, [])
                    if not rows or rows[-1] != row:
                        rows.append(row)
                    known.setdefault(column, np.zeros(len(image_ids), bool))[row] = True
        carriers = {column: {name: np.array(rows, np.int64) for name, rows in names.items()} for column, names in found.items()}
        return cls(len(image_ids), carriers, known)

    def or_else(self, other: AttributeTable) -> AttributeTable:
        """This table, and where a task of a row is not known here, what `other` says (given columns first, then predictions, say).

        Tasks and names that differ in capitals only are the same, spelled as here.

        Raises:
            UsageError: tables of different lengths.
        """
        if other.count != self.count:
            raise UsageError(f"Both tables must describe the same rows, found {self.count} and {other.count}.")
        carriers = {task: dict(names) for task, names in self.carriers.items()}
        known = dict(self.known)
        tasks = {task.casefold(): task for task in carriers}
        for their_task, names in other.carriers.items():
            task = tasks.setdefault(their_task.casefold(), their_task)
            mine = carriers.setdefault(task, {})
            before = known.get(task, np.zeros(self.count, bool))
            spelled = {name.casefold(): name for name in mine}
            for their_name, rows in names.items():
                name = spelled.setdefault(their_name.casefold(), their_name)
                more = rows[~before[rows]]
                mine[name] = np.union1d(mine.get(name, np.zeros(0, np.int64)), more)
            known[task] = before | other.known[their_task]
        return AttributeTable(self.count, carriers, known)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.carriers)

    def mask(self, task: str, names: Iterable[str]) -> np.ndarray:
        """bool (n,): rows that carry any of the names."""
        mask = np.zeros(self.count, bool)
        for name in names:
            mask[self.carriers[task][name]] = True
        return mask


@dataclass(frozen=True)
class Condition:
    """Rows with (or without) any of some names of one task.

    Attributes:
        task: Its name, as the table spells it.
        names: The names, as the table spells them.
        wanted: True keeps the rows that carry one of them, False drops those.
    """

    task: str
    names: tuple[str, ...]
    wanted: bool = True

    def __str__(self) -> str:
        return f"{'' if self.wanted else 'not '}{self.task}={','.join(self.names)}"

    def mask(self, table: AttributeTable) -> np.ndarray:
        """bool (n,): rows that pass."""
        return table.mask(self.task, self.names) == self.wanted


@dataclass(frozen=True)
class Filter:
    """Conditions that must all hold.

    Attributes:
        conditions: The conditions; none keeps all rows.
    """

    conditions: tuple[Condition, ...] = ()

    @classmethod
    def parse(cls, only: Iterable[str], without: Iterable[str], table: AttributeTable) -> Filter:
        """Reads conditions as they are written on the command line.

        Args:
            only: Conditions that rows must meet, such as "gender=Female" and "color=Black,Gray".
            without: Conditions that rows must not meet, such as "sleeve=Sleeveless".
            table: Decides which tasks and names there are.

        Raises:
            UsageError: a task or name that the table does not have (the message names near ones), a name alone that several tasks have,
                or an empty condition.
        """
        conditions = []
        for wanted, texts in ((True, only), (False, without)):
            conditions += [Condition(*_read(text, table), wanted) for text in texts]
        return cls(tuple(conditions))

    def mask(self, table: AttributeTable) -> np.ndarray:
        """bool (n,): rows that pass all conditions."""
        mask = np.ones(table.count, bool)
        for condition in self.conditions:
            mask &= condition.mask(table)
        return mask

    def report(self, table: AttributeTable) -> list[str]:
        """One line per condition with the number of rows that pass it and those before it."""
        mask = np.ones(table.count, bool)
        lines = []
        for condition in self.conditions:
            own = condition.mask(table)
            mask &= own
            unknown = int((~table.known[condition.task]).sum())
            remark = f"; {condition.task} is not known of {unknown}" if unknown else ""
            lines.append(f"{condition}: {int(own.sum())} of {table.count} rows, {int(mask.sum())} left{remark}")
        return lines

    def describe(self) -> str:
        """The conditions in one line; empty if there are none."""
        return ", ".join(map(str, self.conditions))


def near_names(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known names that look like `name`, best first; capitals do not matter."""
    plain: dict[str, list[str]] = {}
    for entry in known:
        plain.setdefault(entry.casefold(), []).append(entry)
    close = difflib.get_close_matches(name.strip().casefold(), plain, most)
    return [entry for key in close for entry in plain[key]][:most]


def _read(text: str, table: AttributeTable) -> tuple[str, tuple[str, ...]]:
    """Task and names of a condition."""
    if not table.carriers:
        raise UsageError(f"The condition {text!r} needs attributes, and these rows have none: give predicted labels or a catalogue.")
    before, equals, after = text.partition("=")
    if not text.strip() or (equals and not after.strip()):
        raise UsageError(f"The condition {text!r} names no label. Write task=name or task=name,name.")
    if not equals:
        return _without_task(text, table)
    task = _same(before, table.carriers)
    if task is None:
        # A label's own name may have an equals sign.
        if _holders(text, table):
            return _without_task(text, table)
        raise UsageError(f"The condition {text!r}: there is no task {before.strip()!r}.{_hint(before, table.tasks)} {_every(table)}")
    names, rest = _split(after, table.carriers[task])
    if rest is not None:
        elsewhere = [other for other in _holders(rest, table) if other != task]
        also = f" It is a label of {', '.join(elsewhere)}." if elsewhere else ""
        known = table.carriers[task]
        listed = "" if len(known) > 30 else f" Its labels: {', '.join(known)}."
        raise UsageError(f"The condition {text!r}: {task} has no label {rest!r}.{_hint(rest, known)}{also}{listed} {_every(table)}")
    return task, names


def _without_task(text: str, table: AttributeTable) -> tuple[str, tuple[str, ...]]:
    split = {task: _split(text, names) for task, names in table.carriers.items()}
    fitting = {task: names for task, (names, rest) in split.items() if rest is None}
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if fitting:
        choices = " or ".join(f"{task}={','.join(names)}" for task, names in fitting.items())
        raise UsageError(f"The condition {text!r} fits several tasks. Write {choices}.")
    known = [name for names in table.carriers.values() for name in names]
    close = near_names(text, known)
    holders = " or ".join(f"{task}={name}" for name in dict.fromkeys(close) for task in _holders(name, table))
    hint = f" Did you mean {holders}?" if holders else ""
    raise UsageError(f"The condition {text!r}: no task has such a label.{hint} Write task=name. {_every(table)}")


def _split(text: str, names: Iterable[str]) -> tuple[tuple[str, ...], str | None]:
    """The names that a list separated by commas is made of, and the first piece that is none (None if all are)."""
    pieces = text.split(",")
    found: list[str] = []
    start = 0
    while start < len(pieces):
        # Names may contain commas: the longest that fits is meant.
        for stop in range(len(pieces), start, -1):
            name = _same(",".join(pieces[start:stop]), names)
            if name is not None:
                found.append(name)
                start = stop
                break
        else:
            return tuple(found), pieces[start].strip()
    return tuple(dict.fromkeys(found)), None


def _same(text: str, names: Iterable[str]) -> str | None:
    """The name that is meant by a text: letter by letter, else without regard to capitals where that is one name."""
    wanted = _plain(text)
    names = list(names)
    exact = [name for name in names if " ".join(name.split()) == " ".join(text.split())]
    alike = exact or [name for name in names if _plain(name) == wanted]
    return alike[0] if len(alike) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _holders(name: str, table: AttributeTable) -> list[str]:
    return [task for task, names in table.carriers.items() if _same(name, names) is not None]


def _hint(name: str, known: Iterable[str]) -> str:
    close = near_names(name, known)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _every(table: AttributeTable) -> str:
    return f"Tasks: {', '.join(table.tasks)}."


def _values(value: Any, separator: str | None, where: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        pieces = value.split(separator) if separator else [value]
    elif isinstance(value, (list, tuple, set, frozenset)) and all(isinstance(entry, str) for entry in value):
        pieces = list(value)
    else:
        raise DataError(f"{where}: expected text or a list of texts, found {value!r}.")
    return [" ".join(piece.split()) for piece in pieces if piece.strip()]
