"""Bayesian optimisation with keras-tuner: resumable, seeded, several workers if wanted, and quick between trials.

The search's folder is a keras-tuner project. A search that was interrupted goes on with its next trial; one with fewer trials is
extended. Workers of one search are started with keras-tuner's environment variables (`KERASTUNER_TUNER_ID`, with "chief" in the
name of the process that hands out trials, `KERASTUNER_ORACLE_IP`, `KERASTUNER_ORACLE_PORT`); without them a second process in the
same folder is refused.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tf_fashion.core.errors import MissingExtraError, TfFashionError, UsageError
from tf_fashion.core.files import make_out_folder, read_json, write_json

try:
    import keras_tuner
    import sklearn.gaussian_process as gaussian_process
    import tensorboard  # noqa: F401
    from filelock import FileLock, Timeout
    from threadpoolctl import ThreadpoolController
except ImportError as _error:
    raise MissingExtraError(
        str(_error.name).partition(".")[0].replace("_", "-"), "tune", "The search for weights or settings"
    ) from None

Evaluate = Callable[[dict[str, Any], str], float]

# Acquisition: mean + BETA standard deviations, as keras-tuner's own default.
BETA = 2.6
_UNIFORM, _LOCAL = 512, 128


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        number: From 0, in the order of their start.
        values: Hyperparameter name -> value.
        score: What `evaluate` returned (greater is better); None if it failed.
        message: Why it failed.
    """

    number: int
    values: dict[str, Any]
    score: float | None
    message: str = ""


class BayesianOracle(keras_tuner.oracles.BayesianOptimizationOracle):
    """keras-tuner's Bayesian optimisation, with given first trials and a proposal that takes milliseconds.

    keras-tuner refits its Gaussian process from twenty random starts before every trial and then climbs from fifty places with
    numerical gradients, one point at a time, which takes seconds where a trial takes milliseconds. Here the kernel is refitted
    whenever the trials have grown by a quarter, and the upper confidence bound is looked up for many points at once and the best
    of them refined. All random numbers follow from the seed and the trial's number, so an interrupted search ends like an
    uninterrupted one.

    Args:
        starts: Values of the first trials.
        **options: As for keras-tuner's oracle.
    """

    def __init__(self, starts: Sequence[Mapping[str, Any]] = (), **options: Any) -> None:
        super().__init__(**options)
        self.starts = [dict(values) for values in starts]
        self._fitted: tuple[int, Any] = (0, None)
        self._threads = ThreadpoolController()

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        number = len(self.trials)
        if number < len(self.starts):
            return {"status": "RUNNING", "values": dict(self.starts[number])}
        finished = sum(trial.status == "COMPLETED" for trial in self.trials.values())
        wanted = self.num_initial_points or max(3 * len(self._nonfixed_space()), 3)
        if finished < wanted or not self._nonfixed_space():
            return self._random_populate_space()
        # Matrices this small are slower with several threads.
        with self._threads.limit(limits=1):
            points, scores = (np.nan_to_num(array, posinf=0, neginf=0) for array in self._vectorize_trials())
            self._fit(points, scores)
            return {"status": "RUNNING", "values": self._vector_to_values(self._propose(points, scores, number))}

    def _fit(self, points: np.ndarray, scores: np.ndarray) -> None:
        # The largest of 10, 12, 15, 18, ... that is reached: what an interrupted search finds too.
        enough = 10
        while enough * 5 // 4 <= len(points):
            enough = enough * 5 // 4
        options = {"normalize_y": True, "alpha": self.alpha}
        if self._fitted[0] != enough or self._fitted[1] is None:
            kernel = gaussian_process.kernels.Matern(nu=2.5)
            model = gaussian_process.GaussianProcessRegressor(kernel, random_state=self.seed, **options)
            with warnings.catch_warnings():
                # A length scale at its bound, or a search that stops early: still a usable model.
                warnings.simplefilter("ignore")
                model.fit(points[:enough], scores[:enough])
            self._fitted = (enough, model.kernel_)
        self.gpr = gaussian_process.GaussianProcessRegressor(self._fitted[1], optimizer=None, **options).fit(points, scores)

    def _propose(self, points: np.ndarray, scores: np.ndarray, number: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, number])
        width = points.shape[1]

        def bound(places: np.ndarray) -> np.ndarray:
            mean, deviation = self.gpr.predict(places, return_std=True)
            return mean - BETA * deviation

        def around(places: np.ndarray, spread: float) -> np.ndarray:
            chosen = places[random.integers(len(places), size=_LOCAL)]
            return np.clip(chosen + random.normal(0.0, spread, (_LOCAL, width)), 0.0, 1.0)

        best = points[np.argsort(scores, kind="stable")[:5]]
        candidates = np.concatenate([random.random((_UNIFORM, width)), around(best, 0.1), around(best, 0.02)])
        values = bound(candidates)
        for spread in (0.05, 0.01):
            nearby = around(candidates[np.argsort(values, kind="stable")[:5]], spread)
            candidates, values = np.concatenate([candidates, nearby]), np.concatenate([values, bound(nearby)])
        return candidates[int(np.argmin(values))]


