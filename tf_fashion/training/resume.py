"""Training that survives a kill: after each epoch the whole state is on disk, and a rerun continues from it.

Order of batches, augmentations and dropout masks are functions of (seed, epoch), so a resumed run ends with the weights of an
uninterrupted one, bit for bit on the same machine and device.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_fashion.core.errors import DataError
from tf_fashion.core.files import atomic_write, make_out_folder, read_json, replaced_file, write_json


def reseed(model: keras.Model, seed: int, epoch: int) -> None:
    """Sets the state of every random layer (dropout, ...) of `model` from the seed and the epoch."""
    generators = [
        generator for layer in model._flatten_layers() for generator in getattr(layer, "_seed_generators", []) if generator is not None
    ]
    for number, generator in enumerate(generators):
        state = np.random.SeedSequence([seed, epoch, number]).generate_state(2)
        generator.state.assign(np.asarray(state, dtype=generator.state.dtype))


class TrainingState(keras.callbacks.Callback):
    """Keeps `state.json`, the last weights (with the optimizer's) and the best weights in a private folder.

    It is also the keeper of the history: `history.csv` beside the folder has one row per finished epoch, whatever happened in
    between.

    Args:
        folder: Private folder of the state.
        history_path: CSV file with a row per epoch.
        seed: Seed of the run.
        evaluate: None, or a function that is called after each epoch and returns metrics (fractions or percentages) that are
            added to the epoch's row.
        monitor: Name of the metric that decides which weights are best (higher is better), or None.
        patience: Stop after so many epochs without a better `monitor`; None never stops early.
    """

    def __init__(
        self,
        folder: str | Path,
        history_path: str | Path,
        seed: int = 0,
        evaluate: Callable[[], dict[str, float]] | None = None,
        monitor: str | None = None,
        patience: int | None = None,
    ) -> None:
        super().__init__()
        self.folder = make_out_folder(folder)
        self.history_path = Path(history_path)
        self.seed = seed
        self.evaluate = evaluate
        self.monitor = monitor
        self.patience = patience
        self.rows: list[dict[str, Any]] = []
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.finished = False
        self.initial_epoch = 0
        self.epochs_left = 0

    @property
    def best_path(self) -> Path:
        """Weights of the best epoch."""
        return self.folder / "best.weights.h5"

    def _weights_path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05d}.weights.h5"

    def restore(self, model: keras.Model, epochs_wanted: int) -> int:
        """Loads the last finished epoch into a built, compiled model, and sets `initial_epoch` and `epochs_left`.

        Args:
            model: Built and compiled.
            epochs_wanted: Epochs of the whole run.

        Returns:
            Number of finished epochs, 0 for a fresh start.

        Raises:
            DataError: the state is not readable or belongs to another model.
        """
        self.initial_epoch = self._load(model)
        self.epochs_left = 0 if self.finished else max(epochs_wanted - self.initial_epoch, 0)
        return self.initial_epoch

    def _load(self, model: keras.Model) -> int:
        path = self.folder / "state.json"
        if not path.exists():
            return 0
        state = read_json(path)
        try:
            epochs, rows = int(state["epochs"]), list(state["rows"])
            self.best, self.best_epoch, self.finished = state["best"], state["best_epoch"], bool(state["finished"])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path}: not the state of a run. Delete the folder {self.folder} to start anew.") from None
        weights = self._weights_path(epochs)
        try:
            model.load_weights(weights)
        except Exception as error:
            raise DataError(
                f"{weights}: cannot be loaded into this model ({str(error).splitlines()[0]}). Delete the folder {self.folder} to "
                "start anew."
            ) from None
        self.rows = rows
        return epochs

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        reseed(self.model, self.seed, epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        row: dict[str, Any] = {"epoch": epoch + 1, **{key: float(value) for key, value in (logs or {}).items()}}
        rate = self.model.optimizer.learning_rate
        row["learning_rate"] = float(np.asarray(rate))
        if not np.isfinite(row.get("loss", 0.0)):
            raise DataError(
                f"The loss became {row['loss']} in epoch {epoch + 1} (learning rate {row['learning_rate']:.3g}). Lower "
                f"--learning-rate; the state of epoch {epoch} is kept in {self.folder}."
            )
        if self.evaluate is not None:
            measured = self.evaluate()
            row.update(measured)
            if logs is not None:
                logs.update(measured)
        self.rows.append(row)
        if self.monitor is not None and self.monitor in row and (self.best is None or row[self.monitor] > self.best):
            self.best, self.best_epoch = row[self.monitor], epoch + 1
            self._save_weights(self.best_path)
        if self.patience is not None and self.best_epoch is not None and epoch + 1 - self.best_epoch >= self.patience:
            self.finished = True
            self.model.stop_training = True
        self._write(epoch + 1)

    def _save_weights(self, path: Path) -> None:
        with replaced_file(path, ".weights.h5") as temporary:
            self.model.save_weights(temporary)

    def _write(self, epochs: int) -> None:
        self._save_weights(self._weights_path(epochs))
        state = {
            "epochs": epochs,
            "rows": self.rows,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "finished": self.finished,
        }
        write_json(self.folder / "state.json", state)
        for old in self.folder.glob("epoch-*.weights.h5"):
            if old != self._weights_path(epochs):
                old.unlink()
        self.write_history()

    def write_history(self) -> None:
        """Writes `history.csv`."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with atomic_write(self.history_path) as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
