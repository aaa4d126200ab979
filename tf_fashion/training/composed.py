"""Training of a `ComposedRetriever`, from a folder of data to a folder of results."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion import __version__
from tf_fashion.composers import COMPOSERS, Composer
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import make_out_folder, read_json, replaced_file, write_json
from tf_fashion.datasets import ComposedDataset, open_composed
from tf_fashion.encoders.image import BACKBONES, ImageEncoder, weights_record
from tf_fashion.encoders.saved_model import SavedModelEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.audit import BadImage, audit_images
from tf_fashion.inputs.augment import Augmentation
from tf_fashion.inputs.feature_cache import FeatureCache, FeatureTable
from tf_fashion.inputs.glove import glove_table, load_glove
from tf_fashion.inputs.images import load_image
from tf_fashion.inputs.pipelines import FeatureSource, PhotoSource, TripletTable, query_text, training_batches
from tf_fashion.inputs.text import RULES, WordTokenizer, build_vocabulary
from tf_fashion.losses import LOSSES
from tf_fashion.models import ComposedRetriever
from tf_fashion.reports.tables import results_table
from tf_fashion.retrieval.protocol import Protocol, get_protocol, summarise
from tf_fashion.serving.export import ExportedRetriever, export_composed
from tf_fashion.training.bad_images import refuse_or_report
from tf_fashion.training.evaluation import CategoryEvaluation, Embedder, evaluate_composed, needed_images
from tf_fashion.training.optimizers import GroupedAdamW, TFAdam
from tf_fashion.training.results import write_results
from tf_fashion.training.resume import TrainingState
from tf_fashion.training.schedules import WarmupCosine

# The feature maps that multi-level composers work on.
LEVELS = ("low", "mid", "high")
ALL_STAGES = ("stage5", "stage4", "stage3", "stage2", "stage1")

AUGMENTATIONS: dict[str, Callable[[], Augmentation]] = {
    "fashion_iq_2020": Augmentation.fashion_iq_2020,
    "val": Augmentation.val,
    "val_mirror": functools.partial(Augmentation.val, crop=False),
}

# Prefix of --backbone that names a SavedModel folder, such as an unpacked TF-Hub model.
SAVED_MODEL = "saved_model:"

# A field that the preset fills in: None until `ComposedConfig.resolved`.
FromPreset = Any

# What neither the command line nor the preset says.
DEFAULTS: dict[str, Any] = {
    "composer": "tirg",
    "composer_options": {},
    "text_options": {},
    "text_encoder": "swem",
    "word_dim": 256,
    "text_dropout": 0.0,
    "tokens": "strip_punct",
    "marks": False,
    "captions": "joined",
    "caption_style": "and",
    "resize": "squash",
    "interpolation": "bilinear",
    "taps": ("stage5",),
    "pooling": "avg",
    "descriptors": (),
    "dim": 512,
    "projection": "linear",
    "feature_norm": False,
    "feature_dropout": 0.0,
    "loss": "batch_classification",
    "loss_options": {},
    "scale": 4.0,
    "semantic_with": "target",
    "optimizer": "adamw",
    "schedule": "cosine",
    "weight_decay": 0.0,
    "l2_penalty": 0.0,
    "backbone_factor": 1.0,
    "epochs": 10,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "flip": False,
}

# Better starts than the originals', for presets that do not reproduce one. VAL's self-attention begins with weight 0 there, and
# its gates alone can only dampen a channel, so that it learns slowly; and its change is never negative, although our normalised maps
# take both signs.
COMPOSER_DEFAULTS: dict[str, dict[str, Any]] = {
    "val": {"attention": {"initial_weights": (1.0, 1.0), "signed_change": True, "gate_activation": False}}
}
# Composers on maps drop features after composing, and with them what the sentence said.
MAP_DROPOUT = 0.1

# What a preset says is taken where the command line says nothing.
PRESETS: dict[str, dict[str, Any]] = {
    # Frozen pretrained backbone, features computed once: minutes on a CPU.
    "frozen": {
        "backbone": "mobilenet_v2",
        "taps": ALL_STAGES,
        "descriptors": ("colour", "shape"),
        "text_encoder": "swem",
        "word_dim": 256,
        "text_dropout": 0.3,
        "dim": 512,
        "feature_norm": True,
        "feature_dropout": 0.5,
        "batch_size": 128,
        "epochs": 12,
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
    },
    # A small network from scratch on small pictures: minutes on a CPU, for pictures that are easy to read.
    "scratch": {
        "backbone": "small_cnn",
        "image_size": 64,
        "taps": ("stage5", "stage4"),
        "descriptors": (),
        "pooling": "avg_max",
        "text_encoder": "swem",
        "word_dim": 128,
        "text_dropout": 0.0,
        "dim": 256,
        "feature_norm": True,
        "feature_dropout": 0.0,
        "batch_size": 64,
        "epochs": 4,
        "learning_rate": 2e-3,
        "weight_decay": 1e-4,
    },
    # A pretrained backbone trained along: for GPUs.
    "finetune": {
        "backbone": "resnet50_v2",
        "taps": ("stage5",),
        "descriptors": (),
        "text_encoder": "lstm_gru",
        "word_dim": 512,
        "text_dropout": 0.1,
        "dim": 1024,
        "feature_norm": False,
        "feature_dropout": 0.1,
        "batch_size": 64,
        "epochs": 40,
        "learning_rate": 2e-4,
        "weight_decay": 1e-2,
        "backbone_factor": 0.1,
        "augment": "fashion_iq_2020",
    },
}

# VAL as released: https://arxiv.org/abs/2003.11681 and its scripts. `train_steps` counts optimizer steps.
_VAL = {
    "composer": "val",
    "taps": ("low", "mid", "high"),
    "interpolation": "bilinear_tf1",
    "text_encoder": "lstm",
    "word_dim": 512,
    "text_units": 1024,
    "text_dropout": 0.1,
    "text_options": {"pooling": "max", "head": "dense_bn", "initialization": "glorot", "learned_initial_state": True},
    "captions": "single",
    "marks": True,
    "dim": 512,
    "projection": "none",
    "loss": "bidirectional_matching",
    "loss_options": {"margin": 0.2, "semi_hard": "column", "legacy_duplicate_negatives": True},
    "optimizer": "adam",
    "schedule": "constant",
    "learning_rate": 2e-4,
    "l2_penalty": 4e-5,
    "ema": 0.9999,
    "batch_size": 32,
    "augment": "val_mirror",
}
_VAL_RESNET = {
    "backbone": "slim_resnet_v2_50",
    "image_size": 256,
    "composer_options": {"attention": {"activation": "relu", "norm_momentum": 0.997, "norm_epsilon": 1e-5}},
    "norm_momentum": 0.997,
    "tokens": "treebank",
}
PRESETS |= {
    "val_fashion_iq": {**_VAL, **_VAL_RESNET, "augment": "val", "train_steps": 50_000, "protocol": "val-split"},
    "val_shoes": {**_VAL, **_VAL_RESNET, "train_steps": 30_000},
    "val_fashion200k": {
        **_VAL,
        "backbone": "slim_mobilenet_v1",
        "image_size": 224,
        "composer_options": {"attention": {"activation": "relu6", "norm_momentum": 0.9997, "norm_epsilon": 1e-3}},
        "norm_momentum": 0.9997,
        "schedule": "step",
        "train_steps": 160_000,
    },
}
for _preset in ("val_fashion_iq", "val_shoes", "val_fashion200k"):
    _attention = PRESETS[_preset]["composer_options"]["attention"]
    _norm = {key: _attention[key] for key in ("norm_momentum", "norm_epsilon")}
    PRESETS[_preset]["text_options"] = {**PRESETS[_preset]["text_options"], **_norm}


@dataclass(frozen=True)
class ComposedConfig:
    """Everything that decides a run. Fields that are None take the preset's value (see `PRESETS`).

    Attributes are explained by `tf-fashion train composed --help`.
    """

    data: str
    out: str
    images: str | None = None
    dataset: str = "auto"
    categories: tuple[str, ...] | None = None
    preset: str = "auto"
    composer: FromPreset = None
    composer_options: FromPreset = None
    text_encoder: FromPreset = None
    text_options: FromPreset = None
    backbone: FromPreset = None
    weights: str | None = None
    freeze_backbone: bool = False
    image_size: FromPreset = None
    resize: FromPreset = None
    interpolation: FromPreset = None
    taps: FromPreset = None
    pooling: FromPreset = None
    descriptors: FromPreset = None
    norm_momentum: FromPreset = None
    dim: FromPreset = None
    word_dim: FromPreset = None
    text_units: FromPreset = None
    text_dropout: FromPreset = None
    glove: str | None = None
    spelling: bool = False
    tokens: FromPreset = None
    marks: FromPreset = None
    captions: FromPreset = None
    caption_style: FromPreset = None
    caption_dropout: float = 0.0
    projection: FromPreset = None
    feature_norm: FromPreset = None
    feature_dropout: FromPreset = None
    loss: FromPreset = None
    loss_options: FromPreset = None
    scale: FromPreset = None
    semantic_weight: float = 0.0
    semantic_with: FromPreset = None
    pretrain_epochs: int = 0
    optimizer: FromPreset = None
    schedule: FromPreset = None
    epochs: FromPreset = None
    train_steps: FromPreset = None
    batch_size: FromPreset = None
    learning_rate: FromPreset = None
    weight_decay: FromPreset = None
    l2_penalty: FromPreset = None
    ema: FromPreset = None
    backbone_factor: FromPreset = None
    flip: FromPreset = None
    augment: FromPreset = None
    steps_per_epoch: int | None = None
    seed: int = 0
    protocol: FromPreset = None
    split: str | None = None
    evaluate_every: int = 1
    select: str = "last"
    patience: int | None = None
    strategy: str = "none"
    devices: tuple[str, ...] | None = None
    precision: str = "auto"
    deterministic: bool = False
    cache: str | None = None
    skip_bad_images: bool = False
    overwrite: bool = False
    tensorboard: bool = False
    progress: bool = True
    report: bool = True
    export: bool = True

    def resolved(self) -> ComposedConfig:
        """The same with the preset's values filled in.

        Raises:
            UsageError: an unknown name, or a number out of range.
        """
        preset = self.preset
        if preset == "auto":
            preset = "frozen" if self.freeze_backbone else ("finetune" if self.weights else "scratch")
        if preset not in PRESETS:
            raise UsageError(f"Unknown preset {preset!r}. Known: auto, {', '.join(PRESETS)}.")
        values = {**DEFAULTS, **PRESETS[preset]}
        if self.composer is not None:
            values["composer"] = self.composer
        composer = COMPOSERS.get(values["composer"])
        if composer.spatial:
            values["feature_dropout"] = min(values["feature_dropout"], MAP_DROPOUT)
        if composer.multilevel:
            values |= {"pooling": "none", "descriptors": ()}
            if PRESETS[preset].get("composer") != values["composer"]:
                values["taps"] = LEVELS
        elif composer.spatial:
            values |= {"pooling": "none", "taps": ("stage5",), "descriptors": ()}
        given = {key: getattr(self, key) for key in values}
        changes = {key: value for key, value in values.items() if given[key] is None}
        if PRESETS[preset].get("composer") != values["composer"]:
            values["composer_options"] = COMPOSER_DEFAULTS.get(values["composer"], {})
        for key, chosen in (("composer_options", "composer"), ("text_options", "text_encoder"), ("loss_options", "loss")):
            # Single options are given on top of the preset's, unless another class is chosen to which those do not belong.
            belongs = chosen == "composer" or getattr(self, chosen) in (None, PRESETS[preset].get(chosen))
            changes[key] = {**(values[key] if belongs else {}), **(given[key] or {})}
        if self.epochs is not None:
            changes["train_steps"] = None
        config = dataclasses.replace(self, preset=preset, **changes)
        if composer.spatial and (config.pooling != "none" or config.descriptors):
            raise UsageError(f"--composer {config.composer} works on feature maps: leave out --pooling and --descriptors.")
        config.check()
        return config

    def check(self) -> None:
        """Raises `UsageError` for values that no run can have."""
        if not str(self.backbone).startswith(SAVED_MODEL):
            BACKBONES.get(str(self.backbone))
        TEXT_ENCODERS.get(str(self.text_encoder))
        COMPOSERS.get(self.composer)
        LOSSES.get(self.loss)
        if self.protocol is not None:
            get_protocol(self.protocol)
        for name, known in (
            ("captions", ("joined", "single")),
            ("optimizer", ("adamw", "adam")),
            ("schedule", ("cosine", "constant", "step")),
            ("augment", (None, False, *AUGMENTATIONS)),
            ("tokens", RULES),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"--{name}: expected {' or '.join(map(str, known))}; found {getattr(self, name)!r}.")
        if self.semantic_weight < 0 or self.pretrain_epochs < 0:
            raise UsageError("--semantic-weight and --pretrain-epochs cannot be negative.")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"--ema: expected a number between 0 and 1, found {self.ema}.")
        for name in ("epochs", "batch_size", "dim", "word_dim", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, found {getattr(self, name)}.")
        if not self.learning_rate or self.learning_rate <= 0:
            raise UsageError(f"--learning-rate: expected a positive number, found {self.learning_rate}.")
        for name in ("feature_dropout", "text_dropout", "caption_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')}: expected a number from 0 up to but not including 1, found {getattr(self, name)}."
                )
        if self.select not in ("last", "best"):
            raise UsageError(f"--select: expected last or best, found {self.select!r}.")
        if str(self.backbone).startswith(SAVED_MODEL):
            if not self.freeze_backbone:
                raise UsageError("A SavedModel cannot be trained along: add --freeze-backbone.")
        elif self.freeze_backbone and not self.weights:
            raise UsageError("--freeze-backbone without --weights would keep random features. Give --weights FILE (or imagenet).")

    def identity(self) -> dict[str, Any]:
        """The part that decides the weights: two runs with equal identities are one run."""
        ignored = {"out", "overwrite", "progress", "report", "export", "tensorboard", "cache", "data", "images"}
        return {key: value for key, value in _plain(dataclasses.asdict(self)).items() if key not in ignored}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def default_cache() -> Path:
    """Where features are kept between runs: `$XDG_CACHE_HOME/tf-fashion/features` (usually `~/.cache/...`)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tf-fashion" / "features"


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


