"""CLIP's two towers: pictures and captions to vectors of one space (Radford et al., "Learning Transferable Visual Models From
Natural Language Supervision", ICML 2021).

Layers and weights are those of keras_hub's `CLIPVisionEncoder` and `CLIPTextEncoder`, so what is trained or published for either
fits the other. What differs: the weights start as CLIP's do, positions count from the beginning (keras_hub's are all 0 until
weights are loaded), the last normalisation of the text has CLIP's epsilon, normalisations and projections are float32 under any
policy, and the forward pass leaves out what no feature depends on: padding, and all but one row of the last block.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import MissingExtraError, UsageError
from tf_fashion.core.files import hash_json
from tf_fashion.inputs.images import ImageSpec, scale_pixels

EPSILON = 1e-5
HEAD_WIDTH = 64
ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of both towers, under the names of OpenAI's configuration files, and what these take for granted.

    Attributes:
        embed_dim: Width of the common space.
        image_resolution: Side of the pictures, a multiple of `vision_patch_size`.
        vision_layers: Blocks of the vision tower.
        vision_width: Its width, a multiple of 64; it has `vision_width // 64` heads.
        vision_patch_size: Side of a patch.
        context_length: Longest caption in tokens, start and end included.
        vocab_size: Number of tokens; the end token is the last one.
        transformer_width: Width of the text tower.
        transformer_heads: Its heads.
        transformer_layers: Its blocks.
        activation: "quick_gelu" (z sigmoid(1.702 z): OpenAI's weights and those trained from them) or "gelu" (most of LAION's). The
            weights do not tell, and the other one gives slightly worse features without any error.

    Raises:
        UsageError: a size is no positive whole number, sizes do not divide each other, or the activation is unknown.
    """

    embed_dim: int = 512
    image_resolution: int = 224
    vision_layers: int = 12
    vision_width: int = 768
    vision_patch_size: int = 32
    context_length: int = 77
    vocab_size: int = 49408
    transformer_width: int = 512
    transformer_heads: int = 8
    transformer_layers: int = 12
    activation: str = "quick_gelu"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"CLIPConfig(activation=...): expected one of {', '.join(ACTIVATIONS)}; found {self.activation!r}.")
        for name, value in dataclasses.asdict(self).items():
            if name == "activation":
                continue
            if isinstance(value, (list, tuple)) and name == "vision_layers":
                raise UsageError("CLIPConfig(vision_layers=...): a list stands for CLIP's modified ResNets; only its ViTs are known.")
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise UsageError(f"CLIPConfig({name}=...): expected a positive whole number, found {value!r}.")
            object.__setattr__(self, name, int(value))
        for whole, part in (
            ("image_resolution", self.vision_patch_size),
            ("vision_width", HEAD_WIDTH),
            ("transformer_width", self.transformer_heads),
        ):
            if getattr(self, whole) % part:
                raise UsageError(f"CLIPConfig({whole}=...): expected a multiple of {part}, found {getattr(self, whole)}.")

    @property
    def vision_heads(self) -> int:
        """Heads of the vision tower: one per 64 of its width, always."""
        return self.vision_width // HEAD_WIDTH

    @property
    def grid(self) -> int:
        """Patches along a side of the picture."""
        return self.image_resolution // self.vision_patch_size

    def to_config(self) -> dict[str, Any]:
        """The fields as a JSON-able dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, config: str | Mapping[str, Any] | CLIPConfig) -> CLIPConfig:
        """A configuration from its name in `CLIP_CONFIGS`, from a dictionary of its fields, or itself.

        Raises:
            UsageError: unknown name or fields, or values as the class refuses them.
        """
        if isinstance(config, CLIPConfig):
            return config
        if isinstance(config, str):
            if config not in CLIP_CONFIGS:
                raise UsageError(f"Unknown CLIP model {config!r}. Known: {', '.join(CLIP_CONFIGS)}.")
            return CLIP_CONFIGS[config]
        if not isinstance(config, Mapping):
            raise UsageError(f"Expected a CLIPConfig, its fields, or one of {', '.join(CLIP_CONFIGS)}; found {config!r}.")
        unknown = sorted(set(config) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UsageError(f"CLIPConfig: unknown fields {', '.join(map(str, unknown))} in the configuration.")
        return cls(**config)


CLIP_CONFIGS: dict[str, CLIPConfig] = {
    "ViT-B/32": CLIPConfig(),
    "ViT-B/16": CLIPConfig(vision_patch_size=16),
    "ViT-L/14": CLIPConfig(
        embed_dim=768, vision_layers=24, vision_width=1024, vision_patch_size=14, transformer_width=768, transformer_heads=12
    ),
    "tiny": CLIPConfig(128, 64, 4, 192, 16, 32, 49408, 128, 2, 3),
}
"""Name of a model -> its sizes: OpenAI's ViTs, and "tiny", which learns from scratch on some thousand small pictures."""


