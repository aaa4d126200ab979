"""UDMA's second stage: clusters of shop photos of two data sets give the source's products photos of the target, and a
`DomainAdapter` is trained further with them.

One run does what the original spreads over four scripts, two of which have to be run twice: vectors of all photos, clusters, who gets
which photos, training, evaluation. Sharma et al., "Unsupervised Meta-Domain Adaptation for Fashion Retrieval" (WACV 2021).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fashion.clustering.meta_domains import (
    GroupClusters,
    Matches,
    PseudoLabels,
    cluster_groups,
    cluster_matches,
    product_matches,
    pseudo_labels,
    without_target,
)
from tf_fashion.core.errors import UsageError
from tf_fashion.core.files import hash_file, hash_json, replaced_file, write_json
from tf_fashion.datasets.street_to_shop import PhotoDomain
from tf_fashion.inputs.domain_batches import CategoryBatches
from tf_fashion.losses import LOSSES
from tf_fashion.models.adapter import DomainAdapter, load_adapter
from tf_fashion.models.base import load_path
from tf_fashion.reports.clusters import draw_cluster_tree, draw_clusters, readable_partition
from tf_fashion.reports.udma import START, draw_weights, weights_table
from tf_fashion.retrieval.multi_positive import StreetResult
from tf_fashion.training.runs import made, make_optimizer
from tf_fashion.training.street import StreetRunBase
from tf_fashion.training.street_config import NO_TARGET, AdaptConfig
from tf_fashion.training.street_data import CONSUMER_DF, SHOP_DF, SHOP_S2S, StreetPhotos, make_alignment
from tf_fashion.training.street_evaluation import AdapterEmbedder
from tf_fashion.training.street_features import feature_table, find_features

# Names of the original's files of matches.
MATCH_FILES = {"ws5": "L12_WS5_WS6_{}.csv", "ws6": "L12_WS5_WS6_{}.csv", "ws7": "WS7.csv", "ws8": "WS7.csv"}
PICTURES = {
    "clusters.png": "Shop photos of both data sets in two dimensions, by data set and by cluster (of a partition with few of them).",
    "cluster_tree.png": "How the partitions nest; blocks of mixed colour are clusters that join the data sets.",
    "weights.svg": "How many photos of the target the products got, and how similar those are (or what they weigh).",
}


class AdaptRun(StreetRunBase):
    """One adaptation: data, clusters, pseudo-labels, training, evaluation. The methods are called in the order in which they stand.

    Args:
        config: As given; the preset is filled in here.

    Raises:
        UsageError, DataError: with what to do about it; nothing is written before the data has been read.
    """

    config: AdaptConfig

    def __init__(self, config: AdaptConfig) -> None:
        super().__init__()
        config = config.resolved()
        self.matches: Matches | None = None
        load_path(config.model)
        self.weighting_options = made("--weighting-option", _WeightingOptions, config.weighting_options)
        self._open(config)
        self.domains = (CONSUMER_DF, SHOP_DF) if config.weighting == NO_TARGET else (CONSUMER_DF, SHOP_DF, SHOP_S2S)
        for domain in self.domains:
            self.dataset.source.numbers("train", domain)
            self.dataset.use("train", self.dataset.photos("train", domain))
        self._check_categories()
        self.model_hashes = {"model": hash_file(config.model)}
        if config.weighting != NO_TARGET:
            self.alignment = make_alignment(str(config.alignment), self.dataset)
            given = {"matches": config.matches, "alignment": config.alignment if str(config.alignment).endswith(".json") else None}
            self.model_hashes |= {name: hash_file(path) for name, path in given.items() if path}
        if config.features:
            self.model_hashes["features"] = hash_json(
                [[str(d), hash_file(find_features(config.features, "train", d))] for d in self.domains]
            )
        self._claim()
        self.strategy = None
        self._given["model"] = load_adapter(config.model)
        if self._given["model"].fc is None:
            raise UsageError(f"--model {config.model}: it has no linear layer, which is what adaptation trains.")
        if self._given["model"].image_encoder is None and not config.features:
            raise UsageError(
                f"--model {config.model}: it has no image encoder. Take a model of `train street_to_shop`, or give extracted vectors "
                "with --features DIR."
            )
        self._start()

    def _check_categories(self) -> None:
        """Raises before anything slow what the batches would raise."""
        config = self.config
        found = without_target(*(self.dataset.domain("train", domain) for domain in (CONSUMER_DF, SHOP_DF)))
        count = len(np.unique(found.categories))
        if not config.merge and count < config.categories_per_batch:
            raise UsageError(
                f"--categories-per-batch: a batch takes {config.categories_per_batch} categories, found {count} with products of both "
                f"sides. Choose at most {count}, or --merge --categories-per-batch 1."
            )

    def build_encoder(self) -> None:
        self.encoder = self._given["model"].image_encoder

    def load_pictures(self) -> None:
        """Vectors of all photos: computed and cached, or read from files of extracted ones."""
        config = self.config
        if not config.features:
            super().load_pictures()
            return
        tests = [("test", PhotoDomain(test.source, side)) for test in self.tests for side in ("consumer", "shop")]  # type: ignore[arg-type]
        lists = [*(("train", domain) for domain in self.domains), *tests]
        self.build_encoder()
        self.table = feature_table(self.dataset, config.features, lists, self._given["model"].width)
        # Only sheets and reports show photos.
        photos = [photo for split, domain in lists for photo in self.dataset.photos(split, domain)]
        self.paths = {photo.image_id: path for photo in photos if (path := self.dataset.source.find(photo)) is not None}
        self._claim_out()

    # What is trained on.

    def attach(self) -> PseudoLabels:
        """Clusters the shop photos and decides which photos of the target each product gets; writes all of it into the run's folder.

        Raises:
            UsageError: a partition that FINCH did not find, or categories that do not fit.
            DataError: no product has photos of both sides, or a file of matches that belongs to other lists.
        """
        config = self.config
        for name in ("clusters.npz", "clusters.json", *PICTURES, *(file.format(config.partition) for file in MATCH_FILES.values())):
            # Of a run that this one replaces.
            (self.out / name).unlink(missing_ok=True)
        photos = {domain: self.dataset.photos("train", domain) for domain in self.domains}
        self.rows = {domain: self.vectors(photos[domain]) for domain in self.domains}
        consumer = self.dataset.domain("train", CONSUMER_DF)
        if config.weighting == NO_TARGET:
            self.labels = without_target(consumer, self.dataset.domain("train", SHOP_DF))
        else:
            start = AdapterEmbedder(self._given["model"])
            shop, target = (self.dataset.domain("train", d, start.features(self.rows[d])) for d in (SHOP_DF, SHOP_S2S))
            clusters: dict[str, GroupClusters] = {}
            if config.weighting not in ("ws7", "ws8"):
                self.say(f"Clustering {len(shop) + len(target):,} shop photos (FINCH)")
                clusters = cluster_groups(shop, target, self.alignment, neighbours=config.neighbours)
            if config.matches:
                self.matches = self._read_matches(config.matches)
            elif config.weighting in ("ws5", "ws6"):
                self.matches = cluster_matches(consumer, shop, target, self.alignment, clusters, config.partition)
            elif config.weighting in ("ws7", "ws8"):
                self.matches = product_matches(shop, target, self.alignment)
            self.labels = pseudo_labels(
                consumer,
                shop,
                target,
                self.alignment,
                config.weighting,
                partition=config.partition,
                clusters=clusters,
                matches=self.matches,
                **dataclasses.asdict(self.weighting_options),
            )
            self._write_clusters(clusters, len(shop))
            if self.matches is not None:
                self._write_matches(self.out / MATCH_FILES[config.weighting].format(config.partition))
            if config.report:
                self._draw(clusters, np.concatenate([shop.features, target.features]), len(shop))
        self.labels.save(self.out / "pseudo_labels.npz")
        self.say(weights_table({config.weighting: self.labels}))
        if config.weighting != NO_TARGET and not self.labels.attached.any():
            self.say(
                "No product got a photo of the target's shop, so that this run trains on the source alone, as --weighting none does. "
                "Take a coarser --partition, or another --alignment."
            )
        return self.labels

    # Files of matches count the lines of the whole lists, also where photos are left out.

    def _read_matches(self, path: str) -> Matches:
        lists = StreetPhotos(self.dataset.source)
        found = Matches.read_csv(path, lists.domain("train", SHOP_DF), lists.domain("train", SHOP_S2S))
        if found.rows is None:
            return found
        lines = self.dataset.kept("train", SHOP_S2S)
        here = np.isin(found.rows, lines)
        rows = np.searchsorted(lines, found.rows[here])
        return Matches(rows, found.target_products[here], found.source_products[here], found.similarity[here])

    def _write_matches(self, path: Path) -> None:
        if self.matches is not None:
            rows = None if self.matches.rows is None else self.dataset.kept("train", SHOP_S2S)[self.matches.rows]
            matches = dataclasses.replace(self.matches, rows=rows)
            matches.write_csv(path, StreetPhotos(self.dataset.source).domain("train", SHOP_DF))

    def _write_clusters(self, clusters: dict[str, GroupClusters], source: int) -> None:
        arrays = {f"{part}:{name}": getattr(entry, part) for name, entry in clusters.items() for part in ("rows", "labels")}
        with replaced_file(self.out / "clusters.npz", ".npz") as temporary:
            np.savez_compressed(temporary, allow_pickle=False, source_rows=np.array(source), **arrays)
        counts = {name: [int(column.max()) + 1 for column in entry.labels.T] for name, entry in clusters.items()}
        write_json(self.out / "clusters.json", {"source_rows": source, "groups": counts})

    def _draw(self, clusters: dict[str, GroupClusters], features: np.ndarray, source: int) -> None:
        if clusters:
            name, entry = max(clusters.items(), key=lambda item: len(item[1].rows))
            domains = np.where(entry.rows < source, str(SHOP_DF), str(SHOP_S2S)).tolist()
            counts = [int(column.max()) + 1 for column in entry.labels.T]
            # More clusters than colours show nothing; the tree has all partitions.
            level = readable_partition(counts)
            options: dict[str, Any] = {"title": f"Shop photos of the group {name!r}", "protocol": f"FINCH, partition {level}"}
            draw_clusters(self.out / "clusters.png", features[entry.rows], entry.labels[:, level], domains, **options)
            draw_cluster_tree(
                self.out / "cluster_tree.png", entry.labels, domains, title=options["title"], protocol="FINCH, all partitions"
            )
        if self.labels.attached.any():
            similarities = {} if self.matches is None else {self.config.weighting: self.matches.similarity}
            title = "Photos of the target's shop that products of the source got"
            draw_weights({self.config.weighting: self.labels}, self.out / "weights.svg", similarities, title)

    def pictures(self) -> list[tuple[str, Path]]:
        return [(line, self.out / name) for name, line in PICTURES.items() if (self.out / name).exists()]

    # Model.

    def build_model(self) -> DomainAdapter:
        """The model, compiled; it begins with the weights of `--model`."""
        config = self.config
        model = self._given.pop("model")
        if model.image_encoder is not None:
            model.image_encoder.trainable = False
        self.model = model
        self.embedder = AdapterEmbedder(model)
        # Measured before the state of an interrupted run changes the weights.
        self._before = self.evaluate() if self.can_evaluate else {}
        self.batches = CategoryBatches(
            self.labels,
            self.rows[CONSUMER_DF],
            self.rows[SHOP_DF],
            self.rows.get(SHOP_S2S),
            config.batch_size,
            config.categories_per_batch,
            weak=config.weighting != NO_TARGET,
            seed=config.seed,
            draws=config.draws_of(len(self.labels)),
            merge=config.merge,
        )
        self.steps = config.steps_per_epoch or self.batches.steps_per_pass
        loss = made("--loss-option", LOSSES.get(config.loss), config.loss_options)
        model.compile(make_optimizer(config, self.steps * config.epochs, self.steps), loss)
        return model

    def training_data(self, initial_epoch: int, epochs: int | None = None) -> tf.data.Dataset:
        """Batches from `initial_epoch` on, up to `epochs` (default: those of the run)."""
        return self.batches.dataset(self.steps * (epochs or self.config.epochs), self.steps * initial_epoch)

    # Evaluation and results.

    def compared(self) -> dict[str, dict[str, StreetResult]]:
        return {START: self._before}

    def record(self, name: str) -> dict[str, Any]:
        return {**super().record(name), "pseudo_labels": self.labels.summary()}

    def describe(self) -> str:
        if self.config.weighting == NO_TARGET:
            return f"control, trained on without the target ({self.config.loss})"
        return f"adapted by {self.config.weighting} ({self.config.loss})"

    def summary(self) -> str:
        found = self.labels.summary()
        return (
            f"{found['target_photos']} photos of the target's shop went to {found['products_with_target_photos']} of "
            f"{found['products']} products; {self.config.epochs} epochs of {self.steps} steps, seed {self.config.seed}."
        )


@dataclasses.dataclass
class _WeightingOptions:
    """Options of the strategy `soft`, see `clustering.meta_domains.pseudo_labels`."""

    temperature: float = 0.05
    least_weight: float = 0.05

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise UsageError(f"--weighting-option {name}: expected a number, found {value!r}.")
        if self.temperature <= 0 or not 0 <= self.least_weight < 1:
            raise UsageError(
                "--weighting-option: expected a temperature above 0 and a least_weight from 0 to below 1, found "
                f"{self.temperature} and {self.least_weight}."
            )


def adapt(config: AdaptConfig) -> dict[str, Any]:
    """Clusters, attaches, trains, evaluates, reports and exports; what `tf-fashion adapt` does.

    Args:
        config: Everything that decides the run.

    Returns:
        The content of `metrics.json` (empty where there are no test lists).

    Raises:
        UsageError, DataError: see the messages.
    """
    run = AdaptRun(config)
    run.load_pictures()
    run.attach()
    run.build_model()
    run.fit()
    return run.finish()
