"""MobileNet v1 and ResNet v2 50 in the exact architecture of TF-slim, whose published weights they take.

keras.applications has networks of the same names with other padding, other epsilons and the stride at another place.
"""

from __future__ import annotations

from typing import Any

import keras

from tf_fashion.layers.normalization import batch_norm

_DEPTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
# Base depth, units, stride of the last unit.
_BLOCKS = ((64, 3, 2), (128, 4, 2), (256, 6, 2), (512, 3, 1))

MOBILENET_TAPS = {"low": "Conv2d_6_pointwise", "mid": "Conv2d_10_pointwise", "high": "Conv2d_13_pointwise"}
RESNET_TAPS = {"low": "block2_postnorm_relu", "mid": "block3_postnorm_relu", "high": "postnorm_relu"}


def _norm(x: Any, name: str, momentum: float, epsilon: float) -> Any:
    return batch_norm(name, momentum, epsilon)(x)


def mobilenet_v1(height: int | None, width: int | None, depth_multiplier: float = 1.0, momentum: float = 0.99) -> keras.Model:
    """MobileNet v1 (Howard et al., 2017) without its classifier.

    Args:
        height, width: Of the pictures; None for any.
        depth_multiplier: Factor of all depths, which do not fall below 8.
        momentum: Of the batch normalisations; slim's own 0.9997 needs about 10,000 steps.

    Returns:
        Functional model: `(batch, height, width, 3)` in -1..1 to the last map, of 1/32 of the sides. Each layer of slim is named as
        there, its batch normalisation `..._norm`, and its rectified result as the layer in `MOBILENET_TAPS`.
    """

    def depth(channels: int) -> int:
        return max(int(channels * depth_multiplier), 8)

    def finish(x: Any, name: str) -> Any:
        return keras.layers.ReLU(6.0, name=name)(_norm(x, f"{name}_norm", momentum, 1e-3))

    inputs = keras.Input((height, width, 3))
    options: dict[str, Any] = {"padding": "same", "use_bias": False}
    start = keras.initializers.TruncatedNormal(stddev=0.09)
    x = keras.layers.Conv2D(depth(32), 3, 2, kernel_initializer=start, name="Conv2d_0_conv", **options)(inputs)
    x = finish(x, "Conv2d_0")
    for number, (channels, stride) in enumerate(zip(_DEPTHS, _STRIDES, strict=True), start=1):
        name = f"Conv2d_{number}_depthwise"
        x = keras.layers.DepthwiseConv2D(3, stride, depthwise_initializer=start, name=f"{name}_conv", **options)(x)
        x = finish(x, name)
        name = f"Conv2d_{number}_pointwise"
        x = keras.layers.Conv2D(depth(channels), 1, kernel_initializer=start, name=f"{name}_conv", **options)(x)
        x = finish(x, name)
    return keras.Model(inputs, x, name="mobilenet_v1")


def resnet_v2_50(height: int | None, width: int | None, momentum: float = 0.99) -> keras.Model:
    """ResNet v2 50 (He et al., 2016) without its classifier; the stride of a block is in its last unit.

    Args:
        height, width: Of the pictures; None for any.
        momentum: Of the batch normalisations; slim's own is 0.997.

    Returns:
        Functional model: `(batch, height, width, 3)` in -1..1 to the last map, of 1/32 of the sides. VAL's two additional batch
        normalisations, of the results of blocks 2 and 3, are part of it; see `RESNET_TAPS`.
    """

    def conv(x: Any, channels: int, side: int, name: str, stride: int = 1, bias: bool = False) -> Any:
        if stride > 1:
            # slim pads by the kernel's size alone, whatever the picture's is.
            x = keras.layers.ZeroPadding2D(side // 2, name=f"{name}_pad")(x)
        return keras.layers.Conv2D(
            channels,
            side,
            stride,
            padding="valid" if stride > 1 else "same",
            use_bias=bias,
            kernel_initializer="he_normal",
            name=f"{name}_conv",
        )(x)

    def rectified(x: Any, name: str) -> Any:
        return keras.layers.ReLU(name=f"{name}_relu")(_norm(x, f"{name}_norm", momentum, 1e-5))

    def unit(x: Any, base: int, stride: int, name: str) -> Any:
        before = rectified(x, f"{name}_preact")
        if x.shape[-1] == 4 * base:
            shortcut = x if stride == 1 else keras.layers.MaxPooling2D(1, stride, name=f"{name}_subsample")(x)
        else:
            shortcut = keras.layers.Conv2D(4 * base, 1, stride, kernel_initializer="he_normal", name=f"{name}_shortcut_conv")(before)
        y = rectified(conv(before, base, 1, f"{name}_conv1"), f"{name}_conv1")
        y = rectified(conv(y, base, 3, f"{name}_conv2", stride), f"{name}_conv2")
        y = conv(y, 4 * base, 1, f"{name}_conv3", bias=True)
        return keras.layers.Add(name=f"{name}_add")([shortcut, y])

    inputs = keras.Input((height, width, 3))
    x = conv(inputs, 64, 7, "conv1", 2, bias=True)
    x = keras.layers.MaxPooling2D(3, 2, padding="same", name="pool1")(x)
    taps = {}
    for number, (base, units, stride) in enumerate(_BLOCKS, start=1):
        for index in range(1, units + 1):
            x = unit(x, base, stride if index == units else 1, f"block{number}_unit_{index}")
        if number in (2, 3):
            taps[number] = rectified(x, f"block{number}_postnorm")
    x = rectified(x, "postnorm")
    # The two maps on the side belong to the model, so that it can be cut at them.
    return keras.Model(inputs, [taps[2], taps[3], x], name="resnet_v2_50")
