"""The search: same seed same trials, resumable at any moment, one process or a chief with workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("keras_tuner")

from filelock import FileLock

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.ensemble import tuner
from tf_fashion.ensemble.tuner import Trial, alone, best_of, search, space_of

SPACE = {"a": (0.0, 1.0), "b": (1e-3, 1.0, "log")}
STARTS = [{"a": 1.0, "b": 1.0}]


def hill(values: Mapping[str, Any], trial: str = "") -> float:
    return -((values["a"] - 0.3) ** 2) - (values["b"] - 0.6) ** 2


def find(folder: Path, trials: int = 24, evaluate: Callable[..., float] = hill, **options: Any) -> list[Trial]:
    given = {"seed": 3, "starts": STARTS, "progress": False, **options}
    return search(evaluate, space_of(given.pop("space", SPACE)), folder, trials, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    return find(tmp_path_factory.mktemp("whole") / "search")


def breaks_at(stop: int, error: BaseException) -> Callable[..., float]:
    calls = iter(range(10_000))

    def evaluate(values: Mapping[str, Any], trial: str) -> float:
        if next(calls) == stop:
            raise error
        return hill(values)

    return evaluate


def test_it_finds_the_hill_and_repeats_itself(whole: list[Trial], tmp_path: Path) -> None:
    assert [trial.number for trial in whole] == list(range(24))
    assert whole[0].values == STARTS[0] and whole[0].score == hill(STARTS[0])
    assert all(0 <= t.values["a"] <= 1 and 1e-3 <= t.values["b"] <= 1 and t.score == hill(t.values) for t in whole)
    best = best_of(whole)
    assert best.score == max(hill(t.values) for t in whole) > -0.02
    assert find(tmp_path / "again") == whole
    assert find(tmp_path / "other", seed=4) != whole


@pytest.mark.parametrize("stop", [0, 1, 7, 15, 23])
def test_an_interrupted_search_ends_like_an_uninterrupted_one(whole: list[Trial], tmp_path: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        find(tmp_path / "s", evaluate=breaks_at(stop, KeyboardInterrupt()))
    ran = []
    assert find(tmp_path / "s", evaluate=lambda values, trial: ran.append(trial) or hill(values)) == whole
    assert len(ran) == 24 - stop
    assert find(tmp_path / "s", evaluate=lambda values, trial: pytest.fail("nothing is left to run")) == whole


@pytest.mark.parametrize("point", range(5))
def test_a_search_killed_while_it_writes_goes_on(
    whole: list[Trial], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    replace, calls = os.replace, iter(range(10_000))

    def killed(source: str, target: str) -> None:
        if "trials" in str(target) and next(calls) == 90 + point:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        find(tmp_path / "s")
    monkeypatch.undo()
    assert find(tmp_path / "s") == whole


def test_more_trials_extend_a_search(whole: list[Trial], tmp_path: Path) -> None:
    # The numbers get more digits on the way.
    assert find(tmp_path / "s", 7) == whole[:7]
    assert find(tmp_path / "s", 24) == whole
    assert find(tmp_path / "s", 3) == whole


def test_another_search_in_the_folder_is_refused(whole: list[Trial], tmp_path: Path) -> None:
    find(tmp_path / "s", 3)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for options, names in (
        ({"seed": 4}, "seed"),
        ({"starts": []}, "starts"),
        ({"identity": {"members": 3}}, "identity"),
        ({"space": {"a": (0.0, 2.0)}}, "space"),
    ):
        with pytest.raises(UsageError, match=f"another search .it differs in: {names}.*--overwrite"):
            find(tmp_path / "s", 3, **options)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert find(tmp_path / "s", 5, seed=4, overwrite=True) != whole[:5]
    assert find(tmp_path / "s", 24, overwrite=True) == whole
    (tmp_path / "s" / "search.json").write_text("[]")
    with pytest.raises(UsageError, match="another search"):
        find(tmp_path / "s")
    (tmp_path / "s" / "search.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        find(tmp_path / "s")


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_damaged_state_is_named(tmp_path: Path, text: str) -> None:
    find(tmp_path / "s", 3)
    (tmp_path / "s" / "trials" / "oracle.json").write_text(text)
    with pytest.raises(DataError, match="the state of the search is damaged.*--overwrite"):
        find(tmp_path / "s")
    assert len(find(tmp_path / "s", 3, overwrite=True, seed=5)) == 3


def test_a_second_process_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    with alone(tmp_path):
        pass
    with FileLock(tmp_path / "search.lock"), pytest.raises(UsageError, match="another process is searching there"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_failed_trials_are_passed_over(tmp_path: Path) -> None:
    bad = {2: DataError("the loss diverged"), 3: float("nan"), 5: ValueError("unforeseen"), 8: float("-inf")}

    def evaluate(values: Mapping[str, Any], trial: str) -> float:
        found = bad.get(int(trial), hill(values))
        if isinstance(found, Exception):
            raise found
        return found

    trials = find(tmp_path / "s", 12, evaluate)
    assert [trial.number for trial in trials if trial.score is None] == list(bad)
    assert "the loss diverged" in trials[2].message and "finite result, found nan" in trials[3].message
    assert "unforeseen" in trials[5].message and best_of(trials).score == max(t.score for t in trials if t.score is not None)
    with pytest.raises(KeyboardInterrupt):
        find(
            tmp_path / "t",
            12,
            lambda values, trial: breaks_at(0, KeyboardInterrupt())({}, "") if trial == "06" else evaluate(values, trial),
        )
    assert find(tmp_path / "t", 12, evaluate) == trials


def test_three_failures_in_a_row_end_the_search(tmp_path: Path) -> None:
    def evaluate(values: Mapping[str, Any], trial: str) -> float:
        if int(trial) in (2, 4, 5, 6):
            raise DataError(f"trial {trial} diverged")
        return hill(values)

    with pytest.raises(DataError, match="three trials in a row failed. The last one: trial 06 diverged$"):
        find(tmp_path / "s", 12, evaluate)
    # The same command tries on.
    assert [trial.number for trial in find(tmp_path / "s", 12, evaluate) if trial.score is None] == [2, 4, 5, 6]
    with pytest.raises(DataError, match="three trials in a row"):
        find(tmp_path / "t", 3, breaks_always)
    with pytest.raises(UsageError, match="No trial"):
        best_of([Trial(0, {}, None)])


def breaks_always(values: Mapping[str, Any], trial: str) -> float:
    raise DataError("never works")


def test_usage_errors_and_full_disks_end_the_search_at_once(whole: list[Trial], tmp_path: Path) -> None:
    for error, message in ((UsageError("unknown option"), "unknown option"), (OSError(28, "No space left"), "No space left")):
        with pytest.raises(UsageError, match=message):
            find(tmp_path / "s", evaluate=breaks_at(2, error))
    assert find(tmp_path / "s") == whole


def test_options_are_checked(tmp_path: Path) -> None:
    for options, message in (({"trials": 0}, "--trials: expected at least 1, found 0"), ({"seed": -1}, "--seed: .* found -1")):
        with pytest.raises(UsageError, match=message):
            find(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()
    for ranges in ({"x": []}, {"x": (1.0, 1.0)}, {"x": (0.0, 1.0, "log")}, {"x": (2, 1, "int")}):
        with pytest.raises(UsageError, match="x: expected"):
            space_of(ranges)
    kinds = search(lambda v, t: v["n"], space_of({"n": (1, 3, "int"), "c": ["x", "y"]}), tmp_path / "k", 4, progress=False)
    assert {type(t.values["n"]) for t in kinds} == {int} and {t.values["c"] for t in kinds} <= {"x", "y"}


# One process that has everything imported becomes four: a search that is killed, and a chief with two workers.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from tests.ensemble.test_tuner import find, hill
from tf_fashion.core.errors import TfFashionError

out = Path(sys.argv[1])

def kill(values, trial):
    if trial == "11":
        os.kill(os.getpid(), signal.SIGKILL)
    return hill(values)

def share(name):
    os.environ.update(KERASTUNER_TUNER_ID=name, KERASTUNER_ORACLE_IP="127.0.0.1", KERASTUNER_ORACLE_PORT=sys.argv[2])
    for part in range(3):
        def evaluate(values, trial):
            with open(out / f"ran.{part}", "a") as file:
                file.write(f"{trial} {name}\\n")
            time.sleep(0.02)
            if part == 2:
                raise ValueError("bad values")
            return hill(values)
        try:
            told = [(t.number, t.score) for t in find(out / f"shared{part}", 14, evaluate, identity={"part": part})]
        except TfFashionError as error:
            told = error
        with open(out / f"told.{name}", "a") as file:
            file.write(f"{told}\\n")

children = []
for job in (lambda: find(out / "killed", evaluate=kill), *(lambda name=name: share(name) for name in ("worker1", "chief", "worker2"))):
    children.append(os.fork())
    if not children[-1]:
        try:
            job()
            os._exit(0)
        finally:
            os._exit(1)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", SCRIPT, str(out), port]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=200)
    assert done.stdout.split("\n")[-2] == f"[{-signal.SIGKILL}, 0, 0, 0]", done.stderr
    return out


def test_a_killed_process_leaves_a_state_that_goes_on(whole: list[Trial], shared_out: Path) -> None:
    assert find(shared_out / "killed") == whole


def test_a_chief_and_two_workers_share_several_searches(shared_out: Path) -> None:
    told = [(shared_out / f"told.{name}").read_text().splitlines() for name in ("chief", "worker1", "worker2")]
    assert told[0] == told[1] == told[2] and len(told[0]) == 3
    assert "three trials in a row failed. The last one: see the output of the workers" in told[0][2]
    for part in range(2):
        ran = [line.split() for line in (shared_out / f"ran.{part}").read_text().splitlines()]
        assert sorted(trial for trial, _ in ran) == [f"{number:02d}" for number in range(14)]
        assert {who for _, who in ran} <= {"worker1", "worker2"}
    # One process goes on where they stopped.
    assert len(find(shared_out / "shared0", 16, identity={"part": 0})) == 16


def test_workers_are_told_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(UsageError, match="KERASTUNER_TUNER_ID and KERASTUNER_ORACLE_PORT must be set"):
        find(tmp_path / "s")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "1")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker1")
    monkeypatch.setattr(tuner, "_PATIENCE", 0.3)
    with pytest.raises(UsageError, match="has waited .* for the chief to begin the search"):
        find(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "192.0.2.1")
    with pytest.raises(UsageError, match="chief cannot listen at 192.0.2.1:1"):
        find(tmp_path / "s")


def test_state_can_be_moved(whole: list[Trial], tmp_path: Path) -> None:
    find(tmp_path / "here", 9)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert find(tmp_path / "there") == whole
    json.loads((tmp_path / "there" / "search.json").read_text())
