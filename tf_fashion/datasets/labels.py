"""Labels in groups: which number, name, and task a position of a multi-hot vector has.

labels = LabelMap.imaterialist()
labels.encode(["66", "105"])            # float32 (228,)
[label.name for label in labels.decode(vector)]
labels.find("Black").id, labels.groups["color"]

iMaterialist Fashion 2018 has 228 labels in eight groups ("tasks", numbered 1 to 9 without 7). Its file is part of this package.
"""

from __future__ import annotations

import csv
import difflib
import functools
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import atomic_write, hash_json
from tf_fashion.datasets.catalogue import read_table
from tf_fashion.datasets.records import OnProblem, Problem, short_repr

HEADER = ("labelId", "taskId", "labelName", "taskName")
OFFICIAL_FILE = "iMat_fashion_2018_label_map_228.csv"
# Exact decimal text: the original compares ids as text, so "066" is no id.
_DECIMAL = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


@dataclass(frozen=True)
class Label:
    """One label.

    Attributes:
        id: Its number, at least 1.
        name: What it says; unique within its task.
        task_id, task: Number and name of its group.
    """

    id: int
    name: str
    task_id: int
    task: str


def label_id(value: object) -> int | None:
    """`value` as the number of a label: a whole number from 1, or its exact decimal text; None for anything else."""
    if isinstance(value, str):
        return int(value) if _DECIMAL.fullmatch(value) else None
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    return number if number >= 1 else None


