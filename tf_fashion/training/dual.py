"""Training of a `DualEncoder`, from a folder of data to a folder of results."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.checkpoints.clip import load_clip
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_file, write_json
from tf_fashion.datasets.concepts import ConceptVocabulary, concept_slots
from tf_fashion.datasets.image_text import ImageTextDataset, open_image_text
from tf_fashion.encoders.clip import CLIPImageEncoder, CLIPTextEncoder
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.audit import BadImage
from tf_fashion.inputs.bpe import CLIPTokenizer, learn_merges
from tf_fashion.inputs.feature_cache import FeatureCache, FeatureTable
from tf_fashion.inputs.images import load_image
from tf_fashion.inputs.pairs import PairTable, pair_batches, pair_labels
from tf_fashion.inputs.text import WordTokenizer, build_vocabulary
from tf_fashion.inputs.unpacked import picture_paths
from tf_fashion.losses import LOSSES
from tf_fashion.losses.concept import ConceptLoss
from tf_fashion.models.base import load_path
from tf_fashion.models.dual import DualEncoder, load_dual, token_ids
from tf_fashion.reports.dual import directions_table
from tf_fashion.retrieval.dual import summarise_dual
from tf_fashion.retrieval.dual_protocol import DualProtocol, get_dual_protocol
from tf_fashion.retrieval.prototypes import ConceptPrototypes
from tf_fashion.serving.export import ExportedDualEncoder, export_dual
from tf_fashion.training.dual_config import CLIP, DualConfig, describe_model
from tf_fashion.training.dual_evaluation import DualEmbedder, DualEvaluation, evaluate_split
from tf_fashion.training.results import write_dual_results
from tf_fashion.training.runs import TrainingRun, copy_weights, made, make_optimizer, make_strategy


class PrototypeKeeper(keras.callbacks.Callback):
    """Chooses the concepts' prototypes anew at the beginning of every epoch, by the model as it is then."""

    def __init__(self, run: DualRun) -> None:
        super().__init__()
        self.run = run

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.run.renew_prototypes()


