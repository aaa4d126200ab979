"""What training runs of every model share: folders, pictures, devices, optimizer, state, `model.fit`."""

from __future__ import annotations

import contextlib
import inspect
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion import __version__
from tf_fashion.core.errors import DataError, TfFashionError, UsageError
from tf_fashion.core.files import atomic_write, make_out_folder, read_json, replaced_file, write_json
from tf_fashion.encoders.image import ImageEncoder, weights_record
from tf_fashion.encoders.saved_model import SavedModelEncoder
from tf_fashion.inputs.audit import BadImage, audit_images, write_bad_images
from tf_fashion.inputs.augment import Augmentation
from tf_fashion.inputs.feature_cache import FeatureCache, FeatureTable
from tf_fashion.inputs.pipelines import FeatureSource, PhotoSource
from tf_fashion.training.bad_images import refuse_or_report
from tf_fashion.training.config import AUGMENTATIONS, SAVED_MODEL
from tf_fashion.training.optimizers import GroupedAdamW, TFAdam
from tf_fashion.training.resume import TrainingState
from tf_fashion.training.schedules import WarmupCosine, WarmupStepDecay


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "tf_fashion": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def make_strategy(name: str, devices: tuple[str, ...] | None) -> tf.distribute.Strategy | None:
    """The `tf.distribute` strategy of a run: None, or `MirroredStrategy` over all GPUs or the given devices.

    Several CPU devices (`cpu:0,cpu:1`) are made as logical devices, to try a distributed run without GPUs.

    Raises:
        UsageError: unknown name, or devices that do not exist.
    """
    if name == "none":
        return None
    if name != "mirrored":
        raise UsageError(f"--strategy: expected none or mirrored, found {name!r}.")
    if devices:
        wanted = max((int(device.split(":")[1]) for device in devices if device.lower().startswith("cpu:")), default=0) + 1
        if wanted > 1:
            try:
                cpu = tf.config.list_physical_devices("CPU")[0]
                tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * wanted)
            except RuntimeError:
                if len(tf.config.list_logical_devices("CPU")) < wanted:
                    raise UsageError(f"--devices: {wanted} logical CPUs cannot be made once TensorFlow has started.") from None
    known = {device.name.split("device:")[-1].lower() for device in tf.config.list_logical_devices()}
    unknown = [device for device in devices or () if device.lower() not in known]
    if unknown:
        raise UsageError(f"--devices: no device {', '.join(unknown)}. Found: {', '.join(sorted(known))}.")
    return tf.distribute.MirroredStrategy(list(devices) if devices else None)


