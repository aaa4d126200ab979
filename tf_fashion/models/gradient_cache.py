"""The gradient of a batch that does not fit into memory, for losses that compare all rows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError


def cached_gradients(
    encoders: Sequence[Callable[[Any], Any]],
    batch: Sequence[Any],
    loss: Callable[..., Any],
    variables: Sequence[Any],
    chunk_size: int,
    layers: Iterable[keras.layers.Layer],
) -> tuple[Any, list[Any]]:
    """Gradient caching (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021).

    The encoders run without a tape, chunk by chunk; the loss of all embeddings is taken with its gradients for them; the encoders
    run again, chunk by chunk with a tape, and each chunk's share of the stored gradient goes through them. The result is the
    plain gradient, with activations of one chunk in memory, for one more forward pass. Random layers draw in the second pass what
    they drew in the first. Works eagerly, in a `tf.function` and per replica of a `tf.distribute` strategy, where the loss
    gathers the other replicas' embeddings.

    Args:
        encoders: Functions from a chunk of rows to floating embeddings `(rows, ...)`, where a row depends on its own input alone.
        batch: Each encoder's input: a tensor, or a structure of tensors, with one first axis. Encoders may have different numbers of
            rows.
        loss: Function from the float32 embeddings of all encoders, `loss(first, second, ...)`, to a scalar, or to a tuple that
            begins with it. It may use variables itself (the scale of logits) and must draw no random numbers.
        variables: What gradients are wanted for.
        chunk_size: Rows at a time; the last chunk may have fewer.
        layers: The layers, or the model, that the encoders call: their random states are taken from here. Random numbers
            that belong to no layer's `SeedGenerator` cannot be drawn again.

    Returns:
        What `loss` returned, and the gradients in the order of `variables`, None where nothing reaches one.

    Raises:
        UsageError: chunk size below 1, unequal numbers of encoders and inputs, or a batch normalisation in training, whose
            statistics would be those of chunks.
    """
    if chunk_size < 1:
        raise UsageError(f"cached_gradients: chunk_size must be at least 1, found {chunk_size}.")
    if len(encoders) != len(batch):
        raise UsageError(f"cached_gradients: expected one input per encoder ({len(encoders)}), found {len(batch)}.")
    states = _random_states(layers)
    weights = [v.value if isinstance(v, keras.Variable) else v for v in variables]
    passes = [_Chunks(encoder, rows, chunk_size, states) for encoder, rows in zip(encoders, batch, strict=True)]
    embeddings = [chunks.embed() for chunks in passes]
    with tf.GradientTape() as tape:
        tape.watch(embeddings)
        result = loss(*embeddings)
        value = result[0] if isinstance(result, tuple) else result
    wanted, direct = tape.gradient(value, (embeddings, weights))
    gradients = [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in direct]
    for chunks, upstream in zip(passes, wanted, strict=True):
        if upstream is None:
            continue
        for index, part in chunks.backward(weights, upstream).items():
            before = gradients[index]
            gradients[index] = part if before is None else before + part
    return result, gradients


def _random_states(layers: Iterable[keras.layers.Layer]) -> list[Any]:
    states: dict[int, Any] = {}
    for outer in layers:
        for layer in outer._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
                raise UsageError(
                    f"Gradients are cached for rows that do not see each other, but {layer.path or layer.name!r} normalises over the "
                    "batch, and would do so over chunks. Freeze it (trainable=False), leave it out of the model, or do without chunks."
                )
            for generator in getattr(layer, "_seed_generators", []):
                states[id(generator)] = generator.state
    return list(states.values())


class _Chunks:
    """One encoder's way through its rows, twice."""

    def __init__(self, encoder: Callable[[Any], Any], rows: Any, size: int, states: list[Any]) -> None:
        self.encoder = encoder
        self.rows = tf.nest.map_structure(tf.convert_to_tensor, rows)
        self.size = size
        self.states = states
        self.count = tf.shape(tf.nest.flatten(self.rows)[0])[0]
        # Without any rows there is one empty chunk, from which the shape of embeddings is known.
        self.chunks = tf.maximum((self.count + size - 1) // size, 1)
        self.seeds: list[Any] = []

    def _encode(self, index: Any) -> Any:
        start = index * self.size
        stop = tf.minimum(start + self.size, self.count)
        return tf.cast(self.encoder(tf.nest.map_structure(lambda x: x[start:stop], self.rows)), tf.float32)

    def embed(self) -> Any:
        """All embeddings, float32; the random states before each chunk are kept."""
        shapes: list[tf.TensorShape] = []

        def body(index: Any, embeddings: Any, seeds: list[Any]) -> tuple[Any, Any, list[Any]]:
            # Kernels for lists of unsigned numbers are missing on some devices.
            kept = [
                seed.write(index, tf.cast(tf.convert_to_tensor(state), tf.int64))
                for seed, state in zip(seeds, self.states, strict=True)
            ]
            rows = self._encode(index)
            shapes.append(rows.shape)
            return index + 1, embeddings.write(index, rows), kept

        embeddings = tf.TensorArray(tf.float32, size=self.chunks, infer_shape=False)
        seeds = [tf.TensorArray(tf.int64, size=self.chunks, clear_after_read=False) for _ in self.states]
        _, embeddings, self.seeds = tf.while_loop(
            lambda index, *_: index < self.chunks, body, (0, embeddings, seeds), parallel_iterations=1
        )
        whole = embeddings.concat()
        return tf.ensure_shape(whole, [None, *shapes[-1][1:]])

    def backward(self, weights: list[Any], upstream: Any) -> dict[int, Any]:
        """The gradients for those of the weights that the encoder uses, by their place in the list."""
        reached: set[int] = set()

        def body(index: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
            for seed, state in zip(self.seeds, self.states, strict=True):
                state.assign(tf.cast(seed.read(index), state.dtype))
            with tf.GradientTape() as tape:
                rows = self._encode(index)
            start = index * self.size
            part = upstream[start : tf.minimum(start + self.size, self.count)]
            gradients = tape.gradient(rows, weights, output_gradients=part)
            reached.update(place for place, gradient in enumerate(gradients) if gradient is not None)
            return index + 1, [
                so_far if gradient is None else so_far + tf.cast(tf.convert_to_tensor(gradient), so_far.dtype)
                for so_far, gradient in zip(sums, gradients, strict=True)
            ]

        zeros = [tf.zeros(weight.shape, weight.dtype) for weight in weights]
        _, sums = tf.while_loop(lambda index, _: index < self.chunks, body, (0, zeros), parallel_iterations=1)
        return {place: sums[place] for place in sorted(reached)}
