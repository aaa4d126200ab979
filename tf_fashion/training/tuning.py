"""`tf-fashion tune composed`: Bayesian optimisation over whole training runs."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import make_out_folder, read_json, write_json
from tf_fashion.datasets import open_composed
from tf_fashion.reports.tables import format_table
from tf_fashion.training.composed import train_composed
from tf_fashion.training.config import OPTIONS_OF, ComposedConfig

# What is searched if nobody says what.
DEFAULT_SPACE = ("learning_rate=2e-4:5e-3:log", "feature_dropout=0:0.7", "scale=2:8", "weight_decay=1e-5:1e-2:log")
# Decided by the search itself, or without effect on the result.
_FIXED = ("data", "images", "out", "dataset", "categories", "split", "protocol", "overwrite", "progress", "report", "export", "cache")


@dataclass(frozen=True)
class TuningConfig:
    """What decides a search; explained by `tf-fashion tune composed --help`."""

    search: tuple[str, ...] = ()
    trials: int = 20
    search_seed: int = 0
    holdout: str | None = None


def parse_space(entries: Sequence[str]) -> dict[str, Any]:
    """Search ranges by name from `NAME=LOW:HIGH`, `NAME=LOW:HIGH:log`, `NAME=LOW:HIGH:int` or `NAME=A,B,C`.

    NAME is a field of `ComposedConfig` with `-` or `_`, or an option of a class such as `composer_options.blocks`.

    Raises:
        UsageError: another form, or a name that cannot be searched.
    """
    known = {field.name for field in dataclasses.fields(ComposedConfig)} - set(_FIXED)
    space: dict[str, Any] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        owner, dot, _ = name.partition(".")
        if not equals or not text:
            raise UsageError(f"--search {entry!r}: expected NAME=LOW:HIGH, NAME=LOW:HIGH:log, NAME=LOW:HIGH:int or NAME=A,B,C.")
        if owner not in (OPTIONS_OF if dot else known):
            where = f"{', '.join(OPTIONS_OF)} have options (NAME.OPTION)" if dot else f"known: {', '.join(sorted(known))}"
            raise UsageError(f"--search {entry!r}: {owner!r} cannot be searched; {where}.")
        space[name] = _range(entry, text)
    return space


def _range(entry: str, text: str) -> Any:
    if ":" not in text:
        values = [_value(part) for part in text.split(",")]
        # keras-tuner's choices have one type.
        if len({type(value) for value in values}) > 1:
            numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
            values = [float(value) for value in values] if numbers else [str(value) for value in values]
        return values
    parts = text.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
    except ValueError:
        raise UsageError(f"--search {entry!r}: expected numbers on both sides of ':'.") from None
    if len(parts) > 3 or (len(parts) == 3 and parts[2] not in ("log", "int")):
        raise UsageError(f"--search {entry!r}: after the range only ':log' or ':int' may stand.")
    return (low, high, *parts[2:])


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float, bool)) else text


def with_values(config: ComposedConfig, values: Mapping[str, Any]) -> ComposedConfig:
    """The configuration with searched values in it."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        owner, dot, option = name.partition(".")
        value = value.item() if hasattr(value, "item") else value
        if dot:
            changes[owner] = {**(changes.get(owner) or getattr(config, owner) or {}), option: value}
        elif name in ("taps", "descriptors"):
            changes[name] = tuple(part for part in str(value).split("+") if part)
        else:
            changes[name] = value
    return dataclasses.replace(config, **changes)


