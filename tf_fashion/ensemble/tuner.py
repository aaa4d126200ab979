"""Bayesian optimisation with keras-tuner: resumable, seeded, several workers if wanted, and quick between trials.

The search's folder is a keras-tuner project. A search that was interrupted goes on with its next trial; one with fewer trials is
extended. Workers of one search are started with keras-tuner's environment variables (`KERASTUNER_TUNER_ID`, with "chief" in the
name of the process that hands out trials, `KERASTUNER_ORACLE_IP`, `KERASTUNER_ORACLE_PORT`), with the same arguments and a folder
that all of them see; without those variables a second process in the same folder is refused.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tf_fashion.core.errors import DataError, MissingExtraError, TfFashionError, UsageError
from tf_fashion.core.files import hash_json, make_out_folder, read_json, write_json

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
# Failed trials in a row that end a search.
_FAILURES = 3
# Seconds that a worker waits for its chief to begin or to end a search, and for one answer.
_PATIENCE, _ANSWER = 600.0, 5.0
# Seconds after the last trial's end in which every living worker has asked for another.
_SILENCE = 30.0


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
    whenever the trials have grown by a quarter, and the lower confidence bound is looked up for many points at once and the best
    of them refined. All random numbers follow from the seed and the trial's number, so an interrupted search ends like an
    uninterrupted one; files are written whole or not at all, so it may be killed at any moment.

    Args:
        starts: Values of the first trials.
        **options: As for keras-tuner's oracle.

    Attributes:
        failure: Why the search cannot go on, "" while it can.
    """

    trials: dict[str, Any]
    end_order: list[str]
    _retry_queue: list[str]

    def __init__(self, starts: Sequence[Mapping[str, Any]] = (), **options: Any) -> None:
        super().__init__(**options)
        self.starts = [dict(values) for values in starts]
        self.failure = ""
        self._failed_in_a_row = 0
        self._fitted: tuple[int, Any] = (0, None)
        self._threads = ThreadpoolController()

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if self.failure:
            return {"status": "STOPPED", "values": None}
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
            self._fit(points, scores, wanted)
            return {"status": "RUNNING", "values": self._vector_to_values(self._propose(points, scores, number))}

    def save(self) -> None:
        _replace(self._get_oracle_fname(), self.get_state())

    def _save_trial(self, trial: Any) -> None:
        _replace(os.path.join(self._get_trial_dir(trial.trial_id), "trial.json"), trial.get_state())

    def reload(self) -> None:
        super().reload()
        ended, waiting = set(self.end_order), set(self._retry_queue)
        # The trial is saved before the oracle: one that only its own file knows is proposed again.
        known = [name for name in self.trials if name in ended or name in waiting]
        self.trials = {name: self.trials[name] for name in sorted(known, key=int)}
        self._retry_queue = [name for name in self._retry_queue if name not in ended]
        failed = [self.trials[name].status == "FAILED" for name in self.end_order]
        # As many as ended the search before are given another chance.
        self._failed_in_a_row = (failed[::-1].index(False) if False in failed else len(failed)) % _FAILURES

    def _check_consecutive_failures(self) -> None:
        last = self.trials[self.end_order[-1]]
        self._failed_in_a_row = self._failed_in_a_row + 1 if last.status == "FAILED" else 0
        if self._failed_in_a_row >= _FAILURES:
            self.failure = f"three trials in a row failed. The last one: {_reason(last)}"

    def _fit(self, points: np.ndarray, scores: np.ndarray, enough: int) -> None:
        # The largest of a series, each a quarter greater than the one before, that is reached: what an interrupted search finds too.
        while max(enough * 5 // 4, enough + 1) <= len(points):
            enough = max(enough * 5 // 4, enough + 1)
        options = {"normalize_y": True, "alpha": self.alpha}
        if self._fitted[0] != enough or self._fitted[1] is None:
            # A few trials often explain themselves best by no relation at all, and every proposal would be a shot in the dark.
            kernel = gaussian_process.kernels.Matern(nu=2.5, length_scale_bounds=(0.05, 20.0))
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


def _replace(path: str, state: Any) -> None:
    """Writes JSON whole or not at all. Unlike `write_json` it does not wait for the disk, which would take longer than a trial."""
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(state))
    os.replace(temporary, path)


class _Tuner(keras_tuner.Tuner):
    """Runs `evaluate` for each trial; errors that a user must see end the search."""

    oracle: Any
    tuner_id: str

    def __init__(self, evaluate: Evaluate, bar: tqdm | None, token: str, folder: Path, **options: Any) -> None:
        self.evaluate = evaluate
        self.bar = bar
        self.token = token
        super().__init__(hypermodel=None, directory=str(folder), project_name="trials", overwrite=False, **options)
        if is_worker():
            self.oracle = _client(self.oracle._oracle, token, folder)
            self.tuner_id = f"{self.tuner_id}@{token}"

    def search(self, *args: Any, **kwargs: Any) -> None:
        """keras-tuner's loop; the chief of several workers hands out trials until all have ended."""
        if _is_chief():
            self.oracle.save()
            self.save()
            _serve(self.oracle, self.token, self.bar)
        else:
            super().search(*args, **kwargs)

    def save(self) -> None:
        # The oracle saves itself at a trial's begin and end.
        if not os.path.exists(self._get_tuner_fname()):
            _replace(self._get_tuner_fname(), self.get_state())

    def _get_tuner_fname(self) -> str:
        # keras-tuner reloads a project only if this file is there: a chief goes on where a single process stopped, and back.
        return os.path.join(str(self.project_dir), f"{self.tuner_id if is_worker() else 'tuner0'}.json")

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
        try:
            cost = -float(self.evaluate(dict(trial.hyperparameters.values), trial.trial_id))
        except UsageError as error:
            raise keras_tuner.errors.FatalError(str(error)) from error
        except (MemoryError, OSError) as error:
            raise keras_tuner.errors.FatalError(f"{type(error).__name__}: {error}") from error
        if not math.isfinite(cost):
            raise DataError(f"expected a finite result, found {-cost}")
        return cost

    def _try_run_and_update_trial(self, trial: Any, *args: Any, **kwargs: Any) -> None:
        # As keras-tuner does it, but without a traceback on the terminal for every failure.
        try:
            self._run_and_update_trial(trial, *args, **kwargs)
            trial.status = "COMPLETED"
        except keras_tuner.errors.FatalError:
            raise
        except Exception as error:
            if type(error).__module__.startswith("grpc"):
                raise
            # Values that cannot be trained, such as a learning rate that diverges: the next trial may do better.
            trial.status = "FAILED"
            trial.message = str(error) if isinstance(error, TfFashionError) else traceback.format_exc()
            if is_worker():
                print(f"Trial {trial.trial_id} failed: {_reason(trial)}", file=sys.stderr)

    def on_trial_end(self, trial: Any) -> None:
        super().on_trial_end(trial)
        if self.bar is not None:
            best = self.oracle.get_best_trials(1)
            score = f"best {-best[0].score:.4f}" if best and best[0].status == "COMPLETED" else "none finished"
            self.bar.set_postfix_str(score, refresh=False)
            self.bar.update()


def is_worker() -> bool:
    """Whether this process only runs trials that a chief hands out (keras-tuner's environment variables say so)."""
    return "KERASTUNER_ORACLE_IP" in os.environ and not _is_chief()


def _is_chief() -> bool:
    return "KERASTUNER_ORACLE_IP" in os.environ and "chief" in os.environ.get("KERASTUNER_TUNER_ID", "")


def _check_environment() -> None:
    if "KERASTUNER_ORACLE_IP" in os.environ:
        missing = [name for name in ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_PORT") if not os.environ.get(name)]
        if missing:
            raise UsageError(f"KERASTUNER_ORACLE_IP is set, so {' and '.join(missing)} must be set too.")


def _serve(oracle: BayesianOracle, token: str, bar: tqdm) -> None:
    """Answers the workers of one search until every trial has ended and every worker that took part knows it."""
    import grpc
    from keras_tuner.src import protos
    from keras_tuner.src.distribute import oracle_chief
    from keras_tuner.src.engine import trial as trials

    class Servicer(oracle_chief.OracleServicer):
        asked = time.monotonic()

        def CreateTrial(self, request: Any, context: Any) -> Any:
            self.asked = time.monotonic()
            if request.tuner_id.rpartition("@")[2] != token:
                # A worker that comes too late for the search before this one.
                stopped = trials.Trial(self.oracle.get_space(), "late", "STOPPED")
                return protos.get_service().CreateTrialResponse(trial=stopped.to_proto())
            return super().CreateTrial(request, context)

        def EndTrial(self, request: Any, context: Any) -> Any:
            self.asked = time.monotonic()
            return super().EndTrial(request, context)

    servicer = Servicer(oracle)

    def over() -> bool:
        if not servicer.stop_triggered and len(oracle.end_order) < oracle.max_trials:
            return False
        # A worker that has died will never fetch its dismissal.
        silent = not oracle.ongoing_trials and time.monotonic() - servicer.asked > _SILENCE
        return silent or oracle_chief.exit_chief(oracle)

    address = f"{os.environ['KERASTUNER_ORACLE_IP']}:{os.environ['KERASTUNER_ORACLE_PORT']}"
    server = grpc.server(ThreadPoolExecutor(max_workers=1), options=(("grpc.so_reuseport", 0),))
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise UsageError(f"The chief cannot listen at {address} (KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT): {error}.") from None
    server.start()
    try:
        while not over():
            time.sleep(0.1)
            bar.update(len(oracle.end_order) - bar.n)
    finally:
        server.stop(grace=1.0).wait()


def _client(oracle: BayesianOracle, token: str, folder: Path) -> Any:
    """keras-tuner's connection to the chief, which also notices that the search has ended without this worker."""
    import grpc
    from keras_tuner.src import protos
    from keras_tuner.src.distribute import oracle_client
    from keras_tuner.src.engine import trial as trials

    class Client(oracle_client.OracleClient):
        def create_trial(self, tuner_id: str) -> Any:
            request = protos.get_service().CreateTrialRequest(tuner_id=tuner_id)
            end = time.monotonic() + _PATIENCE
            while _ended(folder, token) is None:
                try:
                    response = self.stub.CreateTrial(request, wait_for_ready=True, timeout=_ANSWER)
                    return trials.Trial.from_proto(response.trial)
                except grpc.RpcError as error:
                    if error.code() not in (
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                        grpc.StatusCode.UNAVAILABLE,
                        grpc.StatusCode.CANCELLED,
                    ):
                        raise
                if time.monotonic() > end:
                    raise keras_tuner.errors.FatalError(f"The chief has not answered for {_PATIENCE / 60:.0f} minutes.")
            return trials.Trial(oracle.get_space(), "late", "STOPPED")

        def alive(self) -> bool:
            """Whether the chief answers: other workers may still be at it for hours."""
            try:
                self.stub.GetSpace(protos.get_service().GetSpaceRequest(), wait_for_ready=True, timeout=_ANSWER)
            except grpc.RpcError:
                return False
            return True

    return Client(oracle)


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
        UsageError: another process has it, or keras-tuner's environment variables are incomplete.
    """
    _check_environment()
    if is_worker():
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
            failed trial, as does another number (three in a row end the search); a `UsageError` ends the search.
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
        The trials in the order of their start; the chief of several workers and the workers all return the same.

    Raises:
        UsageError: fewer than one trial, a seed below 0, another search in the folder, a chief that does not answer, or from
            `evaluate`.
        DataError: three trials in a row failed, or the folder's files are damaged.
    """
    refuse_bad_options(trials, seed)
    _check_environment()
    record = {"space": space.get_config(), "seed": seed, "starts": [dict(s) for s in starts], "identity": dict(identity or {})}
    token = hash_json({**record, "trials": trials})[:12]
    if is_worker():
        _await_chief(folder, record, label)
        ended = _ended(folder, token)
        if ended is not None:
            return _told(ended)
    else:
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
            try:
                with redirect_stdout(StringIO()):
                    tuner = _Tuner(evaluate, bar, token, folder, oracle=oracle)
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                raise DataError(
                    f"{folder / 'trials'}: the state of the search is damaged ({type(error).__name__}: {error}). Pass --overwrite to "
                    "start anew."
                ) from None
            bar.update(len(oracle.end_order))
            try:
                tuner.search(verbose=0)
            except keras_tuner.errors.FatalError as error:
                raise error.__cause__ if isinstance(error.__cause__, TfFashionError) else UsageError(str(error)) from None
            except Exception as error:
                if not type(error).__module__.startswith("grpc"):
                    raise
                raise UsageError(f"The connection to the chief is lost ({error}). Start chief and workers again.") from None
    if is_worker():
        return _told(_await(lambda: _ended(folder, token), f"the end of the search {label}".strip(), tuner.oracle.alive))
    found = [_trial(oracle.trials[name]) for name in sorted(oracle.trials, key=int)]
    unfinished = len(found) < trials or all(trial.score is None for trial in found)
    failure = oracle.failure if unfinished else ""
    write_json(folder / _ENDED, {"token": token, "failure": failure, "trials": [asdict(trial) for trial in found]})
    if failure:
        raise DataError(f"The search stopped, as {failure}")
    return found


def refuse_bad_options(trials: int, seed: int) -> None:
    """Raises `UsageError` for fewer than one trial or a seed below 0."""
    if trials < 1:
        raise UsageError(f"--trials: expected at least 1, found {trials}.")
    if seed < 0:
        raise UsageError(f"--seed: expected a whole number of at least 0, found {seed}.")


def _trial(trial: Any) -> Trial:
    score = -float(trial.score) if trial.status == "COMPLETED" else None
    return Trial(int(trial.trial_id), dict(trial.hyperparameters.values), score, _reason(trial))


def _reason(trial: Any) -> str:
    """Why a trial failed: the last line of its message, which may be a traceback."""
    lines = str(trial.message or "").strip().splitlines()
    # keras-tuner's messages to the chief have no room for it.
    return lines[-1] if lines else "see the output of the workers" if trial.status == "FAILED" else ""


_ENDED = "ended.json"


def _ended(folder: Path, token: str) -> dict[str, Any] | None:
    """What the chief wrote when this very search ended, else None."""
    path = folder / _ENDED
    there = read_json(path) if path.exists() else {}
    return there if there.get("token") == token else None


def _told(ended: Mapping[str, Any]) -> list[Trial]:
    if ended["failure"]:
        raise DataError(f"The search stopped, as {ended['failure']}")
    return [Trial(**trial) for trial in ended["trials"]]


def _await_chief(folder: Path, record: dict[str, Any], label: str) -> None:
    path = folder / "search.json"
    _await(lambda: (path.exists() and read_json(path) == record) or None, f"the chief to begin the search {label}".strip())


def _await(ready: Callable[[], Any], what: str, alive: Callable[[], bool] = lambda: False) -> Any:
    """Looks again and again until there is something; as long as `alive`, without end."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        for _ in range(10):
            found = ready()
            if found is not None:
                return found
            time.sleep(0.1)
        if alive():
            end = time.monotonic() + _PATIENCE
    raise UsageError(
        f"This worker has waited {_PATIENCE / 60:.0f} minutes for {what}. Start chief and workers with the same arguments and one "
        "--out that all of them see."
    )


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
        (folder / _ENDED).unlink(missing_ok=True)
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