def set_precision(name: str) -> str:
    """Sets Keras' dtype policy. "auto": bfloat16 mixed precision on GPUs that have it, float16 on older ones, float32 on CPUs.

    Returns:
        Name of the policy.
    """
    if name == "auto":
        gpus = tf.config.list_physical_devices("GPU")
        name = "float32"
        if gpus:
            capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
            name = "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16"
    if name not in ("float32", "mixed_float16", "mixed_bfloat16"):
        raise UsageError(f"--precision: expected auto, float32, mixed_float16 or mixed_bfloat16; found {name!r}.")
    keras.mixed_precision.set_global_policy(name)
    return name


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Puts the optimizer's moving averages into the model for a while; nothing happens if it keeps none."""
    if not model.optimizer.use_ema or not int(model.optimizer.iterations):
        yield
        return
    variables = model.trainable_variables
    kept = [variable.numpy() for variable in variables]
    model.optimizer.finalize_variable_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, kept, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def unused_parts_expected() -> Iterator[None]:
    """Holds back Keras' warning about variables without gradients: composers that use the picture or the text alone, and training
    with descriptions alone, leave a part of the model unused on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gradients do not exist", UserWarning)
        yield


def made(where: str, kind: Any, options: dict[str, Any], **fixed: Any) -> Any:
    """Calls `kind` with a user's options beside the program's own arguments.

    Raises:
        UsageError: an option that `kind` does not have, that the program sets itself, or of another type.
    """
    known = [
        name for name, parameter in inspect.signature(kind).parameters.items() if parameter.kind == parameter.POSITIONAL_OR_KEYWORD
    ]
    unknown = [name for name in options if name in fixed or name not in known and not _inherits(kind, name)]
    if unknown:
        free = [name for name in known if name not in fixed and name != "name"]
        raise UsageError(f"{where} {unknown[0]}: {kind.__name__} takes {', '.join(free) or 'no options'}.")
    try:
        return kind(**options, **fixed)
    except (TypeError, ValueError) as error:
        if isinstance(error, TfFashionError):
            raise
        raise UsageError(f"{where}: {kind.__name__} does not take {options}: {error}") from None


def _inherits(kind: Any, name: str) -> bool:
    """Whether a base class that `kind` passes further arguments on to has this one."""
    bases = [base for base in inspect.getmro(kind)[1:] if base.__module__.startswith("tf_fashion")]
    return any(name in inspect.signature(base).parameters for base in bases)


def copy_weights(source: Any, target: Any, where: str) -> None:
    """Gives all weights of a model (or a part of one) to another of the same make.

    Raises:
        UsageError: they are of different make; `where` begins the message.
    """
    found, wanted = ([(v.name, tuple(v.shape)) for v in layer.weights] for layer in (source, target))
    if found != wanted:
        place = next((i for i, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), min(len(found), len(wanted)))
        theirs, ours = ("nothing" if place >= len(x) else f"{x[place][0]} {x[place][1]}" for x in (found, wanted))
        at = (target.weights if place < len(wanted) else source.weights)[place].path
        raise UsageError(
            f"{where}: expected the weights of a model like this run's, with {ours} at {at}; found {theirs} there ({len(found)} "
            f"weights against {len(wanted)}). Give the options that the file was trained with (config.json beside it)."
        )
    for new, old in zip(target.weights, source.weights, strict=True):
        new.assign(old)


def make_image_encoder(config: Any) -> ImageEncoder | SavedModelEncoder:
    """The image encoder that a configuration names."""
    if str(config.backbone).startswith(SAVED_MODEL):
        folder = str(config.backbone)[len(SAVED_MODEL) :]
        return SavedModelEncoder(folder, config.image_size or 224, resize=config.resize, name="image_encoder")
    return ImageEncoder(
        config.backbone,
        image_size=config.image_size,
        taps=config.taps or (),
        pooling=None if config.pooling == "none" else config.pooling,
        descriptors=config.descriptors or (),
        resize=config.resize,
        interpolation=config.interpolation,
        weights=config.weights,
        batch_norm=config.batch_norm,
        batch_norm_momentum=config.norm_momentum,
        batch_norm_unbiased=config.norm_unbiased,
        scaling=config.scaling,
        name="image_encoder",
        dtype="float32" if config.freeze_backbone else None,
    )


def make_optimizer(config: Any, total_steps: int, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """The optimizer with its schedule that a configuration names.

    Raises:
        UsageError: options that they do not have.
    """
    total = max(total_steps, 1)
    schedule: Any = config.learning_rate
    where = "--schedule-option"
    if config.schedule == "cosine":
        schedule = made(where, WarmupCosine, config.schedule_options, learning_rate=config.learning_rate, total_steps=total)
    elif config.schedule == "warmup_step":
        sizes = {"batch_size": config.batch_size, "steps_per_epoch": steps_per_epoch}
        schedule = made(where, WarmupStepDecay, config.schedule_options, learning_rate=config.learning_rate, **sizes)
    elif config.schedule_options:
        raise UsageError(f"--schedule-option: the schedule {config.schedule!r} has no options.")
    elif config.schedule == "step":
        # The step at the boundary still has the old rate.
        rates = [config.learning_rate, config.learning_rate * 0.1]
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay([total // 2], rates)
    elif config.schedule == "thirds":
        schedule = tenth_of_thirds(config.learning_rate, total, steps_per_epoch)
    factors = {r"image_encoder": config.backbone_factor} if config.backbone_factor != 1.0 else None
    average = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
    fixed = {"learning_rate": schedule, "lr_multipliers": factors, **average}
    where = "--optimizer-option"
    if config.optimizer == "adam":
        return made(where, TFAdam, {"epsilon": 1e-8, **config.optimizer_options}, **fixed)
    return made(where, GroupedAdamW, config.optimizer_options, weight_decay=config.weight_decay, **fixed)


def tenth_of_thirds(learning_rate: float, total_steps: int, steps_per_epoch: int) -> Any:
    """A rate that falls to a tenth after each third of the epochs, rounded down: UDMA's. A remainder trains with a fourth rate."""
    epochs = max(-(-total_steps // max(steps_per_epoch, 1)), 1)
    third = max(epochs // 3, 1) * max(steps_per_epoch, 1)
    # The step at a boundary still has the old rate.
    boundaries = list(range(third - 1, total_steps - 1, third))
    rates = [learning_rate * 0.1**k for k in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates) if boundaries else learning_rate


class TrainingRun:
    """Base of the runs of all models. A subclass opens its data in the constructor and calls `_start`; it defines `build_model`,
    `training_data`, `evaluate_epoch`, `write_metrics`, `write_export` and what else its model needs.

    Attributes:
        config: The resolved configuration.
        dataset: The opened data.
        out: Folder of the run.
        model: Set by `build_model`.
        table: Cached features, None where the backbone is trained.
        paths: Image id -> file.
    """

    config: Any
    dataset: Any
    data_hash: str
    model_hashes: dict[str, str]
    evaluation_splits: list[str]
    can_evaluate: bool
    model: Any
    steps: int
    strategy: tf.distribute.Strategy | None
    # Which of `evaluate_epoch`'s metrics says how good an epoch is.
    monitor = "mean"

    def __init__(self) -> None:
        self.started = time.time()
        self._bad: list[BadImage] = []
        self._given: dict[str, Any] = {}

    def _claim(self) -> None:
        """Makes the folder of the run, and sees that it is free for it."""
        self.out = make_out_folder(self.config.out)
        self._check_out()

    def _start(self) -> None:
        """Seeds and precision; devices before them, since TensorFlow fixes these once it has begun."""
        keras.utils.set_random_seed(self.config.seed)
        if self.config.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.precision = set_precision(self.config.precision)

    def _check_splits(self) -> None:
        """Sees that there is something to train on and, unless the split is "none", to measure by."""
        config, splits = self.config, self.dataset.splits()
        if "train" not in splits:
            raise DataError(f"{config.data}: there is no split 'train'. Found: {', '.join(splits)}.")
        if config.split != "none" and config.split not in splits:
            raise UsageError(
                f"--split: {config.data} has no split {config.split!r}. Found: {', '.join(splits)}; 'none' trains without evaluation."
            )

    def training_data(self, initial_epoch: int, epochs: int | None = None) -> tf.data.Dataset:
        """Batches from `initial_epoch` on, up to `epochs` (default: those of the run)."""
        raise NotImplementedError

    def picture_source(self) -> FeatureSource | PhotoSource:
        """Where batches take pictures from: cached features, or photos with the run's random changes."""
        if self.table is not None:
            return FeatureSource(self.table)
        augment = Augmentation() if self.config.flip else None
        if self.config.augment:
            augment = AUGMENTATIONS[self.config.augment]()
        return PhotoSource(self.paths, self.encoder.image_spec, augment)

    def image_paths(self) -> dict[str, Path]:
        """Paths of all pictures of the run."""
        raise NotImplementedError

    def evaluate_epoch(self) -> dict[str, float]:
        """Metrics of the model as it is, by name."""
        raise NotImplementedError

    def write_metrics(self) -> dict[str, Any]:
        """Measures the trained model, writes `metrics.json` with its tables and pictures, and gives its content."""
        raise NotImplementedError

    def write_export(self) -> str:
        """Writes `export/1`, tries it against the model, and gives a line about that.

        Raises:
            DataError: the two disagree.
        """
        raise NotImplementedError

    def say(self, text: str) -> None:
        """Prints one line of progress."""
        if self.config.progress:
            print(text, flush=True)

    def _record(self) -> dict[str, Any]:
        return {"identity": self.config.identity(), "data_hash": self.data_hash, "models": self.model_hashes}

    def _check_out(self) -> None:
        """Makes sure that the folder is empty, or holds this very run."""
        path = self.out / "config.json"
        mine = self._record()
        if path.exists() and not self.config.overwrite:
            there = read_json(path)
            if {key: there.get(key) for key in mine} != mine:
                old, new = there.get("identity", {}), mine["identity"]
                changed = [key for key in new if old.get(key) != new[key]]
                changed = changed or ["the data" if there.get("data_hash") != self.data_hash else "the content of a given model"]
                raise UsageError(
                    f"{self.out} holds another run (it differs in: {', '.join(changed)}). Choose another --out, or pass --overwrite "
                    "to replace it."
                )
        elif self.config.overwrite:
            shutil.rmtree(self.out / "state", ignore_errors=True)

    def _claim_out(self) -> None:
        write_json(self.out / "config.json", {**self._record(), "config": self.config.plain(), "versions": versions()})

    def _black_picture(self) -> Path:
        path = self.out / "black.png"
        if not path.exists():
            with atomic_write(path, "wb") as file:
                file.write(tf.io.encode_png(tf.zeros((224, 224, 3), tf.uint8)).numpy())
        return path

    def _bad_images(self, bad: list[BadImage]) -> None:
        """Refuses pictures that cannot be used, leaves them out, or lets them count as black ones."""
        if not bad:
            return
        self._bad += bad
        if self.config.black_bad_images:
            write_bad_images(self.out / "bad_images.csv", self._bad)
            self.say(f"{len(bad)} pictures cannot be read and count as black ones (listed in {self.out / 'bad_images.csv'}).")
            return
        refuse_or_report(self._bad, self.out / "bad_images.csv", self.config.skip_bad_images, self.say)
        self.dataset = self.dataset.without_images([image.id for image in bad])
        for line in self.dataset.report():
            self.say(f"  {line}")

    def build_encoder(self) -> None:
        """Builds the image encoder, with its weights."""
        with self.scope():
            self.encoder = make_image_encoder(self.config)
            if "init_from" in self._given:
                # The feature cache goes by these weights.
                copy_weights(self._given["init_from"].image_encoder, self.encoder, f"--init-from {self.config.init_from}")

    def load_pictures(self) -> None:
        """Builds the image encoder and, if it is frozen, fills the feature cache; otherwise audits the photos."""
        config = self.config
        paths = self.image_paths()
        self.build_encoder()
        self.table: FeatureTable | None = None
        if config.freeze_backbone:
            self.encoder.trainable = False
            cache = FeatureCache.of(self.encoder, config.cache)
            known = len(paths) - len(cache.missing(paths))
            self.say(f"Features of {known} of {len(paths)} pictures are in the cache {cache.folder}")
            size = self.encoder.image_size
            encode = tf.function(self.encoder.encode, input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32)])
            bad = cache.fill(paths, self.encoder.image_spec, encode, progress=config.progress)
            self._bad_images(bad)
            if config.black_bad_images and bad:
                paths |= dict.fromkeys((image.id for image in bad), self._black_picture())
                cache.fill(paths, self.encoder.image_spec, encode, progress=False)
                bad = []
            unusable = {image.id for image in bad}
            self.table = cache.table({image_id: path for image_id, path in paths.items() if image_id not in unusable})
        else:
            bad = audit_images(paths, self.encoder.image_spec, progress=config.progress)
            self._bad_images(bad)
            if config.black_bad_images and bad:
                paths |= dict.fromkeys((image.id for image in bad), self._black_picture())
        self._claim_out()
        self.paths = {image_id: paths[image_id] for image_id in self.dataset.image_ids(["train", *self.evaluation_splits])}

    def scope(self) -> Any:
        """The strategy's scope, or a context that does nothing."""
        return self.strategy.scope() if self.strategy is not None else tf.name_scope("")

    def callback(self) -> TrainingState:
        """The keeper of the run's state, which also evaluates after each epoch."""
        config = self.config
        epoch = 0

        def measure() -> dict[str, float]:
            nonlocal epoch
            epoch += 1
            if epoch % config.evaluate_every and epoch + self.initial_epoch < config.epochs:
                return {}
            with averaged_weights(self.model):
                return {f"{config.split}_{key}": round(float(value), 6) for key, value in self.evaluate_epoch().items()}

        return TrainingState(
            self.out / "state",
            self.out / "history.csv",
            config.seed,
            measure if self.can_evaluate else None,
            f"{config.split}_{self.monitor}" if self.can_evaluate else None,
            config.patience,
        )

    def prepare_state(self) -> TrainingState:
        """Restores the last finished epoch, if there is one."""
        self.state = self.callback()
        self.initial_epoch = self.state.restore(self.model, self.config.epochs)
        if self.initial_epoch:
            self.say(f"Continuing after epoch {self.initial_epoch} of {self.config.epochs}, from {self.state.folder}")
        return self.state

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs: the state's keeper, and TensorBoard if asked for."""
        return [self.state, *([keras.callbacks.TensorBoard(self.out / "tensorboard")] if self.config.tensorboard else [])]

    @property
    def verbosity(self) -> int:
        """Keras' `verbose`: a progress bar on terminals, a line per epoch elsewhere."""
        return (1 if sys.stdout.isatty() else 2) if self.config.progress else 0

    def fit(self) -> None:
        """`model.fit` from the last finished epoch to the end."""
        state = self.prepare_state()
        if state.epochs_left:
            self._fit(state.initial_epoch, self.config.epochs, self.callbacks())

    def _fit(self, initial_epoch: int, epochs: int, callbacks: list[keras.callbacks.Callback]) -> None:
        with unused_parts_expected():
            self.model.fit(
                self.training_data(initial_epoch, epochs),
                initial_epoch=initial_epoch,
                epochs=epochs,
                steps_per_epoch=self.steps,
                callbacks=callbacks,
                verbose=self.verbosity,
                shuffle=False,
            )

    def restore_chosen(self) -> None:
        """Puts the weights into the trained model that are kept: of the best epoch or averaged, if asked for."""
        if self.config.select == "best" and self.state.best_path.exists():
            self.model.load_weights(self.state.best_path)
        if self.config.ema:
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)

    def release(self) -> None:
        """Takes out of the trained model what only training needed."""

    def finish(self) -> dict[str, Any]:
        """Saves the trained model, measures it, reports and exports it.

        Returns:
            The content of `metrics.json`, empty where there is nothing to measure by.
        """
        self.restore_chosen()
        self.release()
        with replaced_file(self.out / "model.keras", ".keras") as temporary:
            self.model.save(temporary)
        metrics = self.write_metrics() if self.can_evaluate else {}
        if self.config.export:
            self.say(self.write_export())
        self.list_results()
        return metrics

    def record(self, name: str) -> dict[str, Any]:
        """What `metrics.json` says about the run."""
        config = self.config
        return {
            "name": name,
            "seed": config.seed,
            "versions": versions(),
            "config": config.plain(),
            "data_hash": self.data_hash,
            "weights": weights_record(config.weights),
            "models": self.model_hashes,
            "parameters": int(sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)),
            "epochs": len(self.state.rows),
            "selection": "last epoch" if config.select == "last" else f"best epoch on {config.split} ({self.state.best_epoch})",
            "precision": self.precision,
            "replicas": 1 if self.strategy is None else self.strategy.num_replicas_in_sync,
            "seconds": round(time.time() - self.started, 1),
        }

    def list_results(self) -> None:
        """Says what the run has left in its folder."""
        kept = {
            "model.keras": "the trained model",
            "metrics.json": "the numbers with their protocol",
            "results.log": "the recalls as the released VAL logs them",
            "thresholds.json": "when a label is given",
            "labels.csv": "the numbers of every label",
            "history.csv": "one row per epoch",
            "sheet.png": "queries and what was found",
            "clusters.png": "shop photos of both data sets in two dimensions",
            "cluster_tree.png": "how their clusters nest",
            "weights.svg": "which photos of the target the products got",
            "pseudo_labels.npz": "what was trained on",
            "report.html": "all of it, to open in a browser",
            "export": "the SavedModel for serving",
        }
        listed = [f"  {self.out / name}  {what}" for name, what in kept.items() if (self.out / name).exists()]
        self.say("\n".join(["Results:", *listed]))