class DualRun(TrainingRun):
    """One run: data, model, training, evaluation. The methods are called in the order in which they stand.

    Args:
        config: As given; the preset is filled in here.

    Raises:
        UsageError, DataError, WeightsError: with what to do about it; nothing is written before the data has been read.
    """

    config: DualConfig
    dataset: ImageTextDataset

    def __init__(self, config: DualConfig) -> None:
        super().__init__()
        self.config = config.resolved()
        self.dataset = open_data(
            self.config.data, self.config.images, self.config.dataset, self.config.groups, self.config.data_options
        )
        self.config = dataclasses.replace(self.config, split=self.config.split or self.dataset.default_split or "none")
        self._check_splits()
        self.can_evaluate = self.config.split != "none"
        self.evaluation_splits = [str(self.config.split)] if self.can_evaluate else []
        pairs = len(self.dataset.pairs("train"))
        if pairs < self.config.step_batch:
            raise UsageError(f"--batch-size: one step needs {self.config.step_batch} pairs, found {pairs} in 'train'.")
        for split in self.evaluation_splits:
            self.dataset.queries(split)
        if self.config.concept_loss and self.dataset.concepts is None:
            raise DataError(
                f"{self.config.data}: --concept-loss needs a vocabulary of concepts (train/..._concepts_queries.jsonl), and found "
                "none. Make one from the captions with: tf-fashion concepts mine"
            )
        if self.config.concept_sources == "data+kb" and self.config.concept_loss and self.dataset.kb_concepts is None:
            raise DataError(
                f"{self.config.data}: --concept-sources data+kb needs fashion_kb/..._concepts_queries.jsonl, and found none."
            )
        files = {"init_from": self.config.init_from, **({"weights": self.config.weights} if self.config.image_is_clip else {})}
        self.model_hashes = {name: hash_file(load_weights_path(name, path)) for name, path in files.items() if path}
        self.data_hash = self.dataset.data_hash(["train", *self.evaluation_splits])
        self._claim()
        self.strategy = make_strategy(self.config.strategy, self.config.devices)
        if self.config.init_from:
            self._given["init_from"] = load_dual(self.config.init_from)
        self._start()

    # Data.

    def image_paths(self) -> dict[str, Path]:
        """Files of all pictures of the run; those that are missing are reported all at once.

        Raises:
            DataError: pictures are missing, and `skip_bad_images` is off.
        """
        ids = self.dataset.image_ids(["train", *self.evaluation_splits])
        paths, bad = picture_paths(self.dataset.pictures, ids, progress=self.config.progress)
        self._bad_images(bad)
        return paths

    def build_encoder(self) -> None:
        """Builds the image encoder, with its weights; with CLIP the text encoder as well, since they share a checkpoint."""
        config = self.config
        if not config.image_is_clip:
            super().build_encoder()
            return
        sizes = config.clip_sizes
        if config.image_size:
            sizes = dataclasses.replace(sizes, image_resolution=int(config.image_size))
        with self.scope():
            self.encoder = CLIPImageEncoder(sizes, name="image_encoder", dtype="float32" if config.freeze_backbone else None)
            if config.weights and config.text_encoder != CLIP:
                load_clip(config.weights, self.encoder, None)
            if config.text_encoder == CLIP:
                self._build_clip_text()
            if "init_from" in self._given:
                copy_weights(self._given["init_from"].image_encoder, self.encoder, f"--init-from {config.init_from}")

    def _build_clip_text(self) -> None:
        """CLIP's text tower and its tokeniser; with weights, those of both towers."""
        config = self.config
        sizes = config.clip_sizes
        length = int(config.context_length or sizes.context_length)
        options: dict[str, Any] = {"context_length": length, "truncation": "original" if config.original_truncation else "keep_end"}
        if config.bpe:
            tokenizer = CLIPTokenizer.from_file(config.bpe, name="tokenizer", **options)
        else:
            tokenizer = CLIPTokenizer(learn_merges(self._all_texts(), int(config.bpe_size)), name="tokenizer", **options)
        changes: dict[str, Any] = {"context_length": length, "vocab_size": tokenizer.vocabulary_size}
        if not config.image_is_clip:
            changes["embed_dim"] = int(config.dim)
        self.tokenizer: Any = tokenizer
        self.text_encoder: Any = CLIPTextEncoder(dataclasses.replace(sizes, **changes), name="text_encoder")
        self.initial_scale = float(config.scale)
        if config.weights and config.image_is_clip:
            report, log_scale = load_clip(config.weights, self.encoder, self.text_encoder)
            self.initial_scale = float(np.exp(log_scale))
            self.say(report.format())

    def _all_texts(self) -> list[str]:
        """What a vocabulary is made of: training texts and the concepts' prompts."""
        texts = self.dataset.vocabulary_texts()
        if self.config.concept_loss:
            texts = [*texts, *(prompt for vocabulary in self._vocabularies for prompt in vocabulary.prompts)]
        return texts

    @property
    def _vocabularies(self) -> list[ConceptVocabulary]:
        found = [self.dataset.concepts, self.dataset.kb_concepts if self.config.concept_sources == "data+kb" else None]
        return [vocabulary for vocabulary in found if vocabulary is not None]

    # Model.

    def build_model(self) -> DualEncoder:
        """The model, compiled."""
        config = self.config
        with self.scope():
            if config.text_encoder == CLIP:
                if not config.image_is_clip:
                    self._build_clip_text()
            else:
                self._build_words()
            model = DualEncoder(
                self.encoder,
                self.text_encoder,
                self.tokenizer,
                dim=config.dim,
                projection=config.projection,
                feature_norm=config.feature_norm,
                feature_dropout=config.feature_dropout,
                initial_scale=self.initial_scale,
                initial_bias=config.bias,
                name="dual_encoder",
            )
            if "init_from" in self._given:
                copy_weights(self._given.pop("init_from"), model, f"--init-from {config.init_from}")
        self.model = model
        self.embedder = DualEmbedder(model)
        self.pairs = self._pairs()
        steps = len(self.pairs) // config.step_batch
        self.steps = min(config.steps_per_epoch or steps, steps)
        self.compile()
        return model

    def _build_words(self) -> None:
        config = self.config
        words = build_vocabulary(self._all_texts(), "first_seen", rules=config.tokens)
        self.tokenizer = WordTokenizer(words, max_length=config.context_length or 77, rules=config.tokens, name="tokenizer")
        self.text_encoder = made(
            "--text-option",
            TEXT_ENCODERS.get(str(config.text_encoder)),
            config.text_options,
            vocabulary_size=len(self.tokenizer.vocabulary),
            dim=int(self.encoder.feature_shape[-1]) if config.projection == "none" else config.dim,
            embedding_dim=config.word_dim,
            units=config.text_units,
            output_dropout=config.text_dropout,
            name="text_encoder",
        )
        self.initial_scale = float(config.scale)

    def _pairs(self) -> PairTable:
        config = self.config
        pairs = self.dataset.pairs("train")
        texts = [pair.text for pair in pairs]
        images = [pair.image_id for pair in pairs]
        labels = pair_labels(images, texts, [pair.phrases for pair in pairs], config.same_pairs)
        tokens = np.asarray(token_ids(self.tokenizer, texts), np.int32)
        if not config.concept_loss:
            return PairTable(images, tokens, labels)
        concepts, prompts, prompt_texts = self._concepts()
        return PairTable(images, tokens, labels, concepts, prompts, np.asarray(token_ids(self.tokenizer, prompt_texts), np.int32))

    def _concepts(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Concept rows and prompt rows `(pairs, slots)`, and the prompts."""
        config = self.config
        vocabularies = self._vocabularies
        # One numbering for both vocabularies, whose own ids overlap.
        first = np.cumsum([0, *(len(vocabulary) for vocabulary in vocabularies)])
        row_of = [{number: first[n] + row for row, number in enumerate(vocabulary.ids)} for n, vocabulary in enumerate(vocabularies)]
        self.concept_prompts = [prompt for vocabulary in vocabularies for prompt in vocabulary.prompts]
        rows: dict[str, int] = {}
        concepts, prompts = [], []
        for pair in self.dataset.pairs("train"):
            slots = concept_slots(
                pair.phrases,
                pair.match_phrases,
                self.dataset.concepts,
                self.dataset.kb_concepts,
                slots=config.concept_slots,
                original_selection=config.original_selection,
                swap_father_maps=config.swap_father_maps,
                skip_unknown_fathers=not config.original_selection,
            )[: len(vocabularies)]
            concepts.append([row_of[n].get(number, -1) for n, part in enumerate(slots) for number in part.ids])
            said = [vocabularies[n].prompt(phrase) for n, part in enumerate(slots) for phrase in part.phrases]
            prompts.append([rows.setdefault(prompt, len(rows)) for prompt in said])
        self.prototypes = ConceptPrototypes(np.arange(first[-1]), self.model.dim, config.concept_prototypes)
        self.model.attach_prototypes(self.prototypes.gather)
        self.concept_tokens = np.asarray(token_ids(self.tokenizer, self.concept_prompts), np.int32)
        used = float(np.mean(np.any(np.array(concepts) >= 0, axis=1)))
        self.say(f"{first[-1]} concepts; {100 * used:.0f} % of the training pairs have one at least")
        return np.array(concepts, np.int32), np.array(prompts, np.int32), list(rows)

    def compile(self) -> None:
        """Gives the model its optimizer and objective."""
        config = self.config
        loss = made("--loss-option", LOSSES.get(config.loss), config.loss_options)
        concept_loss = made("--concept-option", ConceptLoss, config.concept_options) if config.concept_loss else None
        with self.scope():
            # An optimizer belongs to the strategy in whose scope it is made.
            optimizer = make_optimizer(config, self.steps * config.epochs, self.steps)
            self.model.compile(
                optimizer,
                loss,
                concept_loss=concept_loss,
                concept_weighting=config.concept_weighting,
                concept_weight=config.concept_weight,
                concept_start=config.concept_start * self.steps,
                micro_batch=config.micro_batch,
            )

    def training_data(self, initial_epoch: int, epochs: int | None = None) -> tf.data.Dataset:
        """Batches from `initial_epoch` on, up to `epochs` (default: those of the run)."""
        config = self.config
        batches, _ = pair_batches(
            self.pairs, self.picture_source(), config.step_batch, epochs or config.epochs, initial_epoch, config.seed, self.steps
        )
        return batches

    # Prototypes.

    @functools.cached_property
    def _pool(self) -> FeatureTable | list[Path]:
        """The pictures that prototypes are taken from: cached features or files."""
        store = self.dataset.concept_pictures
        if store is None:
            ids = list(dict.fromkeys(self.pairs.images))
            if self.table is not None:
                return FeatureTable(ids, self.table.values[self.table.rows(ids)])
            return [self.paths[image_id] for image_id in ids]
        paths, bad = picture_paths(store, store.archive_ids(), progress=self.config.progress)
        if self.table is None:
            self._refuse(bad)
            return list(paths.values())
        cache = FeatureCache.of(self.encoder, self.config.cache)
        bad += cache.fill(paths, self.encoder.image_spec, self.embedder.encode, progress=self.config.progress)
        self._refuse(bad)
        return cache.table(paths)

    def _refuse(self, bad: Sequence[BadImage]) -> None:
        if bad:
            listed = "\n".join(f"  {image.path}: {image.reason}" for image in bad[:10])
            raise DataError(f"Concept pictures that cannot be used: {len(bad)}:\n{listed}\nRepair or remove them.")

    def renew_prototypes(self) -> None:
        """Chooses the prototypes by the model as it is."""
        pool = self._pool
        show = self.config.progress and not isinstance(pool, FeatureTable)
        images = self.embedder.features(pool.values) if isinstance(pool, FeatureTable) else self.embedder.images(pool, show)
        concepts = self.embedder.tokens(self.concept_tokens)
        self.prototypes.update(concepts, images, self.config.concept_candidates, self.config.concept_diversity)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """What `fit` needs: the state's keeper, the prototypes' keeper, and TensorBoard if asked for."""
        return [*super().callbacks(), *([PrototypeKeeper(self)] if self.config.concept_loss else [])]

    # Evaluation.

    @property
    def protocol(self) -> DualProtocol:
        """The protocol that the run is measured by."""
        return get_dual_protocol(self.config.protocol, dataset=self.dataset.name, split=str(self.config.split))

    def evaluate(self, progress: bool | None = None, protocol: DualProtocol | None = None) -> DualEvaluation:
        """Evaluates the model as it is."""
        split = str(self.config.split)
        ids = list(self.dataset.image_truth(split))
        if self.table is not None:
            images = self.embedder.features(self.table.values[self.table.rows(ids)])
        else:
            show = self.config.progress if progress is None else progress
            images = self.embedder.images([self.paths[image_id] for image_id in ids], show)
        texts = self.embedder.texts([query.text for query in self.dataset.queries(split)])
        return evaluate_split(self.dataset, split, protocol or self.protocol, images, texts)

    def evaluate_epoch(self) -> dict[str, float]:
        """R@1 of both directions and the mean of all recalls, under the full protocol."""
        protocol = get_dual_protocol("full", dataset=self.dataset.name, split=str(self.config.split))
        metrics = summarise_dual(self.evaluate(progress=False, protocol=protocol).result)
        sides = {"i2t": "image to text", "t2i": "text to image"}
        values = {f"{short}_R@1": metrics["categories"][name]["R@1"] for short, name in sides.items()}
        return {**values, "mean": metrics["mean"]["mean"]}

    # Results.

    def write_metrics(self) -> dict[str, Any]:
        config = self.config
        evaluation = self.evaluate()
        name = describe_model(config)
        metrics = summarise_dual(evaluation.result, self.record(name))
        write_json(self.out / "metrics.json", metrics)
        if config.report:
            title = f"Image-text retrieval with {name} on {self.dataset.name}"
            summary = f"{len(self.pairs)} training pairs, {config.epochs} epochs, seed {config.seed}; {metrics['run']['selection']}."
            write_dual_results(self.out, metrics, evaluation, self.paths, self.protocol, title, summary, config.seed)
        self.say("\n" + directions_table(metrics) + "\n")
        return metrics

    def write_export(self) -> str:
        return try_export(self, self.model, export_dual(self.model, self.out / "export" / "1"))


def open_data(
    data: str, images: str | None, name: str = "auto", groups: str | None = None, options: Mapping[str, Any] | None = None
) -> ImageTextDataset:
    """Opens a dataset with the options of the command line; `groups` is FILE or FILE:COLUMN.

    Raises:
        UsageError: an option that the dataset does not have; or as `open_image_text`.
    """
    given = dict(options or {})
    if groups:
        path, _, column = groups.partition(":")
        given |= {"groups": path, **({"group_column": column} if column else {})}
    try:
        return open_image_text(data, images, name, **given)
    except TypeError as error:
        raise UsageError(f"--data-option: {error}. See `tf-fashion train dual --help`.") from None


def load_weights_path(name: str, path: str) -> Path:
    """The path of a model or checkpoint, checked before anything slow happens."""
    if name == "init_from":
        return load_path(path)
    if not Path(path).is_file():
        raise UsageError(f"--weights {path}: no such file.")
    return Path(path)


def train_dual(config: DualConfig) -> dict[str, Any]:
    """Trains, evaluates, reports and exports; what `tf-fashion train dual` does.

    Args:
        config: Everything that decides the run.

    Returns:
        The content of `metrics.json` (empty where there is no split to evaluate).

    Raises:
        UsageError, DataError, WeightsError: see the messages.
    """
    run = DualRun(config)
    run.load_pictures()
    run.build_model()
    run.fit()
    return run.finish()


def try_export(run: DualRun, model: DualEncoder, folder: Path) -> str:
    """Runs one pair through the export and through the model; returns a line about it.

    Raises:
        DataError: the two disagree by more than 1e-4.
    """
    pair = run.dataset.pairs("train")[0]
    photo = run.paths[pair.image_id]
    export = ExportedDualEncoder(folder)
    images, _ = export.embed_image([photo.read_bytes()])
    texts = export.embed_text([pair.text])
    own_image = model.embed_image(load_image(photo, model.image_encoder.image_spec)[None]).numpy()
    own_text = model.embed_text(model.token_ids([pair.text])).numpy()
    difference = max(float(np.abs(images - own_image).max()), float(np.abs(texts - own_text).max()))
    if not difference < 1e-4:
        raise DataError(f"{folder}: the export gives another embedding than the model (difference {difference:.2g}); do not serve it.")
    return f"The export embeds {pair.image_id} and {pair.text!r} as the model does (largest difference {difference:.1e})."
