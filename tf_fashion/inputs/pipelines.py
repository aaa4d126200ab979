"""tf.data pipelines for training on triplets.

The order of the examples, the order of each pair's captions, and every augmentation are functions of (seed, epoch, position)
alone. So a run that is interrupted continues with exactly the batches that it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.inputs.augment import Augmentation
from tf_fashion.inputs.feature_cache import FeatureTable, image_batches
from tf_fashion.inputs.images import ImageSpec, load
from tf_fashion.inputs.text import WordTokenizer, join_caption_tensor, join_captions

# Features up to this size are put into the graph's memory; larger ones are read from the memory map.
_IN_MEMORY_BYTES = 2_000_000_000


@dataclass(frozen=True)
class TripletTable:
    """Triplets as columns.

    Attributes:
        references, targets: Image ids.
        captions: Two captions per triplet (one caption is followed by an empty one).
        categories: Category of each triplet.
        labels: int64 `(n,)`, one number per distinct target: the identity that matching losses go by.
        descriptions: A text about each target for the visual-semantic loss ('' where there is none), or nothing.
        embeddings: float32 `(n, dim)`, a given embedding of each target (zeros where there is none), or None.
    """

    references: list[str]
    targets: list[str]
    captions: list[tuple[str, str]]
    categories: list[str]
    labels: np.ndarray = field(repr=False)
    descriptions: list[str] = field(default_factory=list)
    embeddings: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        triplets: Sequence[Any],
        identities: Mapping[str, str] | None = None,
        descriptions: Mapping[str, str] | None = None,
        embeddings: FeatureTable | None = None,
    ) -> TripletTable:
        """Columns of `datasets.Triplet`s that all have targets.

        Args:
            triplets: The triplets.
            identities: Image id -> what makes two targets the same (Fashion200k: the caption); default the id itself.
            descriptions: Image id -> text.
            embeddings: Given embeddings of targets.

        Raises:
            DataError: no triplets, or some without target.
        """
        if not triplets:
            raise DataError("There are no triplets to train on.")
        without = sum(t.target is None for t in triplets)
        if without:
            raise DataError(f"{without} of {len(triplets)} triplets have no target; training needs targets. Take another split.")
        targets = [t.target for t in triplets]
        same = [identities.get(target, target) for target in targets] if identities else targets
        numbers = {target: number for number, target in enumerate(dict.fromkeys(same))}
        return cls(
            references=[t.reference for t in triplets],
            targets=targets,
            captions=[(t.captions[0], t.captions[1] if len(t.captions) > 1 else "") for t in triplets],
            categories=[t.category for t in triplets],
            labels=np.array([numbers[target] for target in same], dtype=np.int64),
            descriptions=[descriptions.get(target, "") for target in targets] if descriptions else [],
            embeddings=None if embeddings is None else _rows_or_zeros(embeddings, targets),
        )

    @property
    def description_labels(self) -> np.ndarray:
        """int64 `(n,)`, equal for equal descriptions, -1 for none."""
        numbers = {text: number for number, text in enumerate(dict.fromkeys(filter(None, self.descriptions)))}
        return np.array([numbers.get(text, -1) for text in self.descriptions], dtype=np.int64)

    def one_caption_each(self) -> TripletTable:
        """A table in which every caption that says something is a triplet of its own."""
        rows = [(row, caption) for row, pair in enumerate(self.captions) for caption in pair if caption.strip()]
        return TripletTable(
            references=[self.references[row] for row, _ in rows],
            targets=[self.targets[row] for row, _ in rows],
            captions=[(caption, "") for _, caption in rows],
            categories=[self.categories[row] for row, _ in rows],
            labels=self.labels[[row for row, _ in rows]],
            descriptions=[self.descriptions[row] for row, _ in rows] if self.descriptions else [],
            embeddings=None if self.embeddings is None else self.embeddings[[row for row, _ in rows]],
        )

    def __len__(self) -> int:
        return len(self.references)


def _rows_or_zeros(table: FeatureTable, ids: Sequence[str]) -> np.ndarray:
    places = [place for place, image_id in enumerate(ids) if image_id in table]
    values = np.zeros((len(ids), table.values.shape[1]), np.float32)
    values[places] = table.values[table.rows(ids[place] for place in places)]
    return values


class FeatureSource:
    """Gives cached features for rows of a table; `role_features` in batches of triplets, `key` where there is one picture."""

    suffix = key = "features"

    def __init__(self, table: FeatureTable) -> None:
        self.table = table
        self._in_memory = table.values.nbytes <= _IN_MEMORY_BYTES

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        return self.table.rows(ids)

    def gatherer(self) -> Any:
        """Function from rows int64 `(batch,)` (and seeds, unused) to features `(batch, ...)` float32."""
        shape = self.table.values.shape[1:]
        if self._in_memory:
            with tf.device("CPU:0"):
                values = tf.constant(np.asarray(self.table.values))

            def gather(rows: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
                return tf.cast(tf.gather(values, rows), tf.float32)
        else:
            memory_map = self.table.values

            def gather(rows: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
                read = tf.numpy_function(lambda r: np.asarray(memory_map[r], dtype=np.float32), [rows], tf.float32)
                return tf.ensure_shape(read, (None, *shape))

        return gather


class PhotoSource:
    """Decodes (and augments) photos for rows of a list of files; `role_image` in batches of triplets, `key` where there is one picture.

    Where all pictures fit into `memory_bytes` at the model's size, they are decoded once and kept as bytes, that is, rounded to
    whole grey levels. Random crops are taken from the photo itself and need it decoded every time.

    Args:
        paths: Image id -> file.
        spec: How photos are decoded; its scaling is "raw".
        augment: None, or what happens to training photos.
        memory_bytes: Memory for decoded pictures.
    """

    suffix = key = "image"

    def __init__(
        self, paths: dict[str, Path], spec: ImageSpec, augment: Augmentation | None = None, memory_bytes: int = 1_000_000_000
    ) -> None:
        self.ids = list(paths)
        self.names = [str(path) for path in paths.values()]
        self.spec = spec
        self.augment = augment
        self._row = {image_id: row for row, image_id in enumerate(self.ids)}
        whole = (
            spec.scaling == "raw" and spec.antialias and spec.interpolation != "bilinear_tf1" and (augment is None or augment.on_pixels)
        )
        self._kept = whole and len(self.names) * spec.size**2 * 3 <= memory_bytes

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self._row[image_id] for image_id in ids], dtype=np.int64)

    def gatherer(self) -> Any:
        if self._kept:
            return self._kept_gatherer()
        names = tf.constant(self.names)

        def one(arguments: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            name, seed = arguments
            return load(tf.io.read_file(name), self.spec, self.augment, seed if self.augment is not None else None)

        def gather(rows: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
            signature = tf.TensorSpec((self.spec.size, self.spec.size, 3), tf.float32)
            return tf.map_fn(one, (tf.gather(names, rows), seeds), fn_output_signature=signature, parallel_iterations=16)

        return gather

    def _kept_gatherer(self) -> Any:
        parts = [
            np.rint(np.clip(images.numpy(), 0, 255)).astype(np.uint8)
            for images in image_batches([Path(name) for name in self.names], self.spec, 64)
        ]
        with tf.device("CPU:0"):
            pixels = tf.constant(np.concatenate(parts))
        augment = self.augment

        def one(arguments: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            image, seed = arguments
            return augment.after_resize(tf.cast(image, tf.float32), seed)  # type: ignore[union-attr]

        def gather(rows: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
            images = tf.gather(pixels, rows)
            if augment is None:
                return tf.cast(images, tf.float32)
            signature = tf.TensorSpec((self.spec.size, self.spec.size, 3), tf.float32)
            return tf.map_fn(one, (images, seeds), fn_output_signature=signature, parallel_iterations=16)

        return gather


def stream_seed(seed: int, stream: int) -> int:
    """A 31-bit number from a seed and the name of a stream."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0] & 0x7FFFFFFF)


