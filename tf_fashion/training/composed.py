"""Training of a `ComposedRetriever`, from a folder of data to a folder of results."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
from tf_fashion.composers import COMPOSERS, Composer
from tf_fashion.core.errors import DataError, TfFashionError, UsageError
from tf_fashion.core.files import atomic_write, hash_file, hash_json, make_out_folder, read_json, replaced_file, write_json
from tf_fashion.datasets import ComposedDataset, open_composed
from tf_fashion.encoders.image import ImageEncoder, weights_record
from tf_fashion.encoders.saved_model import SavedModelEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.audit import BadImage, audit_images, write_bad_images
from tf_fashion.inputs.augment import Augmentation
from tf_fashion.inputs.embeddings import load_embeddings
from tf_fashion.inputs.feature_cache import FeatureCache, FeatureTable, default_cache
from tf_fashion.inputs.glove import glove_table, load_glove
from tf_fashion.inputs.images import load_image
from tf_fashion.inputs.pipelines import FeatureSource, PhotoSource, TripletTable, query_text, training_batches
from tf_fashion.inputs.text import WordTokenizer, build_vocabulary, legacy_caption_order
from tf_fashion.losses import LOSSES
from tf_fashion.models.base import load_path
from tf_fashion.models.composed import ComposedRetriever, load_composed
from tf_fashion.reports.tables import results_table
from tf_fashion.retrieval.protocol import Protocol, get_protocol, summarise
from tf_fashion.serving.export import ExportedRetriever, export_composed
from tf_fashion.training.bad_images import refuse_or_report
from tf_fashion.training.config import AUGMENTATIONS, SAVED_MODEL, ComposedConfig
from tf_fashion.training.evaluation import CategoryEvaluation, Embedder, evaluate_composed, needed_images
from tf_fashion.training.graph import GraphStream, TripletGraph, build_graph, triplet_features
from tf_fashion.training.optimizers import GroupedAdamW, TFAdam
from tf_fashion.training.results import write_results
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
        if self.config.graph_from and self.dataset.sampled:
            raise UsageError(
                f"--graph-from: the triplets of {self.dataset.name} are drawn anew in each epoch, so that there is no graph of them. "
                "Leave the graph out."
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
        if self.config.caption_order == "legacy":
            self._order_captions()
        parts = [self.dataset.get(c, self.config.split) for c in self._evaluated()]
        self.can_evaluate = bool(parts) and all(part.has_targets for part in parts)
        self.evaluation_splits = [self.config.split] if parts else []
        pairs = len(self._table(0))
        if pairs < self.config.batch_size:
            raise UsageError(f"--batch-size: one batch needs {self.config.batch_size} triplets, found {pairs} in 'train'.")
        given = {name: getattr(self.config, name) for name in ("init_from", "graph_from")}
        self.model_hashes = {name: hash_file(load_path(path)) for name, path in given.items() if path}
        self.out = make_out_folder(self.config.out)
        self.data_hash = self.dataset.data_hash(["train", *self.evaluation_splits])
        self._check_out()
        self.strategy = make_strategy(self.config.strategy, self.config.devices)
        self._given = {name: self._given_model(name, str(given[name])) for name in self.model_hashes}
        keras.utils.set_random_seed(self.config.seed)
        if self.config.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.precision = set_precision(self.config.precision)

    def _given_model(self, name: str, path: str) -> ComposedRetriever:
        model = load_composed(path)
        if name == "graph_from":
            if model.composer.spatial:
                raise UsageError(
                    f"--graph-from {path}: expected a model whose composer works on vectors, found {type(model.composer).__name__}, "
                    "which works on feature maps. Give the model of another run."
                )
            if self.config.projection != "none":
                self._check_width(model, int(self.config.dim))
        return model

    def _check_width(self, model: ComposedRetriever, dim: int) -> None:
        if model.dim != dim:
            raise UsageError(
                f"--graph-from {self.config.graph_from}: expected a model as wide as this run's (--dim {dim}), found {model.dim}. "
                f"Train with --dim {model.dim} or give another model."
            )

    def _order_captions(self) -> None:
        """The caption order of the FashionIQ 2020 entry: drawn once, in one stream over the files in the order of its training."""
        parts = [(category, "train") for category in self.categories] + [(c, str(self.config.split)) for c in self._evaluated()]
        counts = [len(self.dataset.get(*part).triplets) for part in parts]
        for part, swapped in zip(parts, legacy_caption_order(counts), strict=True):
            self.dataset.swap_captions(*part, swapped)

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
        black = set(missing) if self.config.black_bad_images else set()
        ids = self.dataset.image_ids(splits)
        return {image_id: self._black_picture() if image_id in black else self.dataset.image_path(image_id) for image_id in ids}

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
            if "init_from" in self._given:
                # The feature cache goes by these weights.
                copy_weights(self._given["init_from"].image_encoder, self.encoder, f"--init-from {config.init_from}")

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
        descriptions = self._descriptions if self._semantic else None
        table = TripletTable.of(triplets, identities or None, descriptions, self._target_embeddings)
        return table.one_caption_each() if self.config.captions == "single" else table

    @property
    def _semantic(self) -> bool:
        return bool(self.config.semantic_weight or self.config.pretrain_epochs)

    @functools.cached_property
    def _target_embeddings(self) -> FeatureTable | None:
        if not self.config.target_embeddings:
            return None
        table = load_embeddings(self.config.target_embeddings)
        width = int(table.values.shape[1])
        if width != self.config.dim:
            raise UsageError(f"--target-embeddings: expected embeddings as wide as --dim {self.config.dim}, found {width}.")
        targets = {triplet.target for category in self.categories for triplet in self.dataset.get(category, "train").triplets}
        unknown = len(targets - set(table.ids))
        if unknown == len(targets):
            raise DataError(f"{self.config.target_embeddings}: none of the {len(targets)} training targets is in it.")
        if unknown:
            self.say(f"{unknown} of {len(targets)} training targets have no embedding in the file and take no part in the loss.")
        return table

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
                words,
                spelling=None if config.spelling == "vocabulary" else spelling,
                max_length=48,
                rules=config.tokens,
                marks=config.marks,
                legacy_markers=config.legacy_markers,
                name="tokenizer",
            )
            vocabulary = tokenizer.vocabulary
            composer = made("--composer-option", COMPOSERS.get(config.composer), config.composer_options, name="composer")
            text_encoder = made(
                "--text-option",
                TEXT_ENCODERS.get(str(config.text_encoder)),
                {"head_bias": not composer.normalizes_text, **config.text_options},
                vocabulary_size=len(vocabulary),
                dim=self._text_dim(composer),
                embedding_dim=config.word_dim,
                units=config.text_units,
                output_dropout=config.text_dropout,
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
                legacy_triple_pass=config.legacy_triple_pass,
                name="composed_retriever",
            )
            if config.glove:
                vectors = [load_glove(path, vocabulary, progress=config.progress) for path in config.glove]
                table = glove_table(vocabulary, vectors, missing=config.glove_missing, seed=config.seed)
                if table.shape[1] != config.word_dim:
                    raise UsageError(
                        f"--glove: the vectors are {table.shape[1]} wide together, --word-dim is {config.word_dim}. Make them equal."
                    )
                text_encoder.set_embedding_table(table)
            self.model, self.tokenizer = model, tokenizer
            if "init_from" in self._given:
                self._initialise(self._given.pop("init_from"))
        if config.graph_from:
            self._attach_graph()
        self.compile(pretraining=False)
        return model

    def _initialise(self, given: ComposedRetriever) -> None:
        """All weights are those of `--init-from`; the words must be the same, in the same order."""
        where = f"--init-from {self.config.init_from}"
        words = [] if given.tokenizer is None else given.tokenizer.vocabulary
        if words != self.tokenizer.vocabulary:
            raise UsageError(
                f"{where}: expected a model with the words of this data, found another vocabulary ({len(words)} words against "
                f"{len(self.tokenizer.vocabulary)}). Train on the data and with the options for captions that it was trained with."
            )
        for part in ("text_encoder", "composer"):
            theirs, ours = (type(getattr(model, part)).__name__ for model in (given, self.model))
            if theirs != ours:
                raise UsageError(f"{where}: expected a model with the {part.replace('_', ' ')} {ours}, found {theirs}.")
        copy_weights(given, self.model, where)

    def _attach_graph(self) -> None:
        """Gives the model the stream over the graph of its training triplets, for as long as it is trained."""
        config, model = self.config, self.model
        given = self._given.pop("graph_from")
        self._check_width(given, model.dim)
        self.graph = self._graph(given)
        # A seed of its own: the rest of the run draws the same numbers whether the graph was built or read.
        keras.utils.set_random_seed(int(np.random.SeedSequence([config.seed, 0x6CF]).generate_state(1)[0]))
        with self.scope():
            composer = made("--composer-option", COMPOSERS.get(config.composer), config.composer_options, name="composer")
            fixed = {"composer": composer, "graph": self.graph, "name": "graph_stream"}
            stream = made("--graph-option", GraphStream, config.graph_options, **fixed)
            stream.build((None, model.dim), (None,))
            model.attach(stream, config.graph_weight)

    def _graph(self, given: ComposedRetriever) -> TripletGraph:
        config, triplets = self.config, self.triplets
        key = {
            "model": self.model_hashes["graph_from"],
            "triplets": [triplets.references, triplets.targets, triplets.captions],
            "settings": [config.graph_ratio, config.graph_tau],
        }
        path = make_out_folder(self.out / "state") / f"graph-{hash_json(key)[:16]}.npz"
        if path.exists():
            return TripletGraph.load(path)
        table = self.table
        if table is None or given.image_encoder.fingerprint() != self.encoder.fingerprint():
            wanted = dict.fromkeys([*triplets.references, *triplets.targets])
            table = Embedder(given).features({image_id: self.paths[image_id] for image_id in wanted}, config.progress)
        parts = triplet_features(given, table, triplets)
        graph = build_graph(parts["image"], parts["text"], parts["target"], parts["composed"], config.graph_ratio, config.graph_tau)
        graph.save(path)
        self.say(
            f"Graph of {len(triplets)} training triplets: neighbours from a similarity of {graph.threshold} on, "
            f"{100 * graph.adjacency.density:.1f} % of all pairs"
        )
        return graph

    def release_graph(self) -> None:
        """Takes the graph's stream out of the trained model, which then has an optimizer that begins anew."""
        if self.model.attached:
            self.model.detach()
            self.compile(pretraining=False)

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
        where = "--schedule-option"
        if config.schedule == "cosine":
            schedule = made(where, WarmupCosine, config.schedule_options, learning_rate=config.learning_rate, total_steps=total)
        elif config.schedule == "warmup_step":
            sizes = {"batch_size": config.batch_size, "steps_per_epoch": self.steps}
            schedule = made(where, WarmupStepDecay, config.schedule_options, learning_rate=config.learning_rate, **sizes)
        elif config.schedule_options:
            raise UsageError(f"--schedule-option: the schedule {config.schedule!r} has no options.")
        elif config.schedule == "step":
            # The step at the boundary still has the old rate.
            rates = [config.learning_rate, config.learning_rate * 0.1]
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay([total // 2], rates)
        factors = {r"image_encoder": config.backbone_factor} if config.backbone_factor != 1.0 else None
        average = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
        fixed = {"learning_rate": schedule, "lr_multipliers": factors, **average}
        where = "--optimizer-option"
        optimizer: keras.optimizers.Optimizer
        if config.optimizer == "adam":
            optimizer = made(where, TFAdam, {"epsilon": 1e-8, **config.optimizer_options}, **fixed)
        else:
            optimizer = made(where, GroupedAdamW, config.optimizer_options, weight_decay=config.weight_decay, **fixed)
        weights = {"matching_weight": 1.0, "semantic_weight": config.semantic_weight, "semantic_with": config.semantic_with}
        if pretraining:
            weights = {"matching_weight": 0.0, "semantic_weight": 1.0, "semantic_with": "target"}
        with self.scope():
            self.model.compile(optimizer, made("--loss-option", LOSSES.get(config.loss), config.loss_options), **weights)

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
            config.caption_order == "shuffled",
            bool(self.model.attached),
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
                "config": self.config.plain(),
                "data_hash": self.data_hash,
                "weights": weights_record(self.config.weights),
                "models": self.model_hashes,
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
    run.release_graph()
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