class _Tuner(keras_tuner.Tuner):
    """Runs `evaluate` for each trial; errors that a user must see end the search."""

    def __init__(self, evaluate: Evaluate, bar: tqdm | None, **options: Any) -> None:
        self.evaluate = evaluate
        self.bar = bar
        super().__init__(hypermodel=None, **options)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
        try:
            return -float(self.evaluate(dict(trial.hyperparameters.values), trial.trial_id))
        except UsageError as error:
            raise keras_tuner.errors.FatalError(str(error)) from error
        except TfFashionError as error:
            # Values that cannot be trained, such as a learning rate that diverges: the next trial may do better.
            raise keras_tuner.errors.FailedTrialError(str(error)) from error
        except (MemoryError, OSError) as error:
            raise keras_tuner.errors.FatalError(f"{type(error).__name__}: {error}") from error

    def on_trial_end(self, trial: Any) -> None:
        super().on_trial_end(trial)
        if self.bar is not None:
            best = self.oracle.get_best_trials(1)
            score = f"best {-best[0].score:.4f}" if best and best[0].score is not None else "none finished"
            self.bar.set_postfix_str(score, refresh=False)
            self.bar.update()


def space_of(ranges: Mapping[str, Any]) -> keras_tuner.HyperParameters:
    """keras-tuner's search space from plain values.

    Args:
        ranges: Name -> `(low, high)`, `(low, high, "log")`, `(low, high, "int")` or a list of choices.

    Raises:
        UsageError: a range that is empty or not positive under "log".
    """
    space = keras_tuner.HyperParameters()
    for name, entry in ranges.items():
        if isinstance(entry, list):
            if not entry:
                raise UsageError(f"{name}: expected at least one choice, found none.")
            space.Choice(name, entry)
            continue
        low, high, *kind = entry
        if not low < high or ("log" in kind and low <= 0):
            raise UsageError(
                f"{name}: expected LOW:HIGH with LOW below HIGH{' and above 0' if 'log' in kind else ''}, found {low}:{high}."
            )
        if "int" in kind:
            space.Int(name, int(low), int(high))
        else:
            space.Float(name, float(low), float(high), sampling="log" if "log" in kind else "linear")
    return space


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds a folder against other processes; does nothing for keras-tuner's own workers, which take turns through their chief.

    Raises:
        UsageError: another process has it.
    """
    if "KERASTUNER_ORACLE_IP" in os.environ:
        yield
        return
    lock = FileLock(folder / "search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{folder}: another process is searching there. Wait for it, choose another --out, or start both as workers of one search "
            "(KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT; see keras-tuner's guide to distributed tuning)."
        ) from None
    try:
        yield
    finally:
        lock.release()


def search(
    evaluate: Evaluate,
    space: keras_tuner.HyperParameters,
    folder: Path,
    trials: int,
    seed: int = 0,
    starts: Sequence[Mapping[str, Any]] = (),
    identity: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    label: str = "",
    progress: bool = True,
) -> list[Trial]:
    """Maximises `evaluate` over a space.

    Args:
        evaluate: Function of the values and the trial's id, to a finite number; greater is better. Raising a `DataError` makes a
            failed trial (three in a row end the search), a `UsageError` ends the search.
        space: See `space_of`.
        folder: The search's own folder. If it holds this search, unfinished or with fewer trials, the search goes on.
        trials: Trials in all.
        seed: Seed of the proposals, at least 0.
        starts: Values of the first trials.
        identity: What else makes this search this one, JSON-able; with the space and the seed it must be what the folder holds.
        overwrite: Whether another search in the folder is thrown away.
        label: Of the progress bar.
        progress: Whether to show one.

    Returns:
        The trials in the order of their start. In a worker of a search with a chief they are those that the chief knows.

    Raises:
        UsageError: fewer than one trial, another search in the folder, or from `evaluate`.
        DataError: three trials in a row failed.
    """
    if trials < 1:
        raise UsageError(f"--trials: expected at least 1, found {trials}.")
    record = {"space": space.get_config(), "seed": seed, "starts": [dict(s) for s in starts], "identity": dict(identity or {})}
    _claim(folder, record, overwrite)
    oracle = BayesianOracle(
        starts=starts,
        objective=keras_tuner.Objective("cost", "min"),
        hyperparameters=space,
        max_trials=trials,
        # keras-tuner takes 0 for "choose one".
        seed=seed + 1,
        allow_new_entries=False,
        tune_new_entries=False,
    )
    oracle.verbose = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        with tqdm(total=trials, desc=label or None, unit="trial", disable=not progress, leave=False) as bar:
            tuner = _quiet_tuner(evaluate, bar, oracle, folder)
            bar.update(sum(trial.status in ("COMPLETED", "FAILED", "INVALID") for trial in oracle.trials.values()))
            try:
                tuner.search(verbose=0)
            except keras_tuner.errors.FatalError as error:
                raise error.__cause__ if isinstance(error.__cause__, TfFashionError) else UsageError(str(error)) from None
            except RuntimeError as error:
                if "consecutive failures" not in str(error):
                    raise
                last = str(error).strip().splitlines()[-1]
                raise UsageError(f"The search stopped, as three trials in a row failed. The last one: {last}") from None
    return _finished(tuner)


def _quiet_tuner(evaluate: Evaluate, bar: tqdm, oracle: BayesianOracle, folder: Path) -> _Tuner:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        return _Tuner(evaluate, bar, oracle=oracle, directory=str(folder), project_name="trials", overwrite=False)


def _finished(tuner: _Tuner) -> list[Trial]:
    known = getattr(tuner.oracle, "trials", None) or {trial.trial_id: trial for trial in tuner.oracle.get_best_trials(10_000)}
    found = []
    for trial_id, trial in sorted(known.items()):
        score = None if trial.score is None else -float(trial.score)
        message = str(trial.message or "").strip().splitlines()[-1:] or [""]
        found.append(Trial(int(trial_id), dict(trial.hyperparameters.values), score, message[0]))
    return found


def _claim(folder: Path, record: dict[str, Any], overwrite: bool) -> None:
    path = folder / "search.json"
    if path.exists():
        there = read_json(path)
        if there == record:
            return
        if not overwrite:
            changed = [key for key in record if not isinstance(there, dict) or there.get(key) != record[key]]
            raise UsageError(
                f"{folder} holds another search (it differs in: {', '.join(changed)}). Choose another --out, or pass --overwrite to "
                "replace it."
            )
        shutil.rmtree(folder / "trials", ignore_errors=True)
    make_out_folder(folder)
    write_json(path, record)


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the greatest score; the earliest of equal ones.

    Raises:
        UsageError: none finished.
    """
    finished = [trial for trial in trials if trial.score is not None]
    if not finished:
        raise UsageError("No trial of the search finished.")
    return max(finished, key=lambda trial: (trial.score, -trial.number))
