"""Text encoders: padded word ids -> one vector per sentence.

Sentences are rows of word ids, padded at the end with id 0. Lengths are taken from the ids (position of the last id that is not
0) unless they are given, which is needed only where id 0 also stands for words inside or at the end of a sentence. The padding
never leaks into the result: the recurrent layers run over it, but only the valid steps are pooled, and backward layers start
at the last valid step.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_fashion.core.errors import UsageError
from tf_fashion.core.registry import Registry
from tf_fashion.layers import batch_norm, pool_sequence, reverse_sequence
from tf_fashion.layers.pooling import SEQUENCE_POOLINGS
from tf_fashion.layers.recurrent import GRU, LSTM

TEXT_ENCODERS: Registry[type[TextEncoder]] = Registry("text encoder")

HEADS = ("bn_dense", "dense", "dense_bn", None)
INITIALIZATIONS = ("keras", "torch", "glorot")


def sentence_lengths(token_ids: Any) -> Any:
    """Number of words up to and with the last id that is not 0.

    Args:
        token_ids: Integer tensor `(batch, steps)`.

    Returns:
        int32 tensor `(batch,)`, values in [0, steps].
    """
    positions = tf.range(1, tf.shape(token_ids)[1] + 1)
    return tf.reduce_max(tf.where(tf.not_equal(token_ids, 0), positions[None, :], 0), axis=1)


class _TorchUniform(keras.initializers.Initializer):
    """U(-bound, bound) with bound = 1/sqrt(fan); fan is the number of inputs of a kernel if not given."""

    def __init__(self, fan: int | None = None) -> None:
        self.fan = fan

    def __call__(self, shape: tuple, dtype: Any = None, **kwargs: Any) -> Any:
        bound = (self.fan or shape[0]) ** -0.5
        return keras.random.uniform(shape, -bound, bound, dtype=dtype)


class RecurrentStack(keras.layers.Layer):
    """Recurrent layers on top of each other, one or both ways, that return all steps.

    Args:
        cell: `"lstm"` or `"gru"` (the variant with the reset after the product, as cuDNN and PyTorch have it).
        units: Width of each direction.
        layers: Number of layers.
        dropout: Share of inputs dropped between layers in training.
        bidirectional: Whether a second set of layers reads backwards; its steps are appended to the forward ones'.
        initialization: `"keras"` (Glorot, orthogonal, forget bias 1), `"torch"` (all weights U(+-1/sqrt(units))) or `"glorot"`
            (input and recurrent kernel as one Glorot matrix, forget bias 1, as in TF1's cells).
        learned_initial_state: Whether the state before the first word is a weight (VAL) or zero.
        reset_after: The GRU's reset after the product (cuDNN, PyTorch) or before it (Cho et al., 2014; TF1's cell).

    Call arguments:
        sequence: Floating tensor `(batch, steps, width)`.
        lengths: Integer tensor `(batch,)`; used by the backward direction.

    Returns:
        Tensor `(batch, steps, units)`, or `2 * units` wide if bidirectional. Steps in the padding hold no meaning.
    """

    def __init__(
        self,
        cell: str,
        units: int,
        layers: int = 1,
        dropout: float = 0.0,
        bidirectional: bool = False,
        initialization: str = "keras",
        learned_initial_state: bool = False,
        reset_after: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.learned_initial_state = learned_initial_state
        self.reset_after = reset_after
        self.cell = cell
        self.units = units
        self.depth = layers
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.initialization = initialization

    def _layer(self, name: str, width: int) -> keras.layers.Layer:
        options: dict[str, Any] = {"return_sequences": True, "name": name, "dtype": self.dtype_policy}
        if self.initialization == "torch":
            for weight in ("kernel", "recurrent", "bias"):
                options[f"{weight}_initializer"] = _TorchUniform(self.units)
            if self.cell == "lstm":
                options["unit_forget_bias"] = False
        if self.initialization == "glorot":
            gates = 4 if self.cell == "lstm" else 2
            limit = (6.0 / (width + self.units + gates * self.units)) ** 0.5
            for weight in ("kernel", "recurrent"):
                options[f"{weight}_initializer"] = keras.initializers.RandomUniform(-limit, limit)
        if self.cell == "gru":
            options["reset_after"] = self.reset_after
        layer = (LSTM if self.cell == "lstm" else GRU)(self.units, **options)
        layer.build((None, None, width))
        return layer

    def _initial_state(self, name: str) -> list[Any]:
        """The weights h (and c) of a layer's learned start; nothing where it is zero."""
        if not self.learned_initial_state:
            return []
        limit = (3.0 / self.units) ** 0.5
        return [
            self.add_weight(name=f"{name}_{part}", shape=(self.units,), initializer=keras.initializers.RandomUniform(-limit, limit))
            for part in ("initial_h", "initial_c")[: 2 if self.cell == "lstm" else 1]
        ]

    def _run(self, layer: keras.layers.Layer, state: list[Any], sequence: Any) -> Any:
        if not state:
            return layer(sequence)
        rows = ops.shape(sequence)[0]
        start = [ops.broadcast_to(ops.cast(s, sequence.dtype)[None, :], (rows, self.units)) for s in state]
        return layer(sequence, initial_state=start if len(start) > 1 else start[0])

    def build(self, sequence_shape: tuple, lengths_shape: tuple | None = None) -> None:
        width = sequence_shape[-1]
        self.forward_layers, self.backward_layers = [], []
        self.forward_states, self.backward_states = [], []
        for index in range(self.depth):
            self.forward_layers.append(self._layer(f"{self.cell}_{index}", width))
            self.forward_states.append(self._initial_state(f"forward_{index}"))
            if self.bidirectional:
                self.backward_layers.append(self._layer(f"{self.cell}_{index}_backward", width))
                self.backward_states.append(self._initial_state(f"backward_{index}"))
            width = self.units * (2 if self.bidirectional else 1)
        self.drop = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)
        self.output_width = width
        self.built = True

    def call(self, sequence: Any, lengths: Any, training: bool | None = None) -> Any:
        for index, layer in enumerate(self.forward_layers):
            if index:
                sequence = self.drop(sequence, training=training)
            steps = self._run(layer, self.forward_states[index], sequence)
            if self.bidirectional:
                reversed_ = reverse_sequence(sequence, lengths)
                backward = self._run(self.backward_layers[index], self.backward_states[index], reversed_)
                steps = ops.concatenate([steps, reverse_sequence(backward, lengths)], axis=-1)
            sequence = steps
        return sequence

    def compute_output_shape(self, sequence_shape: tuple, lengths_shape: tuple | None = None) -> tuple:
        return (*sequence_shape[:-1], self.units * (2 if self.bidirectional else 1))


