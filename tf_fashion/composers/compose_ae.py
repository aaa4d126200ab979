"""ComposeAE: the text turns the image feature in a complex space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tf_fashion.composers.base import COMPOSERS, Composer
from tf_fashion.core.errors import UsageError
from tf_fashion.layers import batch_norm

INPUTS_OF_CONVOLUTION = 5


class _Perceptron(keras.layers.Layer):
    """`W2 relu(drop(W1 act(BN(x))))` to width `dim`; `act` is relu or nothing. The hidden layer is `hidden` wide."""

    def __init__(self, hidden: int, dim: int, relu_first: bool, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.widths = (hidden, dim)
        self.relu_first = relu_first
        self.dropout = dropout

    def build(self, x_shape: tuple) -> None:
        layers = {"dtype": self.dtype_policy}
        self.norm = batch_norm("norm", **layers)
        self.hidden = keras.layers.Dense(self.widths[0], name="hidden", **layers)
        self.drop = keras.layers.Dropout(self.dropout, name="drop", **layers)
        self.out = keras.layers.Dense(self.widths[1], name="out", **layers)
        self.norm.build((None, x_shape[-1]))
        self.hidden.build((None, x_shape[-1]))
        self.drop.build((None, self.widths[0]))
        self.out.build((None, self.widths[0]))
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        x = self.norm(x, training=training)
        x = self.hidden(ops.relu(x) if self.relu_first else x)
        return self.out(ops.relu(self.drop(x, training=training)))


@COMPOSERS.register("compose_ae")
@keras.saving.register_keras_serializable("tf_fashion")
class ComposeAE(Composer):
    """The text as a rotation of the image feature, and decoders that bring both back (Anwaar et al., WACV 2021).

    Two paths with their own perceptrons give a modulus m (from the image) and an angle d (from the text) of width dim, and from
    them `re = m cos(d)`, `im = c m sin(d)`. One path maps [re; im] to width dim; the other puts (m, d, image, re, im) as channels of
    a sequence of length dim through a convolution of width 3, a maximum over parts of it, and the same kind of mapping. The query is
    `a0 * convolution path + a1 * linear path` with two learned scalars. c is 1; `reverse` composes with the conjugate, c = -1.

    With the default weights, two losses are added in training: the mean squared differences between image and decoded query, and
    between text and decoded query. The third loss of the paper needs the target: match `reverse(target, text)` with the source
    images, with the same loss as for the queries, and add 0.01 of it (the original's factor).

    Args:
        dropout: Share of the hidden units of the image's perceptrons dropped in training, in [0, 1).
        conv_channels: Channels of the convolution, even; twice the image feature's width must be a multiple of it.
        initial_scalars: Start values of a0 (convolution path) and a1 (linear path).
        image_weight: Factor of the image's reconstruction loss; with 0 there is no image decoder.
        text_weight: Factor of the text's reconstruction loss; with 0 there is no text decoder.
        legacy_conjugate: c is -1 in both directions, as in RTIC's copy of the code.

    Raises:
        UsageError: an option, or the image feature's width, does not fit.
    """

    normalizes_text = True

    def __init__(
        self,
        dropout: float = 0.5,
        conv_channels: int = 64,
        initial_scalars: Sequence[float] = (1.0, 10.0),
        image_weight: float = 0.1,
        text_weight: float = 0.1,
        legacy_conjugate: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if len(initial_scalars) != 2:
            raise UsageError(f"initial_scalars: expected two numbers (convolution path, linear path), found {initial_scalars!r}.")
        if conv_channels < 2 or conv_channels % 2:
            raise UsageError(f"ComposeAE(conv_channels=...): expected an even number from 2 on, found {conv_channels!r}.")
        self.dropout = dropout
        self.conv_channels = conv_channels
        self.initial_scalars = tuple(float(a) for a in initial_scalars)
        self.image_weight = image_weight
        self.text_weight = text_weight
        self.legacy_conjugate = legacy_conjugate

    def build(self, image_shape: tuple, text_shape: tuple) -> None:
        dim, text_dim = image_shape[-1], text_shape[-1]
        if 2 * dim % self.conv_channels:
            raise UsageError(
                f"ComposeAE cuts image features into parts of conv_channels / 2 = {self.conv_channels // 2} numbers, which their width "
                f"{dim} is no multiple of. Choose another `dim`, or conv_channels among the even divisors of {2 * dim}."
            )
        layers = {"dtype": self.dtype_policy}
        self.scalars = self.add_weight(
            name="scalars",
            shape=(2,),
            initializer=lambda shape, dtype: ops.convert_to_tensor(self.initial_scalars, dtype),
        )
        for path in ("linear", "conv"):
            modulus = _Perceptron(dim, dim, relu_first=False, dropout=self.dropout, name=f"{path}_modulus", **layers)
            angle = _Perceptron(dim, dim, relu_first=False, name=f"{path}_angle", **layers)
            mapping = _Perceptron(dim, dim, relu_first=True, name=f"{path}_mapping", **layers)
            for part, layer, width in (("modulus", modulus, dim), ("angle", angle, text_dim), ("mapping", mapping, 2 * dim)):
                layer.build((None, width))
                setattr(self, f"{path}_{part}", layer)
        self.convolution = keras.layers.Conv1D(self.conv_channels, 3, padding="same", name="convolution", **layers)
        self.convolution.build((None, dim, INPUTS_OF_CONVOLUTION))
        self.image_decoder = self.text_decoder = None
        if self.image_weight:
            self.image_decoder = _Perceptron(dim, dim, relu_first=True, name="image_decoder", **layers)
            self.image_decoder.build((None, dim))
        if self.text_weight:
            self.text_decoder = _Perceptron(dim, text_dim, relu_first=True, name="text_decoder", **layers)
            self.text_decoder.build((None, dim))
        self.built = True

    def _turn(self, path: str, image: Any, text: Any, sign: float, training: bool | None) -> tuple[Any, Any, Any, Any]:
        """Angle, modulus, real and imaginary part `(batch, dim)`."""
        angle = getattr(self, f"{path}_angle")(text, training=training)
        modulus = getattr(self, f"{path}_modulus")(image, training=training)
        return angle, modulus, modulus * ops.cos(angle), sign * modulus * ops.sin(angle)

    def _compose(self, image: Any, text: Any, sign: float, training: bool | None) -> Any:
        sign = -1.0 if self.legacy_conjugate else sign
        *_, re, im = self._turn("linear", image, text, sign, training)
        linear = self.linear_mapping(ops.concatenate([re, im], axis=-1), training=training)
        angle, modulus, re, im = self._turn("conv", image, text, sign, training)
        x = self.convolution(ops.stack([modulus, angle, image, re, im], axis=-1))
        part = self.conv_channels // 2
        x = ops.max(ops.reshape(x, (-1, x.shape[1] // part, part, self.conv_channels)), axis=2)
        x = ops.reshape(ops.transpose(x, (0, 2, 1)), (-1, x.shape[1] * x.shape[2]))
        conv = self.conv_mapping(x, training=training)
        scalars = ops.cast(self.scalars, linear.dtype)
        return scalars[0] * conv + scalars[1] * linear

    def reverse(self, target: Any, text: Any, training: bool | None = None) -> Any:
        """The source as seen from the target: target features composed with the conjugate of the text.

        Args:
            target: Features of the wanted images `(batch, dim)`.
            text: Text features `(batch, text_dim)`.
            training: Whether batch statistics and dropout are used.

        Returns:
            Tensor `(batch, dim)`, not normalised, to be matched with the reference images' features.
        """
        return self._compose(ops.cast(target, self.compute_dtype), ops.cast(text, self.compute_dtype), -1.0, training)

    def reconstructions(self, query: Any, training: bool | None = None) -> tuple[Any, Any]:
        """The image feature `(batch, dim)` and the text feature `(batch, text_dim)` as decoded from a composed query.

        Raises:
            UsageError: there are no decoders, because a weight is 0.
        """
        if self.image_decoder is None or self.text_decoder is None:
            raise UsageError("ComposeAE has no decoder for a loss of weight 0; give image_weight and text_weight above 0.")
        query = ops.cast(query, self.compute_dtype)
        return self.image_decoder(query, training=training), self.text_decoder(query, training=training)

    def call(self, image: Any, text: Any, training: bool | None = None) -> Any:
        query = self._compose(image, text, 1.0, training)
        if training:
            for decoder, weight, wanted in (
                (self.image_decoder, self.image_weight, image),
                (self.text_decoder, self.text_weight, text),
            ):
                if decoder is not None:
                    difference = ops.cast(decoder(query, training=training), "float32") - ops.cast(wanted, "float32")
                    self.add_loss(weight * ops.mean(ops.square(difference)))
        return query

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dropout": self.dropout,
            "conv_channels": self.conv_channels,
            "initial_scalars": list(self.initial_scalars),
            "image_weight": self.image_weight,
            "text_weight": self.text_weight,
            "legacy_conjugate": self.legacy_conjugate,
        }