def epoch_order(order_seed: int, epoch: tf.Tensor, n: Any, count: int) -> tf.Tensor:
    """The first `count` places of a random order of `n`, int32; a function of seed and epoch."""
    keys = tf.random.stateless_uniform((n,), tf.stack([tf.constant(order_seed, tf.int64), epoch]))
    return tf.argsort(keys, stable=True)[:count]


def picture_seeds(image_seed: int, batch_number: tf.Tensor, count: int, role: int = 0, roles: int = 1) -> tf.Tensor:
    """A seed int32 `(count, 2)` for every picture of every batch of a run."""
    places = tf.range(count) * roles + role
    base = tf.cast(batch_number % 1_000_000_007, tf.int32)
    return tf.stack([tf.fill((count,), base), image_seed // 2 + places], axis=1)


def planned_batches(
    n: int,
    what: str,
    batch_size: int,
    epochs: int,
    initial_epoch: int,
    seed: int,
    steps_per_epoch: int | None,
    batch: Callable[[tf.Tensor, tf.Tensor], Any],
) -> tuple[tf.data.Dataset, int]:
    """Batches of all epochs, one after the other, for `model.fit(..., steps_per_epoch=steps)`.

    Args:
        n: Number of examples.
        what: What they are, for messages.
        batch_size: Examples per (global) batch; the rest of an epoch that fills no batch is left out of that epoch.
        epochs, initial_epoch: The epochs `initial_epoch <= e < epochs` are produced.
        seed: Decides orders and augmentations.
        steps_per_epoch: Batches per epoch; default all full ones.
        batch: Makes a batch from rows int32 `(batch_size,)` and picture seeds int32 `(batch_size, 2)`.

    Returns:
        The dataset, and the number of steps per epoch.

    Raises:
        DataError: there are no examples.
        UsageError: fewer than one batch needs.
    """
    if not n:
        raise DataError(f"There are no {what} to train on.")
    full = n // batch_size
    if full < 1:
        raise UsageError(f"One batch needs {batch_size} {what}, found {n}. Choose a --batch-size of at most {n}.")
    steps = min(steps_per_epoch or full, full)
    order_seed, image_seed = stream_seed(seed, 0), stream_seed(seed, 2)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.reshape(epoch_order(order_seed, epoch, n, steps * batch_size), (steps, batch_size))
        return tf.data.Dataset.from_tensor_slices((tf.fill((steps,), epoch), tf.range(steps, dtype=tf.int64), rows))

    def made(epoch: tf.Tensor, step: tf.Tensor, rows: tf.Tensor) -> Any:
        return batch(rows, picture_seeds(image_seed, epoch * steps + step, batch_size))

    batches = tf.data.Dataset.range(initial_epoch, epochs).flat_map(epoch_batches)
    return batches.map(made, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2), steps


def training_batches(
    table: TripletTable,
    source: FeatureSource | PhotoSource,
    tokenizer: WordTokenizer,
    batch_size: int,
    epochs: int,
    initial_epoch: int = 0,
    seed: int = 0,
    caption_style: str = "and",
    caption_dropout: float = 0.0,
    steps_per_epoch: int | None = None,
    sampler: Callable[[int], TripletTable] | None = None,
    shuffle_captions: bool = True,
    with_rows: bool = False,
) -> tuple[tf.data.Dataset, int]:
    """Batches of all epochs, one after the other, for `model.fit(..., steps_per_epoch=steps)`.

    Args:
        table: The triplets.
        source: Where pictures or their features come from.
        tokenizer: Makes the word ids.
        batch_size: Triplets per (global) batch; the rest of an epoch that fills no batch is left out of that epoch.
        epochs, initial_epoch: The epochs `initial_epoch <= e < epochs` are produced.
        seed: Decides orders and augmentations.
        caption_style: How captions are joined.
        caption_dropout: Probability that only one caption of a pair is used (if both say something).
        steps_per_epoch: Batches per epoch; default all full ones.
        sampler: Gives the triplets of an epoch (in any order, deterministically), for datasets that draw them anew each time;
            `table` is then an example with the usual number. An epoch with fewer starts over with its own triplets.
        shuffle_captions: Whether the order of a pair's captions is drawn anew in every epoch, or stays as it is in the table.
        with_rows: Whether the inputs have `row` too, int64 `(batch,)`: the triplets' places in `table`.

    Returns:
        Dataset of `(inputs, labels)`, where inputs has `text` and `reference_*`, `target_*` as `ComposedRetriever` takes them
        (`target_text` and its label too where the table has descriptions, `text_lengths` where word id 0 is not only padding), and
        the number of steps per epoch. Labels are the targets' identities, or their embeddings where the table has them.

    Raises:
        UsageError: fewer triplets than one batch needs, or rows are asked for of triplets that are drawn anew in each epoch.
    """
    if with_rows and sampler is not None:
        raise UsageError("training_batches(with_rows=True): triplets that are drawn anew in each epoch have no place in a table.")
    n = len(table)
    full = n // batch_size
    if full < 1:
        raise UsageError(f"One batch needs {batch_size} triplets, found {n}. Choose a --batch-size of at most {n}.")
    steps = min(steps_per_epoch or full, full)
    count = steps * batch_size
    described = bool(table.descriptions)

    def columns_of(rows: TripletTable) -> dict[str, np.ndarray]:
        columns = {
            "reference": source.rows(rows.references),
            "target": source.rows(rows.targets),
            "label": rows.labels,
            "captions": np.array([list(pair) for pair in rows.captions], dtype=object),
        }
        if described:
            columns |= {"description": np.array(rows.descriptions, dtype=object), "description_label": rows.description_labels}
        if rows.embeddings is not None:
            columns["embedding"] = rows.embeddings
        if with_rows:
            columns["row"] = np.arange(len(rows))
        return columns

    gather = source.gatherer()
    order_seed, text_seed, image_seed = (stream_seed(seed, stream) for stream in range(3))
    example = columns_of(table)
    names = list(example)
    kinds = dict.fromkeys(names, tf.int64) | {"captions": tf.string, "description": tf.string, "embedding": tf.float32}
    fixed = {name: tf.constant(column, kinds[name]) for name, column in example.items()} if sampler is None else {}

    def drawn(epoch: np.ndarray) -> list[np.ndarray]:
        columns = columns_of(sampler(int(epoch)))  # type: ignore[misc]
        return [np.resize(columns[name], (max(count, len(columns[name])), *columns[name].shape[1:])) for name in names]

    def columns_in(epoch: tf.Tensor) -> dict[str, tf.Tensor]:
        if sampler is None:
            return fixed
        columns = dict(zip(names, tf.numpy_function(drawn, [epoch], [kinds[name] for name in names]), strict=True))
        return {name: tf.ensure_shape(x, (None, *example[name].shape[1:])) for name, x in columns.items()}

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        columns = columns_in(epoch)
        order = epoch_order(order_seed, epoch, tf.shape(columns["label"])[0], count)
        chosen = {name: tf.gather(column, order) for name, column in columns.items()}
        parts = {name: tf.reshape(x, (steps, batch_size, *x.shape[1:])) for name, x in chosen.items()}
        return tf.data.Dataset.from_tensor_slices((tf.fill((steps,), epoch), tf.range(steps, dtype=tf.int64), parts))

    def join(captions: tf.Tensor, epoch: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        key = tf.stack([tf.constant(text_seed, tf.int64), epoch * 1_000_003 + step])
        text = join_caption_tensor(captions, caption_style, seed=key if shuffle_captions else None)
        stripped = tf.strings.strip(captions)
        both = tf.reduce_all(tf.not_equal(stripped, ""), axis=1)
        only = tf.where(tf.equal(stripped[:, 0], ""), stripped[:, 1], stripped[:, 0])
        if caption_dropout:
            draw = tf.random.stateless_uniform((2, batch_size), key + 1)
            single = tf.where(draw[1] < 0.5, stripped[:, 0], stripped[:, 1])
            text = tf.where((draw[0] < caption_dropout) & both, single, text)
        return tf.where(both, text, only) if caption_style == "and" else text

    def batch(epoch: tf.Tensor, step: tf.Tensor, rows: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        texts = join(rows["captions"], epoch, step)
        inputs = {"text": tokenizer(texts)}
        if tokenizer.legacy_markers:
            inputs["text"], inputs["text_lengths"] = tokenizer(texts, return_lengths=True)
        for number, role in enumerate(("reference", "target")):
            seeds = picture_seeds(image_seed, epoch * steps + step, batch_size, number, 2)
            inputs[f"{role}_{source.suffix}"] = gather(rows[role], seeds)
        if described:
            inputs |= {"target_text": tokenizer(rows["description"]), "target_text_label": rows["description_label"]}
        if with_rows:
            inputs["row"] = rows["row"]
        labels = rows["embedding"] if "embedding" in rows else rows["label"]
        return inputs, tf.ensure_shape(labels, (batch_size, *labels.shape[1:]))

    epochs_left = tf.data.Dataset.range(initial_epoch, epochs)
    batches = epochs_left.flat_map(epoch_batches).map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(2), steps


def query_text(captions: Sequence[str], style: str) -> str:
    """The captions of one query as one text; a blank one leaves no joining word behind."""
    said = [caption for caption in captions if caption.strip()]
    if style == "and" and len(said) == 1:
        return said[0].strip()
    return join_captions(list(captions)[:2], style)