def tune_composed(config: ComposedConfig, tuning: TuningConfig) -> dict[str, Any]:
    """Searches for the settings with the greatest mean recall on the evaluated split; see `tf-fashion tune composed --help`.

    Every trial is a whole run in `OUT/trials/NUMBER`, so that a killed one continues after its last epoch. The best number has been
    chosen on its split and is optimistic; with `holdout` the best model is measured on another split too.

    Returns:
        The content of `tuning.json`.

    Raises:
        UsageError, DataError: see the messages.
    """
    from tf_fashion.ensemble.tuner import alone, best_of, search, space_of

    space = parse_space(tuning.search or DEFAULT_SPACE)
    if config.strategy != "none":
        raise UsageError(
            "--strategy: a search runs its trials one after the other on one device. Start one worker per GPU instead "
            "(CUDA_VISIBLE_DEVICES and keras-tuner's KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT)."
        )
    config.resolved()
    dataset = open_composed(config.data, config.images, config.categories, config.dataset)
    split = config.split or dataset.default_split
    if tuning.holdout is not None and (tuning.holdout not in dataset.splits() or tuning.holdout == split):
        raise UsageError(f"--holdout: expected a split other than {split!r}; found are {', '.join(dataset.splits())}.")
    if split is None:
        raise DataError(f"{config.data}: a search needs a split to be judged on, such as val; found are {', '.join(dataset.splits())}.")
    for judge in filter(None, (split, tuning.holdout)):
        parts = [dataset.get(c, judge) for c in dataset.categories if judge in dataset.splits(c)]
        if not parts or not all(part.has_targets for part in parts):
            raise DataError(f"{config.data}: the split {judge!r} has no targets, so nothing can be judged on it. Take another one.")
    out = make_out_folder(config.out)
    if (out / "config.json").exists():
        raise UsageError(f"{out} holds a training run. Choose another --out.")
    identity = {**config.identity(), "split": split, "data_hash": dataset.data_hash(["train", split])}

    def evaluate(values: dict[str, Any], trial: str) -> float:
        chosen = with_values(config, values)
        keras.backend.clear_session()
        gc.collect()
        run = dataclasses.replace(
            chosen, out=str(_folder(out, int(trial))), report=False, export=False, progress=False, overwrite=config.overwrite
        )
        return float(train_composed(run)["mean"]["mean"])

    state = make_out_folder(out / "search")
    with alone(state):
        trials = search(
            evaluate,
            space_of(space),
            state,
            tuning.trials,
            tuning.search_seed,
            identity=identity,
            overwrite=config.overwrite,
            label="trials",
            progress=config.progress,
        )
    if "chief" in os.environ.get("KERASTUNER_TUNER_ID", "chief"):
        return _report(config, tuning, trials, best_of(trials), split, out)
    return {}


def _folder(out: Path, trial: int) -> Path:
    return out / "runs" / f"{trial:04d}"


def _report(config: ComposedConfig, tuning: TuningConfig, trials: list[Any], best: Any, split: str, out: Path) -> dict[str, Any]:
    folder = _folder(out, best.number)
    command = f"tf-fashion train composed {given_options(with_values(config, best.values))}"
    result: dict[str, Any] = {
        "split": split,
        "best": {"trial": best.number, "values": _plain(best.values), "mean": best.score, "folder": str(folder), "command": command},
        "trials": [{"trial": t.number, "values": _plain(t.values), "mean": t.score, "message": t.message} for t in trials],
    }
    if tuning.holdout is not None:
        from tf_fashion.training.commands import evaluate_model

        target = out / f"metrics.{tuning.holdout}.json"
        evaluate_model(
            str(folder / "model.keras"),
            config.data,
            config.images,
            config.dataset,
            config.categories,
            tuning.holdout,
            config.protocol,
            str(target),
            skip_bad_images=config.skip_bad_images,
            progress=False,
        )
        result["holdout"] = {"split": tuning.holdout, **read_json(target)["mean"]}
    write_json(out / "tuning.json", result)
    if config.progress:
        names = list(best.values)
        ranked = sorted(trials, key=lambda trial: -(trial.score if trial.score is not None else -1.0))
        rows = [[t.number, *(_shown(t.values.get(name)) for name in names), t.score] for t in ranked[:10]]
        print(format_table(["trial", *names, f"mean on {split}"], rows))
        failed = sum(trial.score is None for trial in trials)
        print(f"The best of {len(trials)} trials" + (f" ({failed} failed)" if failed else "") + f" was chosen on {split}: optimistic.")
        if "holdout" in result:
            print(f"On {tuning.holdout}, which had no part in the choice: mean {result['holdout']['mean']:.2f}")
        print(f"Its model: {folder / 'model.keras'}\nAgain:     {command}")
    return result


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.item() if hasattr(value, "item") else value for name, value in values.items()}


def _shown(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def given_options(config: ComposedConfig) -> str:
    """The options of `tf-fashion train composed` that make a configuration, without its defaults and its folder."""
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = None if field.default is dataclasses.MISSING else field.default
        if value == default or value == {} or field.name in ("out", "overwrite", "progress"):
            continue
        option = "--" + field.name.replace("_", "-")
        if isinstance(value, dict):
            for name, entry in value.items():
                words += [option.removesuffix("s"), f"{name}={json.dumps(entry)}"]
        elif isinstance(value, bool):
            words += [option] if value else [f"--no-{field.name}"]
        elif field.name == "glove":
            for path in value:
                words += [option, path]
        else:
            words += [option, ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)]
    return shlex.join([*words, "--out", "DIR"])