class ComposedRun:
    """One run: data, model, training, evaluation. The methods are called in the order in which they stand.

    Args:
        config: As given; the preset is filled in here.

    Raises:
        UsageError, DataError, WeightsError: with what to do about it; nothing is written before the data has been read.
    """

    def __init__(self, config: ComposedConfig) -> None:
        self.started = time.time()
        self._bad: list[BadImage] = []
        self.config = config.resolved()
        self.dataset: ComposedDataset = open_composed(self.config.data, self.config.images, self.config.categories, self.config.dataset)
        self.config = dataclasses.replace(
            self.config,
            split=self.config.split or self.dataset.default_split or "none",
            protocol=self.config.protocol or self.dataset.default_protocol,
        )
        if "train" not in self.dataset.splits():
            raise DataError(f"{self.config.data}: there is no split 'train'. Found: {', '.join(self.dataset.splits())}.")
        self.categories = [c for c in self.dataset.categories if "train" in self.dataset.splits(c)]
        for category in self.categories:
            self.dataset.get(category, "train")
        if self.config.split != "none" and self.config.split not in self.dataset.splits():
            raise UsageError(
                f"--split: {self.config.data} has no split {self.config.split!r}. Found: {', '.join(self.dataset.splits())}; "
                "'none' trains without evaluation."
            )
        parts = [self.dataset.get(c, self.config.split) for c in self._evaluated()]
        self.can_evaluate = bool(parts) and all(part.has_targets for part in parts)
        self.evaluation_splits = [self.config.split] if parts else []
        pairs = len(self._table(0))
        if pairs < self.config.batch_size:
            raise UsageError(f"--batch-size: one batch needs {self.config.batch_size} triplets, found {pairs} in 'train'.")
        self.out = make_out_folder(self.config.out)
        self.data_hash = self.dataset.data_hash(["train", *self.evaluation_splits])
        self._check_out()
        self.strategy = make_strategy(self.config.strategy, self.config.devices)
        keras.utils.set_random_seed(self.config.seed)
        if self.config.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.precision = set_precision(self.config.precision)

    def say(self, text: str) -> None:
        """Prints one line of progress."""
        if self.config.progress:
            print(text, flush=True)

    def _record(self) -> dict[str, Any]:
        return {"identity": self.config.identity(), "data_hash": self.data_hash}

    def _check_out(self) -> None:
        """Makes sure that the folder is empty, or holds this very run."""
        path = self.out / "config.json"
        mine = self._record()
        if path.exists() and not self.config.overwrite:
            there = read_json(path)
            if {key: there.get(key) for key in mine} != mine:
                old, new = there.get("identity", {}), mine["identity"]
                changed = [key for key in new if old.get(key) != new[key]] or ["the data"]
                raise UsageError(
                    f"{self.out} holds another run (it differs in: {', '.join(changed)}). Choose another --out, or pass --overwrite "
                    "to replace it."
                )
        elif self.config.overwrite:
            shutil.rmtree(self.out / "state", ignore_errors=True)

    def _claim_out(self) -> None:
        write_json(
            self.out / "config.json", {**self._record(), "config": _plain(dataclasses.asdict(self.config)), "versions": versions()}
        )

    # Data.

    def image_paths(self) -> dict[str, Path]:
        """Paths of all pictures of the run; those without a file are reported all at once.

        Raises:
            DataError: pictures are missing, and `skip_bad_images` is off.
        """
        splits = ["train", *self.evaluation_splits]
        missing = self.dataset.missing_images(splits)
        if missing:
            self._bad_images(
                [BadImage(image_id, Path(f"{self.dataset.images_root}/{image_id}.jpg"), "missing") for image_id in missing]
            )
        return {image_id: self.dataset.image_path(image_id) for image_id in self.dataset.image_ids(splits)}

    def _bad_images(self, bad: list[BadImage]) -> None:
        if not bad:
            return
        self._bad += bad
        refuse_or_report(self._bad, self.out / "bad_images.csv", self.config.skip_bad_images, self.say)
        self.dataset = self.dataset.without_images([image.id for image in bad])
        for line in self.dataset.report():
            self.say(f"  {line}")

    def build_encoder(self) -> None:
        """Builds the image encoder, with its weights."""
        config = self.config
        with self.scope():
            self.encoder: ImageEncoder | SavedModelEncoder
            if str(config.backbone).startswith(SAVED_MODEL):
                self.encoder = SavedModelEncoder(
                    str(config.backbone)[len(SAVED_MODEL) :], config.image_size or 224, resize=config.resize, name="image_encoder"
                )
                return
            self.encoder = ImageEncoder(
                config.backbone,
                image_size=config.image_size,
                taps=config.taps or (),
                pooling=None if config.pooling == "none" else config.pooling,
                descriptors=config.descriptors or (),
                resize=config.resize,
                interpolation=config.interpolation,
                weights=config.weights,
                batch_norm_momentum=config.norm_momentum,
                name="image_encoder",
                dtype="float32" if config.freeze_backbone else None,
            )

    def load_pictures(self) -> None:
        """Builds the image encoder and, if it is frozen, fills the feature cache; otherwise audits the photos."""
        config = self.config
        paths = self.image_paths()
        self.build_encoder()
        self.table: FeatureTable | None = None
        if config.freeze_backbone:
            self.encoder.trainable = False
            cache = FeatureCache(config.cache or default_cache(), self.encoder.fingerprint(), self.encoder.feature_shape)
            known = len(paths) - len(cache.missing(paths))
            self.say(f"Features of {known} of {len(paths)} pictures are in the cache {cache.folder}")
            size = self.encoder.image_size
            encode = tf.function(self.encoder.encode, input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32)])
            bad = cache.fill(paths, self.encoder.image_spec, encode, progress=config.progress)
            self._bad_images(bad)
            unusable = {image.id for image in bad}
            self.table = cache.table({image_id: path for image_id, path in paths.items() if image_id not in unusable})
        else:
            self._bad_images(audit_images(paths, self.encoder.image_spec, progress=config.progress))
        self._claim_out()
        self.paths = {image_id: paths[image_id] for image_id in self.dataset.image_ids(["train", *self.evaluation_splits])}

    def scope(self) -> Any:
        """The strategy's scope, or a context that does nothing."""
        return self.strategy.scope() if self.strategy is not None else tf.name_scope("")

    # Model.

    def _table(self, epoch: int) -> TripletTable:
        """The training triplets of an epoch: the same ones for every epoch, unless the dataset draws them anew."""
        parts = [self.dataset.get(category, "train") for category in self.categories]
        if self.dataset.sampled:
            triplets = self.dataset.sample_triplets(self.config.seed, epoch)
        else:
            triplets = [triplet for part in parts for triplet in part.triplets]
        identities: dict[str, str] = {}
        for part in parts:
            identities |= dict(part.labels or {})
        table = TripletTable.of(triplets, identities or None, self._descriptions if self._semantic else None)
        return table.one_caption_each() if self.config.captions == "single" else table

    @property
    def _semantic(self) -> bool:
        return bool(self.config.semantic_weight or self.config.pretrain_epochs)

    @functools.cached_property
    def _descriptions(self) -> dict[str, str]:
        found = self.dataset.attribute_texts("train")
        if not any(found.values()):
            raise DataError(f"{self.config.data}: no descriptions of training pictures were found for the visual-semantic loss.")
        return found

    def build_model(self) -> ComposedRetriever:
        """The model, compiled."""
        config = self.config
        self.triplets = self._table(0)
        steps = len(self.triplets) // config.batch_size
        self.steps = min(config.steps_per_epoch or steps, steps)
        if config.train_steps:
            self.config = config = dataclasses.replace(config, epochs=max(round(config.train_steps / self.steps), 1))
        texts = [*self.dataset.vocabulary_texts(), *(self._descriptions.values() if self._semantic else ())]
        if config.caption_style == "and":
            texts = [*texts, "and"]
        spelling = "fashion_iq" if config.spelling else None
        words = build_vocabulary(texts, "first_seen", spelling=spelling, rules=config.tokens, marks=config.marks)
        with self.scope():
            tokenizer = WordTokenizer(
                words, spelling=spelling, max_length=48, rules=config.tokens, marks=config.marks, name="tokenizer"
            )
            vocabulary = tokenizer.vocabulary
            composer = COMPOSERS.get(config.composer)(**config.composer_options, name="composer")
            text_encoder = TEXT_ENCODERS.get(str(config.text_encoder))(
                vocabulary_size=len(vocabulary),
                dim=self._text_dim(composer),
                embedding_dim=config.word_dim,
                units=config.text_units,
                output_dropout=config.text_dropout,
                **{"head_bias": not composer.normalizes_text, **config.text_options},
                name="text_encoder",
            )
            model = ComposedRetriever(
                self.encoder,
                text_encoder,
                composer,
                tokenizer,
                dim=config.dim,
                projection=config.projection,
                feature_norm=config.feature_norm,
                feature_dropout=config.feature_dropout,
                initial_scale=config.scale,
                caption_style=config.caption_style,
                semantic=self._semantic,
                l2_penalty=config.l2_penalty,
                name="composed_retriever",
            )
            if config.glove:
                vectors = load_glove(config.glove, vocabulary, progress=config.progress)
                text_encoder.set_embedding_table(glove_table(vocabulary, [vectors], seed=config.seed))
            self.model, self.tokenizer = model, tokenizer
            self.compile(pretraining=False)
        return model

    def _text_dim(self, composer: Composer) -> int:
        """Width of the text feature: that of the image vectors, which most composers need."""
        if self.config.projection == "none" and not composer.spatial:
            return int(self.encoder.feature_shape[-1])
        return int(self.config.dim)

    def compile(self, pretraining: bool) -> None:
        """Gives the model its optimizer and objective: the visual-semantic part alone, or all of it."""
        config = self.config
        epochs = config.pretrain_epochs if pretraining else config.epochs
        total = max(self.steps * epochs, 1)
        schedule: Any = config.learning_rate
        if config.schedule == "cosine":
            schedule = WarmupCosine(config.learning_rate, total)
        elif config.schedule == "step":
            # The step at the boundary still has the old rate.
            rates = [config.learning_rate, config.learning_rate * 0.1]
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay([total // 2], rates)
        factors = {r"image_encoder": config.backbone_factor} if config.backbone_factor != 1.0 else None
        average = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
        if config.optimizer == "adam":
            optimizer: keras.optimizers.Optimizer = TFAdam(schedule, epsilon=1e-8, lr_multipliers=factors, **average)
        else:
            optimizer = GroupedAdamW(schedule, weight_decay=config.weight_decay, lr_multipliers=factors, **average)
        weights = {"matching_weight": 1.0, "semantic_weight": config.semantic_weight, "semantic_with": config.semantic_with}
        if pretraining:
            weights = {"matching_weight": 0.0, "semantic_weight": 1.0, "semantic_with": "target"}
        with self.scope():
            self.model.compile(optimizer, LOSSES.get(config.loss)(**config.loss_options), **weights)

    def training_data(self, initial_epoch: int, epochs: int | None = None) -> tf.data.Dataset:
        """Batches from `initial_epoch` on, up to `epochs` (default: those of the run)."""
        config = self.config
        if self.table is not None:
            source: FeatureSource | PhotoSource = FeatureSource(self.table)
        else:
            augment = Augmentation() if config.flip else None
            if config.augment:
                augment = AUGMENTATIONS[config.augment]()
            source = PhotoSource(self.paths, self.encoder.image_spec, augment)
        batches, _ = training_batches(
            self.triplets,
            source,
            self.tokenizer,
            config.batch_size,
            epochs or config.epochs,
            initial_epoch,
            config.seed,
            config.caption_style,
            config.caption_dropout,
            self.steps,
            self._table if self.dataset.sampled else None,
        )
        return batches

    # Training and evaluation.

    @property
    def protocol(self) -> Protocol:
        """The protocol that the run is measured by."""
        return get_protocol(self.config.protocol, dataset=self.dataset.name, split=self.config.split, join=self.config.caption_style)

    def evaluate(self, progress: bool | None = None) -> dict[str, CategoryEvaluation]:
        """Evaluates the model as it is."""
        if not hasattr(self, "embedder"):
            self.embedder = Embedder(self.model)
        table = self.table
        if table is None:
            wanted = needed_images(self.dataset, str(self.config.split), self._evaluated())
            show = self.config.progress if progress is None else progress
            table = self.embedder.features({image_id: self.paths[image_id] for image_id in wanted}, progress=show)
        return evaluate_composed(self.embedder, self.dataset, table, self.protocol, self._evaluated())

    def _evaluated(self) -> list[str]:
        return [c for c in self.dataset.categories if self.config.split in self.dataset.splits(c)]

    def callback(self) -> TrainingState:
        """The keeper of the run's state, which also evaluates after each epoch."""
        config = self.config
        watched = self.can_evaluate
        epoch = 0

        def measure() -> dict[str, float]:
            nonlocal epoch
            epoch += 1
            if epoch % config.evaluate_every and epoch + self.initial_epoch < config.epochs:
                return {}
            with averaged_weights(self.model):
                results = self.evaluate(progress=False)
            mean = summarise({name: e.result for name, e in results.items()}, self.protocol)["mean"]
            return {f"{config.split}_{key}": round(float(value), 6) for key, value in mean.items()}

        return TrainingState(
            self.out / "state",
            self.out / "history.csv",
            config.seed,
            measure if watched else None,
            f"{config.split}_mean" if watched else None,
            config.patience,
        )

    def pretrain(self) -> None:
        """Trains with the visual-semantic part alone, if asked for; resumes, and does nothing once the main part has begun."""
        config = self.config
        if not config.pretrain_epochs or (self.out / "state" / "state.json").exists():
            return
        self.compile(pretraining=True)
        state = TrainingState(self.out / "state" / "pretraining", self.out / "pretraining.csv", config.seed)
        initial = state.restore(self.model, config.pretrain_epochs)
        if state.epochs_left:
            self.say(f"Pretraining with descriptions, {config.pretrain_epochs} epochs")
            self._fit(initial, config.pretrain_epochs, [state])
        self.compile(pretraining=False)

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

    def metrics(self, results: dict[str, CategoryEvaluation]) -> dict[str, Any]:
        """The content of `metrics.json`."""
        return summarise_run(
            results,
            self.protocol,
            {
                "name": self.config.composer,
                "seed": self.config.seed,
                "versions": versions(),
                "config": _plain(dataclasses.asdict(self.config)),
                "data_hash": self.data_hash,
                "weights": weights_record(self.config.weights),
                "parameters": int(sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)),
                "epochs": len(self.state.rows),
                "selection": "last epoch"
                if self.config.select == "last"
                else f"best epoch on {self.config.split} ({self.state.best_epoch})",
                "precision": self.precision,
                "replicas": 1 if self.strategy is None else self.strategy.num_replicas_in_sync,
                "seconds": round(time.time() - self.started, 1),
            },
        )


def summarise_run(results: dict[str, CategoryEvaluation], protocol: Protocol, run: dict[str, Any]) -> dict[str, Any]:
    """`metrics.json` of evaluated categories; reduced galleries are declared per category."""
    metrics = summarise({name: evaluation.result for name, evaluation in results.items()}, protocol, run)
    for name, evaluation in results.items():
        if evaluation.gallery_missing:
            metrics["categories"][name]["gallery_missing"] = evaluation.gallery_missing
    return metrics


def train_composed(config: ComposedConfig) -> dict[str, Any]:
    """Trains, evaluates, reports and exports; what `tf-fashion train composed` does.

    Args:
        config: Everything that decides the run.

    Returns:
        The content of `metrics.json` (without "categories" and "mean" where there is no split to evaluate).

    Raises:
        UsageError, DataError, WeightsError: see the messages.
    """
    run = ComposedRun(config)
    run.load_pictures()
    model = run.build_model()
    run.pretrain()
    run.fit()
    return finish(run, model)


def finish(run: ComposedRun, model: ComposedRetriever) -> dict[str, Any]:
    """Saves the model, evaluates it, writes tables, pictures and the export, and tries the export with one query."""
    config, out = run.config, run.out
    metrics: dict[str, Any] = {}
    if config.select == "best" and run.state.best_path.exists():
        model.load_weights(run.state.best_path)
    if config.ema:
        model.optimizer.finalize_variable_values(model.trainable_variables)
    with replaced_file(out / "model.keras", ".keras") as temporary:
        model.save(temporary)
    if run.can_evaluate:
        results = run.evaluate()
        metrics = run.metrics(results)
        write_json(out / "metrics.json", metrics)
        if config.report:
            title = f"Composed retrieval with {config.composer} on {run.dataset.name}"
            summary = (
                f"{len(run.triplets)} training triplets, {config.epochs} epochs, seed {config.seed}; {metrics['run']['selection']}."
            )
            write_results(out, metrics, results, run.dataset, run.protocol, title, summary, config.seed, run.embedder)
        run.say("\n" + results_table(metrics) + "\n")
    if config.export:
        folder = export_composed(model, out / "export" / "1", {"protocol": run.protocol.to_config()})
        run.say(try_export(run, model, folder))
    kept = {
        "model.keras": "the trained model",
        "metrics.json": "the numbers with their protocol",
        "results.log": "the recalls as the released VAL logs them",
        "history.csv": "one row per epoch",
        "sheet.png": "queries and what was found",
        "report.html": "all of it, to open in a browser",
        "export": "the SavedModel for serving",
    }
    listed = [f"  {out / name}  {what}" for name, what in kept.items() if (out / name).exists()]
    run.say("\n".join(["Results:", *listed]))
    return metrics


def try_export(run: ComposedRun, model: ComposedRetriever, folder: Path) -> str:
    """Runs one query through the export and through the model; returns a line about it.

    Raises:
        DataError: the two disagree by more than 1e-4.
    """
    triplet = run.dataset.get(run.categories[0], "train").triplets[0]
    text = query_text(triplet.captions, run.config.caption_style)
    photo = run.dataset.image_path(triplet.reference)
    exported, valid = ExportedRetriever(folder).embed_query([photo.read_bytes()], [text])
    images = load_image(photo, model.image_encoder.image_spec)[None]
    own = model.embed_query(model.encode_image(images, training=False), model.token_ids([text])).numpy()
    difference = float(np.abs(exported - own).max())
    if not bool(valid[0]) or difference > 1e-4:
        raise DataError(f"{folder}: the export gives another embedding than the model (difference {difference:.2g}); do not serve it.")
    return f"The export answers {text!r} for {triplet.reference} as the model does (largest difference {difference:.1e})."
