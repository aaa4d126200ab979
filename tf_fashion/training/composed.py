"""Training of a `ComposedRetriever`, from a folder of data to a folder of results."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.composers import COMPOSERS, Composer
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_file, hash_json, make_out_folder, write_json
from tf_fashion.datasets import ComposedDataset, open_composed
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.audit import BadImage
from tf_fashion.inputs.embeddings import load_embeddings
from tf_fashion.inputs.feature_cache import FeatureTable
from tf_fashion.inputs.glove import glove_table, load_glove
from tf_fashion.inputs.images import load_image
from tf_fashion.inputs.pipelines import TripletTable, query_text, training_batches
from tf_fashion.inputs.text import WordTokenizer, build_vocabulary, legacy_caption_order
from tf_fashion.losses import LOSSES
from tf_fashion.models.base import load_path
from tf_fashion.models.composed import ComposedRetriever, load_composed
from tf_fashion.reports.tables import results_table
from tf_fashion.retrieval.protocol import Protocol, get_protocol, summarise
from tf_fashion.serving.export import ExportedRetriever, export_composed
from tf_fashion.training.config import ComposedConfig
from tf_fashion.training.evaluation import CategoryEvaluation, Embedder, evaluate_composed, needed_images
from tf_fashion.training.graph import GraphStream, TripletGraph, build_graph, triplet_features
from tf_fashion.training.results import write_results
from tf_fashion.training.resume import TrainingState
from tf_fashion.training.runs import TrainingRun, copy_weights, made, make_optimizer, make_strategy


class ComposedRun(TrainingRun):
    """One run: data, model, training, evaluation. The methods are called in the order in which they stand.

    Args:
        config: As given; the preset is filled in here.

    Raises:
        UsageError, DataError, WeightsError: with what to do about it; nothing is written before the data has been read.
    """

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__()
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
        self._check_splits()
        self.categories = [c for c in self.dataset.categories if "train" in self.dataset.splits(c)]
        for category in self.categories:
            self.dataset.get(category, "train")
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
        self.data_hash = self.dataset.data_hash(["train", *self.evaluation_splits])
        self._claim()
        self.strategy = make_strategy(self.config.strategy, self.config.devices)
        self._given = {name: self._given_model(name, str(given[name])) for name in self.model_hashes}
        self._start()

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
            table = Embedder(given).encode_photos({image_id: self.paths[image_id] for image_id in wanted}, config.progress)
        parts = triplet_features(given, table, triplets)
        graph = build_graph(parts["image"], parts["text"], parts["target"], parts["composed"], config.graph_ratio, config.graph_tau)
        graph.save(path)
        self.say(
            f"Graph of {len(triplets)} training triplets: neighbours from a similarity of {graph.threshold} on, "
            f"{100 * graph.adjacency.density:.1f} % of all pairs"
        )
        return graph

    def release(self) -> None:
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
        weights = {"matching_weight": 1.0, "semantic_weight": config.semantic_weight, "semantic_with": config.semantic_with}
        if pretraining:
            weights = {"matching_weight": 0.0, "semantic_weight": 1.0, "semantic_with": "target"}
        with self.scope():
            # An optimizer belongs to the strategy in whose scope it is made.
            optimizer = make_optimizer(config, self.steps * epochs, self.steps)
            self.model.compile(optimizer, made("--loss-option", LOSSES.get(config.loss), config.loss_options), **weights)

    def training_data(self, initial_epoch: int, epochs: int | None = None) -> tf.data.Dataset:
        """Batches from `initial_epoch` on, up to `epochs` (default: those of the run)."""
        config = self.config
        batches, _ = training_batches(
            self.triplets,
            self.picture_source(),
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
            table = self.embedder.encode_photos({image_id: self.paths[image_id] for image_id in wanted}, progress=show)
        return evaluate_composed(self.embedder, self.dataset, table, self.protocol, self._evaluated())

    def _evaluated(self) -> list[str]:
        return [c for c in self.dataset.categories if self.config.split in self.dataset.splits(c)]

    def evaluate_epoch(self) -> dict[str, float]:
        """Mean metrics over the categories."""
        results = self.evaluate(progress=False)
        return summarise({name: e.result for name, e in results.items()}, self.protocol)["mean"]

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

    def metrics(self, results: dict[str, CategoryEvaluation]) -> dict[str, Any]:
        """The content of `metrics.json`."""
        return summarise_run(results, self.protocol, self.record(self.config.composer))

    # Results.

    def write_metrics(self) -> dict[str, Any]:
        config = self.config
        results = self.evaluate()
        metrics = self.metrics(results)
        write_json(self.out / "metrics.json", metrics)
        if config.report:
            title = f"Composed retrieval with {config.composer} on {self.dataset.name}"
            summary = (
                f"{len(self.triplets)} training triplets, {config.epochs} epochs, seed {config.seed}; {metrics['run']['selection']}."
            )
            write_results(self.out, metrics, results, self.dataset, self.protocol, title, summary, config.seed, self.embedder)
        self.say("\n" + results_table(metrics) + "\n")
        return metrics

    def write_export(self) -> str:
        folder = export_composed(self.model, self.out / "export" / "1", {"protocol": self.protocol.to_config()})
        return try_export(self, self.model, folder)


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
    run.build_model()
    run.pretrain()
    run.fit()
    return run.finish()


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
