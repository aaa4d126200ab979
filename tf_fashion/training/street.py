"""Training of a `DomainAdapter` on products with consumer and shop photos: the first stage of street-to-shop retrieval."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fashion.clustering.meta_domains import Lists, PseudoLabels
from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_file, write_json
from tf_fashion.datasets.street_lists import ProductPhoto
from tf_fashion.datasets.street_to_shop import open_street_to_shop
from tf_fashion.inputs.domain_batches import CategoryBatches, PairAugmentation, photo_pair_batches
from tf_fashion.inputs.images import load_image
from tf_fashion.inputs.pipelines import FeatureSource, PhotoSource
from tf_fashion.losses import LOSSES
from tf_fashion.models.adapter import DomainAdapter, load_adapter
from tf_fashion.models.base import load_path
from tf_fashion.retrieval.multi_positive import StreetResult
from tf_fashion.serving.export import ExportedAdapter, export_adapter
from tf_fashion.training.config import UDMA_AUGMENTATION
from tf_fashion.training.runs import TrainingRun, copy_weights, made, make_optimizer, make_strategy
from tf_fashion.training.street_config import StreetConfig
from tf_fashion.training.street_data import StreetPhotos
from tf_fashion.training.street_evaluation import (
    CENTRED,
    FEATURES,
    AdapterEmbedder,
    StreetTest,
    measure_tests,
    open_tests,
    refresh,
    summarise_street,
)
from tf_fashion.training.street_results import tests_table, write_street_results

# What taps weigh in standardised features; the others half.
DEEP_TAPS = ("stage5", "stage4", "high", "mid")
# Batches of products per epoch at least.
LEAST_STEPS = 20


class StreetRunBase(TrainingRun):
    """What training and adaptation share: lists, test lists, evaluation, results."""

    config: Any
    dataset: StreetPhotos
    model: DomainAdapter
    embedder: AdapterEmbedder
    monitor = "mAP"

    def _open(self, config: Any) -> None:
        """Opens the lists, and decides what is measured."""
        self.config = config
        self.dataset = StreetPhotos(open_street_to_shop(config.data, config.images))
        self.tests: list[StreetTest] = []
        if config.split != "none":
            self.tests = open_tests(self.dataset, config.test, config.protocol, config.ap)
        self.config = dataclasses.replace(config, split="test" if self.tests else "none")
        self._check_splits()
        self.can_evaluate = bool(self.tests)
        self.evaluation_splits = ["test"] if self.tests else []
        self.data_hash = self.dataset.data_hash()

    def image_paths(self) -> dict[str, Path]:
        """Files of all photos of the run; those that cannot be had are reported all at once.

        Raises:
            DataError: photos are missing, and `skip_bad_images` is off.
        """
        paths, bad = self.dataset.paths(["train", *self.evaluation_splits], self.config.progress)
        self._bad_images(bad)
        return paths

    def load_pictures(self) -> None:
        super().load_pictures()
        self.tests = refresh(self.tests, self.dataset)

    # Evaluation.

    def vectors(self, photos: list[ProductPhoto]) -> np.ndarray:
        """Pooled vectors of photos."""
        ids = [photo.image_id for photo in photos]
        if self.table is not None:
            return self.cached(ids)
        table = self.embedder.table({image_id: self.paths[image_id] for image_id in ids}, False)
        # A list may name a photo twice.
        return table.values[table.rows(ids)]

    def cached(self, ids: list[str]) -> np.ndarray:
        """Pooled vectors of the photos of a run with a frozen encoder, float32."""
        if self.table is None:
            raise UsageError("Only runs with a frozen encoder keep the vectors of their photos.")
        return np.asarray(self.table.values[self.table.rows(ids)], np.float32)

    def embeddings(self, photos: list[ProductPhoto]) -> np.ndarray:
        """Embeddings of photos by the model as it is."""
        return self.embedder.features(self.vectors(photos))

    def evaluate(self) -> dict[str, StreetResult]:
        """Source -> result of the model as it is."""
        return measure_tests(self.tests, self.embeddings)

    def evaluate_epoch(self) -> dict[str, float]:
        """mAP and R@1 of the first test lists, and the mAP of the others, in percent."""
        values: dict[str, float] = {}
        for number, (source, result) in enumerate(self.evaluate().items()):
            overall = result.overall
            if number == 0:
                values = {key: 100 * overall[key] for key in ("mAP", "R@1") if key in overall}
            else:
                values[f"{source}_mAP"] = 100 * overall["mAP"]
        return values

    def compared(self) -> dict[str, dict[str, StreetResult]]:
        """What the model is compared with, by name."""
        return {}

    # Results.

    def record(self, name: str) -> dict[str, Any]:
        return {**super().record(name), "left_out": len(self._bad)}

    def describe(self) -> str:
        """The model in a few words."""
        raise NotImplementedError

    def summary(self) -> str:
        """A sentence about the run, for the report."""
        raise NotImplementedError

    def write_metrics(self) -> dict[str, Any]:
        results = self.evaluate()
        compared = self.compared()
        metrics = summarise_street(results, self.record(self.describe()), compared)
        write_json(self.out / "metrics.json", metrics)
        if self.config.report:
            write_street_results(
                self.out,
                metrics,
                self.tests,
                self.embeddings,
                self.paths,
                self.describe(),
                self.summary(),
                self.config.seed,
                self.pictures(),
            )
        self.say("\n" + tests_table(metrics) + "\n")
        return metrics

    def pictures(self) -> list[tuple[str, Path]]:
        """Further pictures of the report, with a line about each."""
        return []

    def write_export(self) -> str:
        if self.model.image_encoder is None:
            return "No export: the model has no image encoder, and takes vectors only."
        return try_export(self, export_adapter(self.model, self.out / "export" / "1"))


class StreetRun(StreetRunBase):
    """One run: data, model, training, evaluation. The methods are called in the order in which they stand.

    Args:
        config: As given; the preset is filled in here.

    Raises:
        UsageError, DataError, WeightsError: with what to do about it; nothing is written before the data has been read.
    """

    config: StreetConfig

    def __init__(self, config: StreetConfig) -> None:
        super().__init__()
        self._open(config.resolved())
        config = self.config
        self._find_products()
        for product in self.dataset.source.train_products("df", config.statuses):
            self.dataset.use("train", [*product.consumers, *product.shops])
        self.model_hashes = {"init_from": hash_file(load_path(config.init_from))} if config.init_from else {}
        self._claim()
        self.strategy = make_strategy(config.strategy, config.devices)
        if config.init_from:
            self._given["init_from"] = load_adapter(config.init_from)
            if self._given["init_from"].image_encoder is None:
                raise UsageError(f"--init-from {config.init_from}: it has no image encoder.")
        self._start()

    def load_pictures(self) -> None:
        super().load_pictures()
        self._find_products()

    def _find_products(self) -> None:
        config = self.config
        self.products = self.dataset.products("df", config.statuses)
        if len(self.products) < 2:
            raise DataError(
                f"{config.data}: one product has photos of both sides; training tells products apart and takes at least two."
            )
        self.draws = config.draws_of(len(self.products))
        if config.sampler == "pairs" and len(self.products) * self.draws < config.batch_size:
            raise UsageError(
                f"--batch-size: a batch takes {config.batch_size} products, found {len(self.products)} with photos of both sides "
                f"({self.draws} pairs of each per epoch: --draws)."
            )

    def picture_source(self) -> FeatureSource | PhotoSource:
        if self.table is None and self.config.augment == UDMA_AUGMENTATION:
            return PhotoSource(self.paths, self.encoder.image_spec, PairAugmentation.of(self.encoder.image_size))
        return super().picture_source()

    # Model.

    def build_model(self) -> DomainAdapter:
        """The model, compiled."""
        config = self.config
        components = config.start == "components"
        with self.scope():
            model = DomainAdapter(
                self.encoder,
                dim=config.dim,
                start="torch" if components else config.start,
                standardize=config.standardize,
                norm_features=config.norm_features,
                dropout=config.feature_dropout,
                name="domain_adapter",
            )
            if "init_from" in self._given:
                copy_weights(self._given.pop("init_from"), model, f"--init-from {config.init_from}")
            elif config.standardize or components:
                rows = self._train_vectors()
                if config.standardize:
                    widths = self.encoder.block_widths
                    model.adapt_input(rows, list(widths.values()), [1.0 if name in DEEP_TAPS else 0.5 for name in widths])
                if components:
                    model.start_from_components(rows)
        self.model = model
        self.embedder = AdapterEmbedder(model)
        self._plan()
        with self.scope():
            # An optimizer belongs to the strategy in whose scope it is made.
            loss = made("--loss-option", LOSSES.get(config.loss), config.loss_options)
            model.compile(make_optimizer(config, self.steps * config.epochs, self.steps), loss)
        return model

    def _train_vectors(self) -> np.ndarray:
        ids = dict.fromkeys(image_id for product in self.products for side in product for image_id in side)
        return self.cached(list(ids))

    def _plan(self) -> None:
        """Decides the steps of an epoch."""
        config = self.config
        if config.sampler == "pairs":
            steps = len(self.products) * self.draws // config.batch_size
            self.steps = min(config.steps_per_epoch or steps, steps)
        else:
            self.steps = config.steps_per_epoch or max(LEAST_STEPS, -(-len(self.products) // config.batch_size))

    def training_data(self, initial_epoch: int, epochs: int | None = None) -> tf.data.Dataset:
        """Batches from `initial_epoch` on, up to `epochs` (default: those of the run)."""
        config = self.config
        epochs = epochs or config.epochs
        if config.sampler == "products":
            labels, rows = rows_of_products(self.products)
            sides = [self.cached(ids) for ids in rows]
            options: dict[str, Any] = {"weak": False, "seed": config.seed, "draws": self.draws, "merge": True}
            batches = CategoryBatches(labels, sides[0], sides[1], None, config.batch_size, 1, **options)
            return batches.dataset(self.steps * epochs, self.steps * initial_epoch)
        count = len(self.products)
        batches, _ = photo_pair_batches(
            self.products * self.draws,
            self.picture_source(),
            config.batch_size,
            epochs,
            initial_epoch,
            config.seed,
            self.steps,
            config.combination,
        )
        return batches if self.draws == 1 else batches.map(lambda x, y: (x, y % count))

    # Evaluation and results.

    def compared(self) -> dict[str, dict[str, StreetResult]]:
        if self.table is None:
            return {}
        widths = self.encoder.block_widths
        name = next((tap for tap in DEEP_TAPS if tap in widths), next(iter(widths)))
        begin = sum(list(widths.values())[: list(widths).index(name)])
        columns = slice(begin, begin + widths[name])

        def rows(photos: list[ProductPhoto]) -> np.ndarray:
            return self.vectors(photos)[:, columns]

        return {
            f"{FEATURES} ({name})": measure_tests(self.tests, rows),
            f"{CENTRED} ({name})": measure_tests(self.tests, rows, centred=True),
        }

    def describe(self) -> str:
        return describe_model(self.config)

    def summary(self) -> str:
        config = self.config
        return f"{len(self.products)} training products, {config.epochs} epochs of {self.steps} steps, seed {config.seed}."


def rows_of_products(products: list[tuple[list[str], list[str]]]) -> tuple[PseudoLabels, tuple[list[str], list[str]]]:
    """Products as `CategoryBatches` takes them, without any photo of a target, and the ids of the rows of both sides."""
    lists, ids = [], []
    for side in (0, 1):
        ends = np.cumsum([0, *(len(product[side]) for product in products)])
        lists.append(Lists.of(np.arange(begin, end) for begin, end in zip(ends[:-1], ends[1:], strict=True)))
        ids.append([image_id for product in products for image_id in product[side]])
    count = len(products)
    none = Lists(np.zeros(count + 1, np.int64), np.zeros(0, np.int64))
    zeros = np.zeros(count, np.int64)
    labels = PseudoLabels("none", zeros, np.arange(count), lists[0], lists[1], none, np.zeros(0, np.float32))
    return labels, (ids[0], ids[1])


def describe_model(config: StreetConfig) -> str:
    """The network in a few words."""
    return f"{config.backbone} + {config.pooling} + linear, {config.loss}"


def train_street(config: StreetConfig) -> dict[str, Any]:
    """Trains, evaluates, reports and exports; what `tf-fashion train street_to_shop` does.

    Args:
        config: Everything that decides the run.

    Returns:
        The content of `metrics.json` (empty where there are no test lists).

    Raises:
        UsageError, DataError, WeightsError: see the messages.
    """
    run = StreetRun(config)
    run.load_pictures()
    run.build_model()
    run.fit()
    return run.finish()


def try_export(run: StreetRunBase, folder: Path) -> str:
    """Runs one photo through the export and through the model; returns a line about it.

    Raises:
        DataError: the two disagree by more than 1e-4.
    """
    image_id, photo = next(iter(run.paths.items()))
    exported, _ = ExportedAdapter(folder).embed_image([photo.read_bytes()])
    own = run.model.embed_image(load_image(photo, run.model.image_encoder.image_spec)[None]).numpy()
    difference = float(np.abs(exported - own).max())
    if not difference < 1e-4:
        raise DataError(f"{folder}: the export gives another embedding than the model (difference {difference:.2g}); do not serve it.")
    return f"The export embeds {image_id} as the model does (largest difference {difference:.1e})."