class TextEncoder(keras.layers.Layer):
    """Base of the text encoders: words -> embeddings -> (subclass) -> pooling -> head.

    A subclass defines `_build_body(width)`, which returns the width of its features, and `_body(sequence, lengths, training)`,
    which returns the sequences `(batch, steps, ...)` that are pooled and concatenated.

    Args:
        vocabulary_size: Number of word ids, with the padding's id 0.
        dim: Width of the result; without a head it follows from the body and must be None or equal to it.
        embedding_dim: Width of the word vectors.
        units: Width of the recurrent layers; `dim` if None.
        layers: Number of recurrent layers.
        pooling: `"last"`, `"max"` or `"mean"` over the valid steps.
        head: `"bn_dense"` (batch normalisation and a dense layer; head A of the FashionIQ 2020 entry), `"dense"` (head B),
            `"dense_bn"` (a dense layer without bias and batch normalisation; VAL), None.
        dropout: Share dropped between recurrent layers.
        head_bias: Whether the head's dense layer has a bias. Before a composer that begins with a batch normalisation it has no
            effect, and Adam would only amplify its rounding noise.
        output_dropout: Share of the pooled feature dropped before the dense layer (TIRG: 0.1).
        word_dropout: Share of words replaced by `word_dropout_id` in training.
        word_dropout_id: The id of the unknown word.
        trainable_embeddings: Whether the word vectors are trained.
        initialization: `"torch"`: as the originals (word vectors N(0, 1), the rest U(+-1/sqrt(width))); `"keras"`: Keras'
            defaults with word vectors U(+-0.05); `"glorot"`: Glorot everywhere, as VAL.
        norm_momentum, norm_epsilon: Of the head's batch normalisation.
        learned_initial_state, reset_after: See `RecurrentStack`.
        legacy_pool_padding: Pooling by maximum sees the zeros of the padding, so that the vector of a sentence depends on the longest
            one of its batch, as in the released VAL.
        legacy_padding_leak: Pooling sees what the recurrent layers make of the padding, as in RTIC's code: a sentence's vector
            depends on the longest one of its batch (pooling "last" takes the last padded step).

    Call arguments:
        token_ids: Integer tensor `(batch, steps)`, padded with 0 at the end.
        lengths: Optional integer tensor `(batch,)`, values in [0, steps].
        training: Whether dropout and batch statistics are used.

    Returns:
        Tensor `(batch, dim)`, not normalised. A sentence without words has a finite result.

    Raises:
        UsageError: an option has an unknown value, or sizes contradict each other.
    """

    default_pooling = "last"

    def __init__(
        self,
        vocabulary_size: int | None,
        dim: int | None = 512,
        embedding_dim: int = 300,
        units: int | None = None,
        layers: int = 1,
        pooling: str | None = None,
        head: str | None = "dense",
        dropout: float = 0.1,
        output_dropout: float = 0.0,
        head_bias: bool = True,
        word_dropout: float = 0.0,
        word_dropout_id: int = 0,
        trainable_embeddings: bool = True,
        initialization: str = "torch",
        norm_momentum: float = 0.9,
        norm_epsilon: float = 1e-5,
        learned_initial_state: bool = False,
        reset_after: bool = True,
        legacy_pool_padding: bool = False,
        legacy_padding_leak: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        pooling = pooling or self.default_pooling
        for option, value, known in (
            ("pooling", pooling, SEQUENCE_POOLINGS),
            ("head", head, HEADS),
            ("initialization", initialization, INITIALIZATIONS),
        ):
            if value not in known:
                raise UsageError(f"{type(self).__name__}: unknown {option} {value!r}. Known: {', '.join(map(str, known))}.")
        if head is not None and dim is None:
            raise UsageError(f"{type(self).__name__}: a head needs the width of its result; give `dim`.")
        if units is None and dim is None:
            raise UsageError(f"{type(self).__name__}: give `units` or `dim`.")
        if legacy_pool_padding and legacy_padding_leak:
            raise UsageError(
                f"{type(self).__name__}: legacy_pool_padding (VAL) pools zeros where legacy_padding_leak (RTIC) pools the "
                "padding's steps; set one of them."
            )
        self.vocabulary_size = vocabulary_size
        self.dim = dim
        self.embedding_dim = embedding_dim
        self.units = units
        self.depth = layers
        self.pooling = pooling
        self.head = head
        self.dropout = dropout
        self.output_dropout = output_dropout
        self.head_bias = head_bias
        self.word_dropout = word_dropout
        self.word_dropout_id = word_dropout_id
        self.trainable_embeddings = trainable_embeddings
        self.initialization = initialization
        self.norm_momentum = norm_momentum
        self.norm_epsilon = norm_epsilon
        self.learned_initial_state = learned_initial_state
        self.reset_after = reset_after
        self.legacy_pool_padding = legacy_pool_padding
        self.legacy_padding_leak = legacy_padding_leak
        self.seed_generator = keras.random.SeedGenerator() if word_dropout else None

    def _build_body(self, width: int) -> int:
        """Creates the layers between embeddings and pooling; returns the width of the pooled feature."""
        return width

    def _body(self, sequence: Any, lengths: Any, training: bool | None) -> list[Any]:
        return [sequence]

    def build(self, token_ids_shape: tuple, lengths_shape: tuple | None = None) -> None:
        start = {"torch": keras.initializers.RandomNormal(stddev=1.0), "keras": "uniform", "glorot": "glorot_uniform"}
        self.embedding = keras.layers.Embedding(
            self.vocabulary_size,
            self.embedding_dim,
            embeddings_initializer=start[self.initialization],
            trainable=self.trainable_embeddings,
            name="embedding",
            dtype=self.dtype_policy,
        )
        self.embedding.build((None, None))
        self._build_head(self._build_body(self.embedding_dim))
        self.built = True

    def _build_head(self, width: int) -> None:
        if self.head is None and self.dim not in (None, width):
            raise UsageError(f"{type(self).__name__} without a head gives vectors of width {width}, but `dim` is {self.dim}.")
        self.head_norm: Any = None
        if self.head in ("bn_dense", "dense_bn"):
            self.head_norm = batch_norm("head_norm", self.norm_momentum, self.norm_epsilon, dtype=self.dtype_policy)
            self.head_norm.build((None, self.dim if self.head == "dense_bn" else width))
        self.head_drop = keras.layers.Dropout(self.output_dropout, dtype=self.dtype_policy)
        self.head_dense = None
        if self.head is not None:
            options: dict[str, Any] = {}
            if self.initialization == "torch":
                options = {"kernel_initializer": _TorchUniform(), "bias_initializer": _TorchUniform(width)}
            if self.head == "dense_bn":
                options = {"kernel_initializer": "he_normal"}
            self.head_dense = keras.layers.Dense(
                self.dim,
                use_bias=self.head_bias and self.head != "dense_bn",
                name="head_dense",
                dtype=self.dtype_policy,
                **options,
            )
            self.head_dense.build((None, width))
        self.output_width = self.dim if self.head is not None else width

    def set_embedding_table(self, table: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Puts word vectors into the built layer (GloVe, say).

        Args:
            table: Floating array `(vocabulary_size, embedding_dim)`.
            rows: Boolean array `(vocabulary_size,)`: only these rows are set, the others keep their values; None sets all.

        Raises:
            UsageError: the layer is not built yet, or the shapes differ.
        """
        if not self.built:
            raise UsageError("set_embedding_table: the text encoder is not built yet; call it on a batch (or build it) first.")
        current = ops.convert_to_numpy(self.embedding.embeddings)
        table = np.asarray(table, dtype=current.dtype)
        if table.shape != current.shape:
            raise UsageError(f"set_embedding_table: expected a table of shape {current.shape}, found {table.shape}.")
        if rows is not None:
            table = np.where(np.asarray(rows, dtype=bool)[:, None], table, current)
        self.embedding.embeddings.assign(table)

    def sequences(self, token_ids: Any, lengths: Any = None, training: bool | None = None) -> tuple[list[Any], Any]:
        """The features of every step before pooling, and the lengths.

        Args:
            token_ids, lengths, training: As for the call.

        Returns:
            A list of tensors `(batch, steps, width)` (one per recurrent stack) and an int32 tensor `(batch,)`.
        """
        token_ids = tf.convert_to_tensor(token_ids)
        lengths = sentence_lengths(token_ids) if lengths is None else ops.cast(lengths, "int32")
        if training and self.word_dropout:
            drop = keras.random.uniform(ops.shape(token_ids), seed=self.seed_generator) < self.word_dropout
            token_ids = tf.where(drop, tf.cast(self.word_dropout_id, token_ids.dtype), token_ids)
        return self._body(self.embedding(token_ids), lengths, training), lengths

    def call(self, token_ids: Any, lengths: Any = None, training: bool | None = None) -> Any:
        sequences, lengths = self.sequences(token_ids, lengths, training)
        steps = ops.shape(token_ids)[1]
        if self.legacy_pool_padding:
            valid = tf.sequence_mask(lengths, steps)[:, :, None]
            sequences = [tf.where(valid, sequence, tf.zeros_like(sequence)) for sequence in sequences]
        if self.legacy_pool_padding or self.legacy_padding_leak:
            lengths = tf.fill([tf.shape(token_ids)[0]], steps)
        pooled = [pool_sequence(sequence, lengths, self.pooling) for sequence in sequences]
        return self._apply_head(ops.concatenate(pooled, axis=-1) if len(pooled) > 1 else pooled[0], training)

    def _apply_head(self, feature: Any, training: bool | None) -> Any:
        if self.head == "bn_dense":
            feature = self.head_norm(feature, training=training)
        feature = self.head_drop(feature, training=training)
        if self.head_dense is not None:
            feature = self.head_dense(feature)
        return self.head_norm(feature, training=training) if self.head == "dense_bn" else feature

    def compute_output_shape(self, token_ids_shape: tuple, lengths_shape: tuple | None = None) -> tuple:
        if not self.built:
            self.build(token_ids_shape)
        return (token_ids_shape[0], self.output_width)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "vocabulary_size": self.vocabulary_size,
            "dim": self.dim,
            "embedding_dim": self.embedding_dim,
            "units": self.units,
            "layers": self.depth,
            "pooling": self.pooling,
            "head": self.head,
            "dropout": self.dropout,
            "output_dropout": self.output_dropout,
            "head_bias": self.head_bias,
            "word_dropout": self.word_dropout,
            "word_dropout_id": self.word_dropout_id,
            "trainable_embeddings": self.trainable_embeddings,
            "initialization": self.initialization,
            "norm_momentum": self.norm_momentum,
            "norm_epsilon": self.norm_epsilon,
            "learned_initial_state": self.learned_initial_state,
            "reset_after": self.reset_after,
            "legacy_pool_padding": self.legacy_pool_padding,
            "legacy_padding_leak": self.legacy_padding_leak,
        }


class _RecurrentTextEncoder(TextEncoder):
    cells: tuple[str, ...] = ()
    bidirectional = False

    def _build_body(self, width: int) -> int:
        self.stacks = []
        for cell in self.cells:
            stack = RecurrentStack(
                cell,
                int(self.units or self.dim or 0),
                self.depth,
                self.dropout,
                self.bidirectional,
                self.initialization,
                self.learned_initial_state,
                self.reset_after,
                name=f"{cell}_stack",
                dtype=self.dtype_policy,
            )
            stack.build((None, None, width))
            self.stacks.append(stack)
        return sum(stack.output_width for stack in self.stacks)

    def _body(self, sequence: Any, lengths: Any, training: bool | None) -> list[Any]:
        return [stack(sequence, lengths, training=training) for stack in self.stacks]


@TEXT_ENCODERS.register("lstm")
@keras.saving.register_keras_serializable("tf_fashion")
class LSTMTextEncoder(_RecurrentTextEncoder):
    """Words through one or more LSTM layers. Arguments as `TextEncoder`."""

    cells = ("lstm",)


@TEXT_ENCODERS.register("gru")
@keras.saving.register_keras_serializable("tf_fashion")
class GRUTextEncoder(_RecurrentTextEncoder):
    """Words through one or more GRU layers. Arguments as `TextEncoder`."""

    cells = ("gru",)


@TEXT_ENCODERS.register("lstm_gru")
@keras.saving.register_keras_serializable("tf_fashion")
class LSTMGRUTextEncoder(_RecurrentTextEncoder):
    """LSTM and GRU layers side by side on the same words; the pooled features are concatenated [LSTM, GRU].

    The text tower of the FashionIQ 2020 entry (there 2 layers, 900-wide words, 2048 units), and with `pooling="max"` of RTIC.
    Arguments as `TextEncoder`.
    """

    cells = ("lstm", "gru")


@TEXT_ENCODERS.register("bilstm")
@keras.saving.register_keras_serializable("tf_fashion")
class BiLSTMTextEncoder(_RecurrentTextEncoder):
    """LSTM layers in both directions, max-pooled by default. Arguments as `TextEncoder`."""

    cells = ("lstm",)
    bidirectional = True
    default_pooling = "max"


@TEXT_ENCODERS.register("bigru")
@keras.saving.register_keras_serializable("tf_fashion")
class BiGRUTextEncoder(_RecurrentTextEncoder):
    """GRU layers in both directions, max-pooled by default. Arguments as `TextEncoder`."""

    cells = ("gru",)
    bidirectional = True
    default_pooling = "max"


@TEXT_ENCODERS.register("swem")
@keras.saving.register_keras_serializable("tf_fashion")
class SWEMTextEncoder(TextEncoder):
    """Mean and maximum of the word vectors, concatenated, then the head (Shen et al., ACL 2018).

    Arguments as `TextEncoder`; `units`, `layers`, `dropout`, `pooling` and the options of the padding are not used. With
    `vocabulary_size=None` the layer takes ready sentence vectors, floating `(batch, width)`, in place of word ids, and only the
    head remains.
    """

    default_pooling = "mean"

    def build(self, token_ids_shape: tuple, lengths_shape: tuple | None = None) -> None:
        if self.vocabulary_size is not None:
            super().build(token_ids_shape)
            return
        self._build_head(token_ids_shape[-1])
        self.built = True

    def _build_body(self, width: int) -> int:
        return 2 * width

    def call(self, token_ids: Any, lengths: Any = None, training: bool | None = None) -> Any:
        if self.vocabulary_size is None:
            return self._apply_head(token_ids, training)
        (words,), lengths = self.sequences(token_ids, lengths, training)
        pooled = [pool_sequence(words, lengths, "mean"), pool_sequence(words, lengths, "max")]
        return self._apply_head(ops.concatenate(pooled, axis=-1), training)
