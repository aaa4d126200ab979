"""Runs the library against fixture files (`.npz`) and fixture folders recorded from the original programs.

A check is a function that takes a `Fixture` and is registered for a file-name pattern with `@checks(pattern)`. It reads the
recorded inputs with `fixture.input(key)` and hands the library's results to `fixture.compare(key, value, ...)`. What a check
neither reads nor compares is reported as not covered.

Other recordings (folders, checkpoints, `.json`) are given to the checks whose pattern matches their name, as a `Fixture` without
data: the check reads `fixture.path` itself and reports with `fixture.equal(key, ours, recorded)` or `fixture.close(...)`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

Check = Callable[["Fixture"], None]
_CHECKS: list[tuple[re.Pattern[str], Check]] = []
_LATER: list[tuple[re.Pattern[str], str]] = []


def checks(pattern: str) -> Callable[[Check], Check]:
    """Registers a check for files whose whole name matches the regular expression `pattern`."""

    def add(function: Check) -> Check:
        _CHECKS.append((re.compile(pattern), function))
        return function

    return add


def known_gap(pattern: str, reason: str) -> None:
    """Names files that no check reads yet, with the reason that is printed."""
    _LATER.append((re.compile(pattern), reason))


@dataclass
class Comparison:
    file: str
    key: str
    difference: float
    tolerance: str
    ok: bool
    note: str = ""

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAIL"
        note = f"  ({self.note})" if self.note else ""
        return f"{self.file}  {self.key}  max|diff|={self.difference:.3g}  tol={self.tolerance}  {verdict}{note}"


@dataclass
class Fixture:
    """One fixture file and what has been done with its keys."""

    path: Path
    data: dict[str, np.ndarray]
    comparisons: list[Comparison] = field(default_factory=list)
    inputs: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def folder(self) -> Path:
        return self.path.parent

    def keys(self) -> list[str]:
        return list(self.data)

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def input(self, key: str) -> np.ndarray:
        """A recorded value that the check feeds to the library."""
        self.inputs.add(key)
        return self.data[key]

    def inputs_below(self, prefix: str) -> dict[str, np.ndarray]:
        """All recorded values whose key starts with `prefix`, under the rest of their key, marked as inputs."""
        return {key[len(prefix) :]: self.input(key) for key in self.data if key.startswith(prefix)}

    def compare(self, key: str, ours: object, rtol: float = 1e-5, atol: float = 1e-6, note: str = "") -> None:
        """Compares floats: every element must satisfy |ours - recorded| <= atol + rtol * |recorded|."""
        recorded = np.asarray(self.data[key], dtype=np.float64)
        value = np.asarray(ours, dtype=np.float64)
        tolerance = f"rtol {rtol:g} atol {atol:g}"
        if value.shape != recorded.shape:
            self._add(key, float("inf"), tolerance, False, f"shape {value.shape}, recorded {recorded.shape}")
            return
        with np.errstate(invalid="ignore"):
            difference = np.abs(value - recorded)
        same = (value == recorded) | (np.isnan(value) & np.isnan(recorded))
        difference = np.where(same, 0.0, difference)
        close = same | (difference <= atol + rtol * np.abs(recorded))
        biggest = float(np.nan_to_num(difference, nan=np.inf).max()) if difference.size else 0.0
        self._add(key, biggest, tolerance, bool(close.all()), note)

    def exact(self, key: str, ours: object, note: str = "") -> None:
        """Compares integers, booleans or strings: all elements must be equal."""
        recorded = np.asarray(self.data[key])
        value = np.asarray(ours)
        if value.shape != recorded.shape:
            self._add(key, float("inf"), "exact", False, f"shape {value.shape}, recorded {recorded.shape}")
            return
        wrong = int(np.sum(value != recorded))
        self._add(key, float(wrong), "exact", wrong == 0, note or (f"{wrong} of {recorded.size} differ" if wrong else ""))

    def equal(self, key: str, ours: object, recorded: object) -> None:
        """Compares two values of plain Python (lists, dictionaries, strings) that the check has read itself."""
        same = ours == recorded
        self._add(key, 0.0 if same else float("inf"), "exact", bool(same), "" if same else _first_difference(ours, recorded))

    def close(self, key: str, ours: object, recorded: object, rtol: float = 1e-5, atol: float = 1e-6, note: str = "") -> None:
        """Compares floats that the check has read itself, as `compare` does those of the file."""
        self.data[key] = np.asarray(recorded)
        self.compare(key, ours, rtol, atol, note)

    def within(self, key: str, ours: object, steps: float, note: str = "") -> None:
        """Compares values that may differ by at most `steps` (grey levels, say)."""
        self.compare(key, ours, rtol=0.0, atol=steps, note=note)

    def not_covered(self, key: str, reason: str) -> None:
        """States why a key is not compared."""
        self.reasons[key] = reason

    def _add(self, key: str, difference: float, tolerance: str, ok: bool, note: str) -> None:
        self.comparisons.append(Comparison(self.name, key, difference, tolerance, ok, note))

    def uncovered(self) -> dict[str, str]:
        compared = {c.key for c in self.comparisons}
        return {
            key: self.reasons.get(key, "no check reads it")
            for key in self.data
            if key not in compared and (key not in self.inputs or key in self.reasons)
        }


def _first_difference(ours: object, recorded: object, where: str = "") -> str:
    if isinstance(ours, dict) and isinstance(recorded, dict):
        for key in [*recorded, *(key for key in ours if key not in recorded)]:
            if key not in ours or key not in recorded:
                return f"{where}[{key!r}] only in {'ours' if key in ours else 'the record'}"
            if ours[key] != recorded[key]:
                return _first_difference(ours[key], recorded[key], f"{where}[{key!r}]")
    if isinstance(ours, (list, tuple)) and isinstance(recorded, (list, tuple)):
        if len(ours) != len(recorded):
            return f"{where}: {len(ours)} entries, recorded {len(recorded)}"
        for index, (a, b) in enumerate(zip(ours, recorded, strict=True)):
            if a != b:
                return _first_difference(a, b, f"{where}[{index}]")
    return f"{where}: {str(ours)[:80]!r}, recorded {str(recorded)[:80]!r}"


def load_checks() -> None:
    """Imports every module of `tests.parity.checks`, which registers their checks."""
    package = importlib.import_module("tests.parity.checks")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tests.parity.checks.{module.name}")


def run_file(path: Path) -> Fixture:
    """Runs every check registered for the file; an exception inside a check becomes a failed comparison."""
    try:
        fixture = Fixture(path, {})
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                fixture.data = {key: archive[key] for key in archive.files}
    except Exception as error:
        fixture = Fixture(path, {})
        fixture._add("(file)", float("inf"), "readable", False, f"cannot be read: {error}")
        return fixture
    found = [function for pattern, function in _CHECKS if pattern.fullmatch(path.name)]
    if not found and path.suffix != ".npz":
        fixture.reasons = {"(all)": "no check knows this"}
        fixture.data = {"(all)": np.zeros(())}
    elif not found:
        reason = next((reason for pattern, reason in _LATER if pattern.fullmatch(path.name)), "no check knows this file")
        fixture.reasons = dict.fromkeys(fixture.data, reason)
    for function in found:
        try:
            function(fixture)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            note = f"{type(error).__name__}: {error} [{Path(where.filename).name}:{where.lineno}]"
            fixture._add(f"({function.__name__})", float("inf"), "runs", False, note)
    return fixture


def run_folder(folder: Path, only: Iterable[str] = ()) -> list[Fixture]:
    """Runs all recordings in `folder` (`.npz`, `.json`, sub-folders), or those whose names contain one of `only`."""
    load_checks()
    wanted = list(only)
    recordings = [p for p in sorted(folder.iterdir()) if p.suffix in (".npz", ".json") or (p.is_dir() and p.name[0] not in "._")]
    files = [p for p in recordings if not wanted or any(part in p.name for part in wanted)]
    return [run_file(path) for path in files]
