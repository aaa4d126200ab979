"""Batches for matching consumer photos with shop photos: pairs of photos of a product, and categories of pairs of vectors.

Two samplers of UDMA (Sharma et al., WACV 2021). `photo_pair_batches` trains the encoder on products with photos of both kinds.
`CategoryBatches` trains the adapter on pooled vectors: per category, pairs of a product's consumer photos, its shop photos, and the
target's shop photos that were attached to it. Every draw is a function of (seed, step).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.inputs.augment import Augmentation, affine
from tf_fashion.inputs.images import ImageSpec, resize_to
from tf_fashion.inputs.pipelines import FeatureSource, PhotoSource, planned_batches, stream_seed

CONSUMER, SHOP, TARGET = range(3)
"""The domains of a row: consumer and shop photos of the source, shop photos of the target."""
PAIR_KINDS = ((CONSUMER, SHOP), (CONSUMER, CONSUMER), (SHOP, SHOP), (CONSUMER, TARGET), (TARGET, TARGET))
"""The pairs that a product can give, in their order; the first is always there."""
COMBINATIONS = ("all", "consumer_shop")


class RowLists(Protocol):
    """Rows of several products, one after the other; product i has `rows[splits[i]:splits[i + 1]]`."""

    @property
    def splits(self) -> np.ndarray: ...

    @property
    def rows(self) -> np.ndarray: ...


class AttachedProducts(Protocol):
    """What `CategoryBatches` needs of `clustering.meta_domains.PseudoLabels`, whose attributes these are."""

    @property
    def categories(self) -> np.ndarray: ...

    @property
    def products(self) -> np.ndarray: ...

    @property
    def consumers(self) -> Any: ...

    @property
    def shops(self) -> Any: ...

    @property
    def weak(self) -> Any: ...

    @property
    def weights(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class RowPairs:
    """Pairs of rows.

    Attributes:
        anchors, positives: int64 (n, 2): row and domain (`CONSUMER`, `SHOP`, `TARGET`).
        labels: int64 (n,), product numbers.
        weights: float32 (n, 2), how much anchor and positive are trusted to show the product.
        kinds: int64 (n,), which of `PAIR_KINDS`.
    """

    anchors: np.ndarray
    positives: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    kinds: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def draw_pairs(labels: AttachedProducts, numbers: np.ndarray, random: np.random.Generator, weak: bool = True) -> RowPairs:
    """One pair of each kind that each product can give, product by product, in the order of `PAIR_KINDS`.

    A pair within one domain has two different rows; the consumer photo of the first pair is that of the fourth too.

    Args:
        labels: The products.
        numbers: int64 (n,): which of them, with a consumer and a shop row each.
        random: Decides the rows, with as many numbers for each product whatever rows it has.
        weak: Whether the target's rows take part (UDMA's "L12"), or the source's alone ("L1").
    """
    numbers = np.asarray(numbers, np.int64)
    draws = random.random((len(numbers), 9))
    lists = (labels.consumers, labels.shops, labels.weak)
    starts = [np.asarray(entry.splits)[numbers] for entry in lists]
    sizes = [np.asarray(entry.splits)[numbers + 1] - start for entry, start in zip(lists, starts, strict=True)]

    def one(domain: int, column: int) -> np.ndarray:
        return np.minimum((draws[:, column] * sizes[domain]).astype(np.int64), np.maximum(sizes[domain] - 1, 0))

    def two(domain: int, column: int) -> tuple[np.ndarray, np.ndarray]:
        first, rest = one(domain, column), np.maximum(sizes[domain] - 1, 1)
        step = 1 + np.minimum((draws[:, column + 1] * rest).astype(np.int64), rest - 1)
        return first, (first + step) % np.maximum(sizes[domain], 1)

    consumer = one(CONSUMER, 0)
    places = [(consumer, one(SHOP, 1)), two(CONSUMER, 2), two(SHOP, 4), (consumer, one(TARGET, 6)), two(TARGET, 7)]
    there = np.stack(
        [
            np.ones(len(numbers), bool),
            sizes[CONSUMER] > 1,
            sizes[SHOP] > 1,
            (sizes[TARGET] > 0) & weak,
            (sizes[TARGET] > 1) & weak,
        ],
        axis=1,
    )
    chosen, kinds = np.nonzero(there)

    def side(which: int) -> tuple[np.ndarray, np.ndarray]:
        rows, trust = np.empty((len(chosen), 2), np.int64), np.ones(len(chosen), np.float32)
        for kind, domains in enumerate(PAIR_KINDS):
            here = np.flatnonzero(kinds == kind)
            place = starts[domains[which]][chosen[here]] + places[kind][which][chosen[here]]
            rows[here, 0] = np.asarray(lists[domains[which]].rows)[place]
            rows[here, 1] = domains[which]
            if domains[which] == TARGET:
                trust[here] = np.asarray(labels.weights)[place]
        return rows, trust

    (anchors, anchor_trust), (positives, positive_trust) = side(0), side(1)
    weights = np.stack([anchor_trust, positive_trust], axis=1)
    return RowPairs(anchors, positives, np.asarray(labels.products)[numbers[chosen]], weights, kinds)


class CategoryBatches:
    """Batches of categories, each with pairs of its products (UDMA-MLP's sampler).

    A pass takes the categories in a random order, `categories_per_batch` at a time; those that fill no batch are left out of it. Of
    each category `products_per_category` products are drawn, or all.

    Args:
        labels: The products and their rows (`clustering.meta_domains.pseudo_labels`).
        consumers, shops, targets: float `(rows, dim)`: pooled vectors of the three domains; memory maps are read row by row.
            `targets` may be None without `weak`.
        products_per_category: At most so many.
        categories_per_batch: So many.
        weak: Whether the target's rows take part (UDMA's "L12" and not "L1").
        seed: Decides all draws, together with the step.
        draws: How often a drawn product gives its pairs, each time of rows drawn anew; one pair may come up again.
        merge: Whether all products count as one category, number 0, so that negatives come from all of them; takes
            `categories_per_batch=1`, and `products_per_category` are then the products of a batch.

    Raises:
        UsageError: fewer categories than a batch takes, numbers below 1, `merge` with more than one category per batch, or vectors of
            widths that differ or none where they are needed.
        DataError: no products, or lists with rows that are not there.
    """

    def __init__(
        self,
        labels: AttachedProducts,
        consumers: np.ndarray,
        shops: np.ndarray,
        targets: np.ndarray | None = None,
        products_per_category: int = 128,
        categories_per_batch: int = 12,
        weak: bool = True,
        seed: int = 0,
        draws: int = 1,
        merge: bool = False,
    ) -> None:
        self.labels = labels
        self.features = (consumers, shops, targets)
        self.products_per_category = products_per_category
        self.categories_per_batch = categories_per_batch
        self.weak = weak
        self.seed = seed
        self.draws = draws
        self.merge = merge
        if products_per_category < 1 or categories_per_batch < 1:
            raise UsageError(
                "CategoryBatches: products_per_category and categories_per_batch must be at least 1; found "
                f"{products_per_category} and {categories_per_batch}."
            )
        if draws < 1:
            raise UsageError(f"CategoryBatches(draws=...): expected at least 1, found {draws}.")
        if merge and categories_per_batch != 1:
            raise UsageError(
                "CategoryBatches(merge=True) makes one category of all products: set categories_per_batch=1, not "
                f"{categories_per_batch}."
            )
        numbers = np.asarray(labels.categories)
        if merge:
            numbers = np.zeros_like(numbers)
        self.categories = np.unique(numbers)
        self._members = [np.flatnonzero(numbers == category) for category in self.categories]
        if not len(numbers):
            raise DataError("There are no products to train on.")
        if len(self.categories) < categories_per_batch:
            raise UsageError(
                f"A batch takes {categories_per_batch} categories, found {len(self.categories)}. Choose a number of categories per "
                f"batch of at most {len(self.categories)}."
            )
        self.dim = self._check_rows()

    def _check_rows(self) -> int:
        widths = set()
        lists = (self.labels.consumers, self.labels.shops, self.labels.weak)
        names = ("consumer photos", "shop photos", "the target's shop photos")
        for domain, (rows, features, name) in enumerate(zip(lists, self.features, names, strict=True)):
            if domain == TARGET and not (self.weak and len(rows.rows)):
                continue
            if features is None or features.ndim != 2:
                found = "none" if features is None else str(features.shape)
                raise UsageError(f"CategoryBatches: expected vectors (rows, dim) of {name}, found {found}.")
            if len(rows.rows) and not 0 <= rows.rows.min() <= rows.rows.max() < len(features):
                raise DataError(
                    f"The lists name row {rows.rows.max()} of {name}, of which there are {len(features)}. They belong to others."
                )
            if domain != TARGET and (np.diff(rows.splits) < 1).any():
                empty = int(np.asarray(self.labels.products)[np.flatnonzero(np.diff(rows.splits) < 1)[0]])
                raise DataError(f"Product {empty} has none of {name}. Leave it out.")
            widths.add(int(features.shape[1]))
        if len(widths) > 1:
            raise UsageError(f"CategoryBatches: vectors have different widths: {sorted(widths)}. Use one encoder for all.")
        return widths.pop()

    @property
    def steps_per_pass(self) -> int:
        """Batches until every category has had its turn, those aside that fill no batch."""
        return len(self.categories) // self.categories_per_batch

    def pairs(self, step: int) -> list[tuple[int, RowPairs]]:
        """Category and pairs of each category of a batch."""
        turn, place = divmod(step, self.steps_per_pass)
        order = np.random.default_rng([self.seed, 0, turn]).permutation(len(self.categories))
        chosen = order[place * self.categories_per_batch : (place + 1) * self.categories_per_batch]
        random = np.random.default_rng([self.seed, 1, step])
        drawn = []
        for number in chosen:
            members = self._members[number]
            count = min(self.products_per_category, len(members))
            products = np.repeat(random.choice(members, count, replace=False), self.draws)
            drawn.append((int(self.categories[number]), draw_pairs(self.labels, products, random, self.weak)))
        return drawn

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A batch: all anchors of a category, then all positives, then padding.

        Returns:
            Vectors float32 `(categories, rows, dim)`; labels int64 `(categories, rows)`, -1 for padding; weights float32
            `(categories, rows)`, 0 for padding.
        """
        drawn = [pairs for _, pairs in self.pairs(step)]
        shape = (len(drawn), 2 * max(map(len, drawn)))
        rows = np.zeros((*shape, 2), np.int64)
        labels, weights = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
        for place, pairs in enumerate(drawn):
            count = 2 * len(pairs)
            rows[place, :count] = np.concatenate([pairs.anchors, pairs.positives])
            labels[place, :count] = np.tile(pairs.labels, 2)
            weights[place, :count] = pairs.weights.T.reshape(-1)
        vectors = np.zeros((*shape, self.dim), np.float32)
        for domain, features in enumerate(self.features):
            here = np.nonzero((rows[..., 1] == domain) & (labels >= 0))
            if len(here[0]) and features is not None:
                vectors[here] = features[rows[..., 0][here]]
        return vectors, labels, weights

    def dataset(self, steps: int, initial_step: int = 0) -> tf.data.Dataset:
        """The batches `initial_step <= step < steps` as `DomainAdapter` takes them: `({"features": ...}, labels, weights)`."""
        kinds = (tf.float32, tf.int64, tf.float32)

        def made(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
            vectors, labels, weights = tf.numpy_function(lambda n: self.batch(int(n)), [step], kinds)
            labels, weights = (tf.ensure_shape(x, (self.categories_per_batch, None)) for x in (labels, weights))
            return {"features": tf.ensure_shape(vectors, (self.categories_per_batch, None, self.dim))}, labels, weights

        batches = tf.data.Dataset.range(initial_step, steps)
        return batches.map(made, num_parallel_calls=2, deterministic=True).prefetch(2)


@dataclass(frozen=True)
class PairAugmentation(Augmentation):
    """What a photo undergoes in the training of UDMA's encoder: it is turned, its shorter side resized, a square cut out, mirrored.

    Attributes:
        rotate, interpolation, flip: As in `Augmentation`; turned photos keep their size, corners become black.
        size: Side of the square, that of the model's pictures.
        short_side: What the shorter side is resized to; at least `size`.

    Raises:
        UsageError: values out of range, or an option of `Augmentation` that has no place here.
    """

    rotate: float = 45.0
    interpolation: str = "nearest"
    size: int = 224
    short_side: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.size <= self.short_side:
            raise UsageError(
                f"PairAugmentation: expected a size of at least 1 and a short_side of at least that, found {self.size} and "
                f"{self.short_side}."
            )
        if self.crop_area or self.side_below or self.translate or self.scale != (1.0, 1.0):
            raise UsageError("PairAugmentation takes neither crop_area nor side_below, translate or scale.")

    @classmethod
    def of(cls, size: int) -> PairAugmentation:
        """The original's proportions, 256 to 224, for pictures of another side."""
        return cls(size=size, short_side=round(size * 256 / 224))

    @property
    def on_pixels(self) -> bool:
        return False

    def before_resize(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The whole of it but for mirroring: (h, w, 3) to float32 (size, size, 3)."""
        draw = tf.random.stateless_uniform((3,), seed + tf.constant([401, 0]))
        if self.rotate:
            image = affine(image, angle=(2.0 * draw[0] - 1.0) * self.rotate, interpolation=self.interpolation)
        sides = tf.shape(image)[:2]
        sides = tf.maximum(self.short_side * sides // tf.reduce_min(sides), self.short_side)
        image = resize_to(image, sides[0], sides[1], ImageSpec(size=self.size))
        room = sides - self.size
        corner = tf.minimum(tf.cast(draw[1:] * tf.cast(room + 1, tf.float32), tf.int32), room)
        cut = image[corner[0] : corner[0] + self.size, corner[1] : corner[1] + self.size]
        return tf.ensure_shape(cut, (self.size, self.size, 3))

    def after_resize(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        image = tf.cast(image, tf.float32)
        mirrored = tf.random.stateless_uniform((), seed) < self.flip
        return tf.cond(mirrored, lambda: image[:, ::-1], lambda: image)


def photo_pair_batches(
    products: Sequence[tuple[Sequence[str], Sequence[str]]],
    source: FeatureSource | PhotoSource,
    batch_size: int,
    epochs: int,
    initial_epoch: int = 0,
    seed: int = 0,
    steps_per_epoch: int | None = None,
    combination: str = "all",
) -> tuple[tf.data.Dataset, int]:
    """Batches of pairs of photos, one pair per product and epoch, for `model.fit(..., steps_per_epoch=steps)` (UDMA's DF-BL).

    With "all" half of the pairs are a consumer and a shop photo, a quarter each two consumer photos and two shop photos. Photos are
    drawn with replacement, so that both may be the same one, under different augmentation.

    Args:
        products: Image ids of consumer photos and of shop photos of each product.
        source: Where photos or their vectors come from.
        batch_size, epochs, initial_epoch, seed, steps_per_epoch: As `planned_batches`; one example is a product.
        combination: "all", or "consumer_shop" for pairs across domains alone.

    Returns:
        Dataset of `({"anchor_image": ..., "positive_image": ...}, labels)` (or `_features`) as `DomainAdapter` takes them, labels
        int64 being the products' numbers; and the number of steps per epoch.

    Raises:
        UsageError: unknown `combination`; as `planned_batches`.
        DataError: a product without photos of one of the two kinds; as `planned_batches`.
    """
    if combination not in COMBINATIONS:
        raise UsageError(f"photo_pair_batches(combination=...): expected one of {', '.join(COMBINATIONS)}; found {combination!r}.")
    poor = [number for number, photos in enumerate(products) if not all(photos)]
    if poor:
        raise DataError(
            f"{len(poor)} of {len(products)} products lack consumer or shop photos, the first is number {poor[0]}. Leave them out."
        )
    # Both kinds of all products in one row; product i has entries 2 i and 2 i + 1.
    entries = [photos for product in products for photos in product]
    with tf.device("CPU:0"):
        sizes = tf.constant([len(photos) for photos in entries], tf.int64)
        starts = tf.cumsum(sizes, exclusive=True)
        rows = tf.constant(source.rows([photo for photos in entries for photo in photos]))
    gather = source.gatherer()
    positive_seed = stream_seed(seed, 4)

    def photos_of(entry: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
        count = tf.gather(sizes, entry)
        place = tf.minimum(tf.cast(draw * tf.cast(count, tf.float32), tf.int64), count - 1)
        return tf.gather(rows, tf.gather(starts, entry) + place)

    def batch(numbers: tf.Tensor, seeds: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        draw = tf.random.stateless_uniform((3, batch_size), seeds[0] + tf.constant([0, 1_000_003]))
        first, second = tf.zeros((batch_size,), tf.int32), tf.ones((batch_size,), tf.int32)
        if combination == "all":
            first = tf.where(draw[0] >= 0.75, 1, first)
            second = tf.where((draw[0] >= 0.5) & (draw[0] < 0.75), 0, second)
        entry = 2 * tf.cast(numbers, tf.int32)
        inputs = {
            f"anchor_{source.key}": gather(photos_of(entry + first, draw[1]), seeds),
            f"positive_{source.key}": gather(photos_of(entry + second, draw[2]), tf.bitwise.bitwise_xor(seeds, positive_seed)),
        }
        return inputs, tf.cast(numbers, tf.int64)

    return planned_batches(len(products), "products", batch_size, epochs, initial_epoch, seed, steps_per_epoch, batch)