def _keras_hub() -> Any:
    try:
        import keras_hub
    except ImportError:
        raise MissingExtraError("keras-hub", "clip", "A CLIP model") from None
    return keras_hub


# --- forward pass -------------------------------------------------------------------------------------------------------


@tf.custom_gradient
def _normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Layer normalisation of the rows of float32 (n, width); its gradient keeps one array instead of one per operation."""
    mean = tf.reduce_mean(x, axis=1, keepdims=True)
    centred = x - mean
    inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=1, keepdims=True) + EPSILON)
    unit = centred * inverse

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        along = upstream * unit
        scaled = upstream * gamma
        width = tf.cast(tf.shape(x)[1], x.dtype)
        first = tf.reduce_sum(scaled, axis=1, keepdims=True) / width
        second = tf.reduce_sum(scaled * unit, axis=1, keepdims=True) / width
        return inverse * (scaled - first - unit * second), tf.reduce_sum(along, axis=0), tf.reduce_sum(upstream, axis=0)

    return unit * gamma + beta, gradient


def _norm(layer: keras.layers.LayerNormalization, rows: tf.Tensor) -> tf.Tensor:
    """float32 in between, as CLIP does under any precision."""
    result = _normalize(tf.cast(rows, tf.float32), tf.cast(layer.gamma, tf.float32), tf.cast(layer.beta, tf.float32))
    return tf.cast(result, rows.dtype)


def _dense(layer: keras.layers.Layer, rows: tf.Tensor, width: int) -> tf.Tensor:
    """`rows @ kernel + bias` for (n, inputs); the kernel of an attention's dense layer has its heads as a further axis."""
    kernel = tf.reshape(tf.cast(layer.kernel, rows.dtype), (-1, width))
    return tf.nn.bias_add(tf.matmul(rows, kernel), tf.reshape(tf.cast(layer.bias, rows.dtype), (width,)))