class LabelMap:
    """The labels of a multi-label task. Immutable; the order is that of the positions in vectors.

    Args:
        labels: The labels.

    Raises:
        DataError: no labels; an id twice or below 1; an empty name; a name twice in one task; two tasks with one number or name.
    """

    def __init__(self, labels: Iterable[Label]) -> None:
        self._labels = tuple(labels)
        problem = next(_problems([("the label map", label) for label in self._labels]), None)
        if problem is not None:
            raise DataError(str(problem))
        if not self._labels:
            raise DataError("Expected at least one label in the label map, found none.")
        self._positions = {label.id: place for place, label in enumerate(self._labels)}
        self._tasks = tuple(dict(sorted({label.task_id: label.task for label in self._labels}.items())).values())
        self._by_name: dict[str, list[Label]] = {}
        for label in self._labels:
            self._by_name.setdefault(label.name, []).append(label)

    @classmethod
    def read(cls, path: str | Path, on_problem: OnProblem | None = None) -> LabelMap:
        """Reads a CSV file with the columns `labelId,taskId,labelName,taskName` (in any order). Labels are put in the order of ids.

        Args:
            path: The file.
            on_problem: What to do about each bad row, which is then left out; default: all of them are raised together.

        Raises:
            UsageError: no such file.
            DataError: the file is broken, or no row is left.
        """
        path = Path(path)
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise UsageError(f"{path}: expected a label map ({','.join(HEADER)}), found {found}.")
        problems: list[Problem] = []
        labels = _read_labels(path, problems.append if on_problem is None else on_problem)
        if on_problem is None:
            raise_all(problems, str(path))
        if not labels:
            raise DataError(f"{path}: the label map is empty: no usable row.")
        return cls(labels)

    @classmethod
    def imaterialist(cls) -> LabelMap:
        """The official map of iMaterialist Fashion 2018: 228 labels."""
        return _official()

    @classmethod
    def of_tasks(cls, values: Mapping[str, Iterable[str]]) -> LabelMap:
        """A map from task names to their label names; both are numbered from 1, task by task, names in alphabetical order."""
        rows = [(task, task_id, name) for task_id, (task, names) in enumerate(values.items(), 1) for name in sorted(set(names))]
        return cls(Label(number, name, task_id, task) for number, (task, task_id, name) in enumerate(rows, 1))

    def write(self, path: str | Path) -> None:
        """Writes the map as the CSV file that `read` reads, atomically."""
        with atomic_write(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows((label.id, label.task_id, label.name, label.task) for label in self._labels)

    # What there is.

    @property
    def labels(self) -> tuple[Label, ...]:
        """All labels; the place is the position in vectors."""
        return self._labels

    @property
    def ids(self) -> tuple[int, ...]:
        """The labels' numbers."""
        return tuple(self._positions)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels' names; not unique over tasks."""
        return tuple(label.name for label in self._labels)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the order of their numbers, which may have gaps."""
        return self._tasks

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Task name -> positions of its labels, int64, ascending."""
        of = self.task_numbers
        return {task: np.flatnonzero(of == number) for number, task in enumerate(self._tasks)}

    @functools.cached_property
    def task_numbers(self) -> np.ndarray:
        """For each position the place of its task in `tasks`, int64 (len,)."""
        place = {task: number for number, task in enumerate(self._tasks)}
        numbers = np.array([place[label.task] for label in self._labels], np.int64)
        numbers.flags.writeable = False
        return numbers

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._labels)

    def __contains__(self, value: object) -> bool:
        """Whether `value` is the number (or its decimal text) of a label."""
        return label_id(value) in self._positions

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelMap) and self._labels == other._labels

    def __hash__(self) -> int:
        return hash(self._labels)

    def __repr__(self) -> str:
        return f"LabelMap({len(self)} labels in {', '.join(self._tasks)})"

    # Numbers to vectors and back.

    def position(self, id: int | str) -> int:
        """Position of a label in vectors.

        Raises:
            DataError: no label has this number.
        """
        number = label_id(id)
        if number is None or number not in self._positions:
            raise DataError(
                f"The label id {short_repr(id)} is not in the label map: expected one of {_span(self.ids)}. "
                "Correct it, or use the label map that the ids were written with."
            )
        return self._positions[number]

    def encode(self, ids: Iterable[int | str]) -> np.ndarray:
        """Multi-hot vector of label ids, float32 (len,); an id that occurs twice counts once.

        Raises:
            DataError: an id that is not in the map.
        """
        vector = np.zeros(len(self), np.float32)
        vector[[self.position(id) for id in ids]] = 1
        return vector

    def encode_all(self, rows: Sequence[Iterable[int | str]]) -> np.ndarray:
        """Multi-hot vectors of several lists of ids, float32 (number of rows, len).

        Raises:
            DataError: an id that is not in the map.
        """
        vectors = np.zeros((len(rows), len(self)), np.float32)
        for vector, ids in zip(vectors, rows, strict=True):
            vector[[self.position(id) for id in ids]] = 1
        return vectors

    def decode(self, vector: Any) -> list[Label]:
        """Labels whose value in `vector` (len,) is above 0, in the order of positions.

        Raises:
            UsageError: a vector of another shape.
        """
        values = np.asarray(vector)
        if values.shape != (len(self),):
            raise UsageError(f"LabelMap.decode: expected a vector of {len(self)} values, found the shape {values.shape}.")
        return [self._labels[place] for place in np.flatnonzero(values > 0)]

    def ids_of_vector(self, vector: Any) -> list[int]:
        """Numbers of the labels whose value is above 0. Raises as `decode`."""
        return [label.id for label in self.decode(vector)]

    def names_of_vector(self, vector: Any) -> list[str]:
        """Names of the labels whose value is above 0. Raises as `decode`."""
        return [label.name for label in self.decode(vector)]

    # Names.

    def label(self, id: int | str) -> Label:
        """The label of this number. Raises as `position`."""
        return self._labels[self.position(id)]

    def find(self, name: str, task: str | None = None) -> Label:
        """The label of this name; capitals matter only where names differ in nothing else.

        Args:
            name: Name of the label.
            task: Name of its task, where several tasks have the name.

        Raises:
            UsageError: no such name or task, or several tasks have it; the message lists what there is.
        """
        if task is not None and task not in self._tasks:
            raise UsageError(f"No task {task!r} in the label map. Found: {', '.join(self._tasks)}.")
        found = [label for label in self._by_name.get(name, ()) if task in (None, label.task)]
        if not found:
            plain = name.casefold()
            found = [label for label in self._labels if label.name.casefold() == plain and task in (None, label.task)]
        if len(found) > 1:
            choices = ", ".join(f"{label.task}:{label.name}" for label in found)
            raise UsageError(f"Several labels are called {name!r}: {choices}. Say which task is meant.")
        if not found:
            known = [label.name for label in self._labels if task in (None, label.task)]
            lower = {entry.casefold(): entry for entry in known}
            close = [lower[entry] for entry in difflib.get_close_matches(name.casefold(), lower, 3)]
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else f" Found {', '.join(known[:5])}, ..."
            raise UsageError(f"No label {name!r}{f' in the task {task!r}' if task else ''} in the label map.{hint}")
        return found[0]

    def names_of(self, ids: Iterable[int | str]) -> list[str]:
        """Names of label ids. Raises as `position`."""
        return [self.label(id).name for id in ids]

    def ids_of(self, names: Iterable[str], task: str | None = None) -> list[str]:
        """Ids of label names as text, as the JSON files have them. Raises as `find`."""
        return [str(self.find(name, task).id) for name in names]

    def tasks_of(self, ids: Iterable[int | str]) -> list[str]:
        """Task names of label ids. Raises as `position`."""
        return [self.label(id).task for id in ids]

    def tasks_of_names(self, names: Iterable[str]) -> list[str]:
        """Task names of label names. Raises as `find`."""
        return [self.find(name).task for name in names]

    # Configuration.

    def to_config(self) -> dict[str, Any]:
        """The map as JSON-able values."""
        return {"labels": [list(astuple(label)) for label in self._labels]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LabelMap:
        """The inverse of `to_config`.

        Raises:
            DataError: something else than `to_config` gives.
        """
        rows = config.get("labels") if isinstance(config, Mapping) else None
        if not isinstance(rows, Sequence) or not all(isinstance(row, Sequence) and len(row) == 4 for row in rows):
            raise DataError(f'Expected a label map {{"labels": [[id, name, task id, task], ...]}}, found {short_repr(config)}.')
        return cls(Label(*row) for row in rows)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ids, names, tasks and their order."""
        return hash_json(self.to_config())


def raise_all(problems: Sequence[Problem], where: str, shown: int = 10) -> None:
    """Raises the errors among `problems` as one `DataError`; does nothing if there are none.

    Args:
        problems: What a reader reported.
        where: File, for the first line of a message about several.
        shown: How many are quoted.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    if len(errors) == 1:
        raise DataError(str(errors[0]))
    lines = [f"{where}: {len(errors)} errors."] + [f"  {str(problem).removeprefix(f'{where}, ')}" for problem in errors[:shown]]
    if len(errors) > shown:
        lines.append(f"  and {len(errors) - shown} more")
    raise DataError("\n".join(lines))


@functools.cache
def _official() -> LabelMap:
    return LabelMap.read(Path(__file__).parent / "data" / OFFICIAL_FILE)


def _span(ids: Sequence[int]) -> str:
    return f"{min(ids)} to {max(ids)}" if max(ids) - min(ids) + 1 == len(ids) else f"{len(ids)} ids from {min(ids)} to {max(ids)}"


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")


def _read_labels(path: Path, on_problem: OnProblem) -> list[Label]:
    table = read_table(path, on_problem)
    if not table.columns:
        return []
    columns = {_plain(name): place for place, name in enumerate(table.columns)}
    places = [columns.get(_plain(name)) for name in HEADER]
    if None in places:
        what = f"expected the columns {','.join(HEADER)}, found {','.join(table.columns)}."
        on_problem(Problem("error", f"{path}, line 1", what, "Write this header line.", "wrong header"))
        return []
    rows: list[tuple[str, Label]] = []
    for line, values in table.rows:
        number, task_id, name, task = (values[place] for place in places if place is not None)
        where, ids = f"{path}, line {line}", [label_id(number), label_id(task_id)]
        for column, found, value in zip(HEADER, ids, (number, task_id), strict=False):
            if found is None:
                what = f"expected a whole number of at least 1 as {column}, found {short_repr(value)}."
                on_problem(Problem("error", where, what, "", "bad label map"))
        if ids[0] is not None and ids[1] is not None:
            rows.append((where, Label(ids[0], name, ids[1], task)))
    bad = set()
    for problem in _problems(rows):
        on_problem(problem)
        bad.add(problem.where)
    return sorted((label for where, label in rows if where not in bad), key=lambda label: label.id)


def _problems(rows: Sequence[tuple[str, Label]]) -> Iterator[Problem]:
    """What is wrong with labels of which each has a place to name."""
    ids: dict[int, str] = {}
    names: dict[tuple[int, str], str] = {}
    tasks: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for where, label in rows:
        what = fix = ""
        if label_id(label.id) != label.id or label_id(label.task_id) != label.task_id:
            what = f"expected whole numbers of at least 1 as ids of label and task, found {label.id!r} and {label.task_id!r}."
        elif not isinstance(label.name, str) or not isinstance(label.task, str) or not label.name.strip() or not label.task.strip():
            what = f"the label {label.id} has no name, or its task has none: {short_repr(label.name)}, {short_repr(label.task)}."
            fix = "Fill both in."
        elif label.id in ids:
            what, fix = f"the label id {label.id} occurs a second time (first in {ids[label.id]}).", "Ids must be unique."
        elif tasks.setdefault(label.task_id, label.task) != label.task:
            what = f"the task {label.task_id} is called {label.task!r} here and {tasks[label.task_id]!r} before."
            fix = "A task has one name."
        elif numbers.setdefault(label.task, label.task_id) != label.task_id:
            what = f"the task {label.task!r} has the number {label.task_id} here and {numbers[label.task]} before."
            fix = "A task has one number."
        elif (label.task_id, label.name) in names:
            what = f"the task {label.task!r} has the label {label.name!r} twice (first in {names[label.task_id, label.name]})."
            fix = "Names are unique within a task."
        if what:
            yield Problem("error", where, what, fix, "bad label map")
            continue
        ids[label.id] = names[label.task_id, label.name] = where