def _block(layer: Any, x: tf.Tensor, causal: bool, only: tf.Tensor | None = None) -> tf.Tensor:
    """A block of keras_hub (pre-norm attention, then pre-norm quick-GELU network).

    Args:
        layer: `CLIPEncoderLayer`.
        x: (batch, length, width).
        causal: Whether a position sees only itself and what is before it.
        only: None, or int32 (batch,): the one position of each row that is wanted.

    Returns:
        (batch, length, width), or with `only` (batch, 1, width).
    """
    width, heads = layer.hidden_dim, layer.num_heads
    batch, length = tf.shape(x)[0], tf.shape(x)[1]
    attention = layer.attention

    def by_head(rows: tf.Tensor, number: Any) -> tf.Tensor:
        return tf.transpose(tf.reshape(rows, (batch, number, heads, width // heads)), (0, 2, 1, 3))

    rows = tf.reshape(x, (-1, width))
    normal = _norm(layer.layer_norm_1, rows)
    seen = normal
    wanted: Any = length
    if only is not None:
        wanted = 1
        place = tf.range(batch) * length + only
        rows, seen = tf.gather(rows, place), tf.gather(normal, place)
    query = by_head(_dense(attention.query_dense, seen, width) * (width // heads) ** -0.5, wanted)
    key = by_head(_dense(attention.key_dense, normal, width), length)
    value = by_head(_dense(attention.value_dense, normal, width), length)
    scores = tf.cast(tf.matmul(query, key, transpose_b=True), tf.float32)
    if causal:
        steps = tf.range(length)
        last = steps[tf.newaxis, tf.newaxis, :, tf.newaxis] if only is None else only[:, tf.newaxis, tf.newaxis, tf.newaxis]
        scores += tf.where(steps <= last, 0.0, -math.inf)
    mixed = tf.matmul(tf.cast(tf.nn.softmax(scores), x.dtype), value)
    rows += _dense(attention.output_dense, tf.reshape(tf.transpose(mixed, (0, 2, 1, 3)), (-1, width)), width)
    hidden = _dense(layer.dense_1, _norm(layer.layer_norm_2, rows), layer.intermediate_dim)
    hidden = tf.nn.silu(hidden, 1.702) if layer.intermediate_activation == "quick_gelu" else tf.nn.gelu(hidden)
    rows += _dense(layer.dense_2, hidden, width)
    return tf.reshape(rows, (batch, wanted, width))


def _tower_options(layers: int, width: int, heads: int, activation: str) -> dict[str, Any]:
    sizes = {"num_layers": layers, "hidden_dim": width, "num_heads": heads, "intermediate_dim": 4 * width}
    return {**sizes, "intermediate_activation": activation}


# --- initialisation -----------------------------------------------------------------------------------------------------


def _draw(variable: Any, deviation: float | None = None, limit: float | None = None) -> None:
    """Gives a variable values from N(0, deviation) or U(-limit, limit), seeded by Keras' global seed."""
    if limit is None:
        initializer: Any = keras.initializers.RandomNormal(0.0, deviation or 0.0)
    else:
        initializer = keras.initializers.RandomUniform(-limit, limit)
    variable.assign(initializer(variable.shape, variable.dtype))


def _start_vision_block(layer: Any) -> None:
    """PyTorch's defaults, as CLIP leaves them: Xavier for the stacked (3 width, width) matrix, U(+-1/sqrt(inputs)) elsewhere."""
    width = layer.hidden_dim
    for dense in (layer.attention.query_dense, layer.attention.key_dense, layer.attention.value_dense):
        _draw(dense.kernel, limit=math.sqrt(6.0 / (4 * width)))
    for dense in (layer.attention.output_dense, layer.dense_1):
        _draw(dense.kernel, limit=width**-0.5)
    _draw(layer.dense_2.kernel, limit=(4 * width) ** -0.5)
    _start_biases(layer)


def _start_text_block(layer: Any, layers: int) -> None:
    width = layer.hidden_dim
    for dense in (layer.attention.query_dense, layer.attention.key_dense, layer.attention.value_dense):
        _draw(dense.kernel, width**-0.5)
    for dense in (layer.attention.output_dense, layer.dense_2):
        _draw(dense.kernel, width**-0.5 * (2 * layers) ** -0.5)
    _draw(layer.dense_1.kernel, (2 * width) ** -0.5)
    _start_biases(layer)


def _start_biases(layer: Any) -> None:
    _draw(layer.dense_1.bias, limit=layer.hidden_dim**-0.5)
    _draw(layer.dense_2.bias, limit=(4 * layer.hidden_dim) ** -0.5)


# --- towers -------------------------------------------------------------------------------------------------------------


class _Tower(keras.layers.Layer):
    """What both towers share. `tower` is keras_hub's model with all weights but the projection's."""

    width: int
    tower: Any

    def __init__(self, config: str | Mapping[str, Any] | CLIPConfig = "ViT-B/32", **kwargs: Any) -> None:
        # Weights are cast where they are used, and pixels must not be rounded on the way in.
        super().__init__(autocast=False, **kwargs)
        self.config = CLIPConfig.of(config)

    def _project(self, layer: keras.layers.LayerNormalization, rows: tf.Tensor) -> tf.Tensor:
        """The last normalisation and the projection of (n, width), in float32."""
        return tf.matmul(_norm(layer, tf.cast(rows, tf.float32)), tf.cast(self.projection, tf.float32))

    def _add_projection(self, width: int) -> None:
        self.projection = self.add_weight(
            name="projection",
            shape=(width, self.config.embed_dim),
            initializer=keras.initializers.RandomNormal(0.0, width**-0.5),
            autocast=False,
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.to_config()}


@keras.saving.register_keras_serializable("tf_fashion")
class CLIPImageEncoder(_Tower):
    """CLIP's vision transformer. Use it wherever an `ImageEncoder` is taken.

    Args:
        config: A `CLIPConfig`, a dictionary of its fields, or a name in `CLIP_CONFIGS`.

    Call arguments:
        images: float `(batch, image_resolution, image_resolution, 3)`, RGB in 0..255; CLIP's scaling happens inside.

    Returns:
        `{"features": (batch, embed_dim)}` float32, not normalised.

    Raises:
        MissingExtraError: keras_hub is not installed.
        UsageError: `config` is unknown or makes no model.
    """

    def __init__(self, config: str | Mapping[str, Any] | CLIPConfig = "ViT-B/32", **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        config = self.config
        side = config.image_resolution
        self.tower = _keras_hub().models.CLIPVisionEncoder(
            patch_size=config.vision_patch_size,
            image_shape=(side, side, 3),
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="vision",
            **_tower_options(config.vision_layers, config.vision_width, config.vision_heads, config.activation),
        )
        self._add_projection(config.vision_width)
        self._start()
        self.built = True

    def _start(self) -> None:
        width, embedding = self.config.vision_width, self.tower.embedding
        _draw(embedding.class_embedding, width**-0.5)
        _draw(embedding.position_embedding.embeddings, width**-0.5)
        _draw(embedding.patch_embedding.kernel, limit=(3 * self.config.vision_patch_size**2) ** -0.5)
        embedding.position_ids.assign(np.arange(self.config.grid**2 + 1)[None])
        for layer in self.tower.encoder_layers:
            _start_vision_block(layer)

    @property
    def pooling(self) -> str:
        """Of an `ImageEncoder` that gives vectors, this is not None."""
        return "clip"

    @property
    def image_size(self) -> int:
        """Side of the pictures."""
        return self.config.image_resolution

    @property
    def image_spec(self) -> ImageSpec:
        """CLIP's own transform: short side to the size, bicubic with antialiasing, centre crop (pixels stay in 0..255)."""
        return ImageSpec.clip(self.image_size, "raw")

    @property
    def feature_dim(self) -> int:
        """Width of the vectors: `embed_dim`."""
        return self.config.embed_dim

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """`(feature_dim,)`."""
        return (self.feature_dim,)

    def _patches(self, images: Any) -> tf.Tensor:
        """(batch, grid * grid, width): every patch through one product, which is the convolution of CLIP."""
        config = self.config
        patch, grid = config.vision_patch_size, config.grid
        pixels = tf.cast(scale_pixels(tf.convert_to_tensor(images), "clip"), self.compute_dtype)
        cells = tf.transpose(tf.reshape(pixels, (-1, grid, patch, grid, patch, 3)), (0, 1, 3, 2, 4, 5))
        kernel = tf.cast(self.tower.embedding.patch_embedding.kernel, self.compute_dtype)
        rows = tf.matmul(tf.reshape(cells, (-1, patch * patch * 3)), tf.reshape(kernel, (-1, config.vision_width)))
        return tf.reshape(rows, (-1, grid * grid, config.vision_width))

    def _begin(self, patches: tf.Tensor) -> tf.Tensor:
        """Class token and positions added, then normalised: (batch, 1 + grid * grid, width)."""
        embedding, width = self.tower.embedding, self.config.vision_width
        token = tf.cast(embedding.class_embedding, patches.dtype)
        tokens = tf.broadcast_to(token, (tf.shape(patches)[0], 1, width))
        x = tf.concat([tokens, patches], axis=1) + tf.cast(embedding.position_embedding.embeddings, patches.dtype)
        return tf.reshape(_norm(self.tower.pre_layer_norm, tf.reshape(x, (-1, width))), tf.shape(x))

    def call(self, images: Any, training: bool | None = None) -> dict[str, Any]:
        x = self._begin(self._patches(images))
        layers = self.tower.encoder_layers
        for layer in layers[:-1]:
            x = _block(layer, x, causal=False)
        x = _block(layers[-1], x, causal=False, only=tf.zeros((tf.shape(x)[0],), tf.int32))
        return {"features": self._project(self.tower.layer_norm, x[:, 0])}

    def encode(self, images: Any, training: bool | None = None) -> Any:
        """Vectors `(batch, embed_dim)` float32 of pictures `(batch, size, size, 3)` in 0..255."""
        return self(images, training=training)["features"]

    def hidden_states(self, images: Any) -> dict[str, Any]:
        """What is between pixels and vectors, for pictures as in the call.

        Returns:
            `patches` `(batch, grid, grid, width)`; `ln_pre` and `block0`, `block1`, ... `(batch, 1 + grid * grid, width)`, the class
            token first, then the patches row by row; `pooled` `(batch, width)`, the class token after the last normalisation.
        """
        grid, width = self.config.grid, self.config.vision_width
        patches = self._patches(images)
        states = {"patches": tf.reshape(patches, (-1, grid, grid, width)), "ln_pre": self._begin(patches)}
        x = states["ln_pre"]
        for number, layer in enumerate(self.tower.encoder_layers):
            states[f"block{number}"] = x = _block(layer, x, causal=False)
        return {**states, "pooled": _norm(self.tower.layer_norm, tf.cast(x[:, 0], tf.float32))}

    def compute_output_shape(self, input_shape: tuple) -> dict[str, tuple]:
        return {"features": (input_shape[0], self.feature_dim)}

    def fingerprint(self) -> str:
        """Hash of everything that decides the features of a photo: weights, sizes, precision, image spec."""
        weights = [hashlib.sha256(np.ascontiguousarray(variable).tobytes()).hexdigest() for variable in self.variables]
        config = {"clip": self.config.to_config(), "dtype": self.compute_dtype}
        return hash_json({**config, "weights": weights, "spec": self.image_spec.fingerprint()})


@keras.saving.register_keras_serializable("tf_fashion")
class CLIPTextEncoder(_Tower):
    """CLIP's text transformer: captions to the vector at their end token.

    Args:
        config: A `CLIPConfig`, a dictionary of its fields, or a name in `CLIP_CONFIGS`.
        trim_padding: Leaves out the columns behind the longest caption of a batch. No vector depends on them, as a position sees
            only what is before it. The number of columns then depends on the batch, which XLA cannot compile.

    Call arguments:
        token_ids: Integers `(batch, steps)` in [0, vocab_size), `steps` at most `context_length`, padded with 0. The end of a
            caption is its first largest id (the end token is the largest there is); without one, the first token.
        lengths: Not used; taken so that it can stand for other text encoders.

    Returns:
        `(batch, embed_dim)` float32, not normalised.

    Raises:
        MissingExtraError: keras_hub is not installed.
        UsageError: `config` is unknown or makes no model; or captions are longer than `context_length`.
    """

    def __init__(self, config: str | Mapping[str, Any] | CLIPConfig = "ViT-B/32", trim_padding: bool = True, **kwargs: Any) -> None:
        super().__init__(config, **kwargs)
        config = self.config
        self.trim_padding = trim_padding
        self.supports_jit = not trim_padding
        self.tower = _keras_hub().models.CLIPTextEncoder(
            vocabulary_size=config.vocab_size,
            embedding_dim=config.transformer_width,
            max_sequence_length=config.context_length,
            dtype=self.dtype_policy,
            name="text",
            **_tower_options(config.transformer_layers, config.transformer_width, config.transformer_heads, config.activation),
        )
        # For those who call keras_hub's model itself.
        self.tower.layer_norm.epsilon = EPSILON
        self._add_projection(config.transformer_width)
        self._start()
        self.built = True

    def _start(self) -> None:
        embedding = self.tower.embedding
        _draw(embedding.token_embedding.embeddings, 0.02)
        _draw(embedding.position_embedding.position_embeddings, 0.01)
        for layer in self.tower.encoder_layers:
            _start_text_block(layer, self.config.transformer_layers)

    @property
    def feature_dim(self) -> int:
        """Width of the vectors: `embed_dim`."""
        return self.config.embed_dim

    def _begin(self, token_ids: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Embedded tokens with positions, (batch, steps, width), and the place of each caption's end, int32 (batch,)."""
        token_ids = tf.cast(tf.convert_to_tensor(token_ids), tf.int32)
        steps, limit = token_ids.shape[1], self.config.context_length
        if steps is not None and steps > limit:
            raise UsageError(f"CLIPTextEncoder: expected captions of at most {limit} tokens, found {steps}. Pack them to {limit}.")
        end = tf.argmax(token_ids, axis=1, output_type=tf.int32)
        if self.trim_padding:
            # At least one column, for a batch of no rows.
            token_ids = token_ids[:, : tf.maximum(tf.reduce_max(end), 0) + 1]
        embedding = self.tower.embedding
        words = embedding.token_embedding(token_ids)
        places = tf.cast(embedding.position_embedding.position_embeddings, words.dtype)[: tf.shape(token_ids)[1]]
        return words + places, end

    def call(self, token_ids: Any, lengths: Any = None, training: bool | None = None) -> Any:
        x, end = self._begin(token_ids)
        layers = self.tower.encoder_layers
        for layer in layers[:-1]:
            x = _block(layer, x, causal=True)
        x = _block(layers[-1], x, causal=True, only=end)
        return self._project(self.tower.layer_norm, x[:, 0])

    def hidden_states(self, token_ids: Any) -> dict[str, Any]:
        """What is between words and vectors, for captions as in the call.

        Returns:
            `block0`, `block1`, ... and, after the last normalisation, `ln_final`: `(batch, steps, width)`; with `trim_padding` only the
            steps of the longest caption.
        """
        x, _ = self._begin(token_ids)
        states = {}
        for number, layer in enumerate(self.tower.encoder_layers):
            states[f"block{number}"] = x = _block(layer, x, causal=True)
        rows = _norm(self.tower.layer_norm, tf.reshape(tf.cast(x, tf.float32), (-1, self.config.transformer_width)))
        return {**states, "ln_final": tf.reshape(rows, tf.shape(x))}

    def compute_output_shape(self, token_ids_shape: tuple, lengths_shape: tuple | None = None) -> tuple:
        return (token_ids_shape[0], self.feature_dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "trim_padding": self.trim_padding}
