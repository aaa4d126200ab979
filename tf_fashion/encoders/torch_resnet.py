"""ResNet, ResNeXt and Wide ResNet in the exact architecture of torchvision, whose published weights they take.

keras.applications has networks of the same names with another epsilon, biases in the convolutions and the stride of a bottleneck in
its first convolution; here the stride is in the 3x3 convolution ("v1.5").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.layers.normalization import batch_norm

# The convolution kernels of a CPU are slow with fewer input channels than this: so narrow groups are computed together.
_LEAST_WIDTH = 8

TORCH_RESNET_TAPS = {"stage1": "relu", "stage2": "layer1", "stage3": "layer2", "stage4": "layer3", "stage5": "layer4"}


@dataclass(frozen=True)
class ResNetKind:
    """Sizes of a network.

    Attributes:
        units: Units of the four stages.
        bottleneck: Whether a unit is 1x1, 3x3, 1x1 convolutions (of four times the base width at its end) or two 3x3 ones.
        groups: Groups of the 3x3 convolutions of bottlenecks.
        width: Channels per group of these at base width 64.
        planes: Base widths of the four stages; the first is the stem's.
    """

    units: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    width: int = 64
    planes: tuple[int, int, int, int] = (64, 128, 256, 512)


TORCH_RESNETS = {
    "resnet18": ResNetKind((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetKind((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetKind((3, 4, 6, 3)),
    "resnet101": ResNetKind((3, 4, 23, 3)),
    "resnet152": ResNetKind((3, 8, 36, 3)),
    "resnext50_32x4d": ResNetKind((3, 4, 6, 3), groups=32, width=4),
    "resnext101_32x8d": ResNetKind((3, 4, 23, 3), groups=32, width=8),
    "wide_resnet50_2": ResNetKind((3, 4, 6, 3), width=128),
    "wide_resnet101_2": ResNetKind((3, 4, 23, 3), width=128),
}


@keras.saving.register_keras_serializable("tf_fashion")
class SymmetricConv2D(keras.layers.Conv2D):
    """A convolution without bias whose input is padded by half the kernel on every side, whatever the stride; groups work on CPUs.

    Keras' "same" puts the odd pixel of a strided convolution below and right, PyTorch's padding does not. TensorFlow has no
    gradient of grouped convolutions on CPUs; there they are computed group by group.

    Args:
        filters, kernel_size, strides, groups: As for `keras.layers.Conv2D`; the kernel is square and its side odd.

    Call arguments:
        inputs: Floating tensor `(batch, height, width, channels)`.

    Returns:
        `(batch, ceil(height / stride), ceil(width / stride), filters)`.
    """

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, groups: int = 1, **kwargs: Any) -> None:
        # Fixed, but part of the configuration of the base class.
        for fixed in ("padding", "data_format", "use_bias"):
            kwargs.pop(fixed, None)
        # PyTorch's fans of a kernel of groups are Keras' too.
        kwargs.setdefault("kernel_initializer", keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"))
        super().__init__(filters, kernel_size, strides, data_format="channels_last", groups=groups, use_bias=False, **kwargs)
        if self.kernel_size[0] != self.kernel_size[1] or self.kernel_size[0] % 2 == 0:
            raise UsageError(f"SymmetricConv2D(kernel_size=...): expected one odd number, found {kernel_size!r}.")

    def call(self, inputs: Any) -> Any:
        if self.groups == 1 or tf.config.list_logical_devices("GPU"):
            return self._convolve(inputs, self.kernel)
        width = inputs.shape[-1] // self.groups
        joined = next((n for n in range(1, self.groups) if n * width >= _LEAST_WIDTH and self.groups % n == 0), self.groups)
        kernel = self._joined_kernel(joined) if joined > 1 else tf.convert_to_tensor(self.kernel)
        parts = zip(tf.split(inputs, self.groups // joined, -1), tf.split(kernel, self.groups // joined, -1), strict=True)
        return tf.concat([self._convolve(x, part) for x, part in parts], axis=-1)

    def _convolve(self, inputs: Any, kernel: Any) -> Any:
        pad = self.kernel_size[0] // 2
        if self.strides == (1, 1):
            return tf.nn.conv2d(inputs, kernel, 1, "SAME")
        if pad:
            inputs = tf.pad(inputs, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        return tf.nn.conv2d(inputs, kernel, self.strides, "VALID")

    def _joined_kernel(self, joined: int) -> tf.Tensor:
        """Each `joined` groups as one group whose kernel is zero between channels of different groups."""
        kernel = tf.convert_to_tensor(self.kernel)
        side, _, ours, filters = kernel.shape
        blocks = tf.reshape(kernel, (side, side, ours, self.groups // joined, joined, filters // self.groups))
        apart = tf.einsum("hwingo,gk->hwkingo", blocks, tf.eye(joined, dtype=kernel.dtype))
        return tf.reshape(apart, (side, side, joined * ours, filters))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        sides = [None if n is None else -(-n // stride) for n, stride in zip(input_shape[1:3], self.strides, strict=True)]
        return (input_shape[0], *sides, self.filters)


@keras.saving.register_keras_serializable("tf_fashion")
class SymmetricMaxPooling2D(keras.layers.Layer):
    """Maximum over windows of 3x3 at every second place, with one pixel of minus infinity around the map.

    Call arguments:
        inputs: Floating tensor `(batch, height, width, channels)`.

    Returns:
        `(batch, ceil(height / 2), ceil(width / 2), channels)`.
    """

    def call(self, inputs: Any) -> Any:
        return tf.nn.max_pool2d(inputs, 3, 2, [[0, 0], [1, 1], [1, 1], [0, 0]])

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], *(None if n is None else -(-n // 2) for n in input_shape[1:3]), input_shape[3])


def torch_resnet(
    kind: str | ResNetKind, height: int | None, width: int | None, momentum: float = 0.9, unbiased_variance: bool = False
) -> keras.Model:
    """A network of torchvision (He et al., CVPR 2016; Xie et al., CVPR 2017; Zagoruyko & Komodakis, 2016) without its classifier.

    Args:
        kind: Name in `TORCH_RESNETS`, or the sizes of another network of this family.
        height, width: Of the pictures; None for any.
        momentum: Of the batch normalisations, in Keras' sense.
        unbiased_variance: Of them too; see `FusedBatchNormalization`.

    Returns:
        Functional model: `(batch, height, width, 3)`, scaled by ImageNet's mean and deviation, to the last map, of 1/32 of the sides
        (rounded up). Layers are named as in torchvision's state dictionaries, with `_` in place of the dots (`layer1_0_conv1`).
        The map at the end of a stage is the layer `layer1` ... `layer4`, the one before the maximum pooling `relu`.

    Raises:
        UsageError: unknown `kind`.
    """
    name = kind if isinstance(kind, str) else "resnet"
    if isinstance(kind, str):
        if kind not in TORCH_RESNETS:
            raise UsageError(f"torch_resnet: unknown network {kind!r}. Known: {', '.join(TORCH_RESNETS)}.")
        kind = TORCH_RESNETS[kind]
    sizes = kind

    def conv_norm(x: Any, conv: str, norm: str, *options: int) -> Any:
        return batch_norm(norm, momentum, unbiased_variance=unbiased_variance)(SymmetricConv2D(*options, name=conv)(x))

    def unit(x: Any, stage: int, number: int, last: bool) -> Any:
        prefix, base = f"layer{stage}_{number}", sizes.planes[stage - 1]
        stride = 2 if stage > 1 and number == 0 else 1
        inner = base * sizes.width // 64 * sizes.groups
        plan = [(base, 3, stride, 1), (base, 3, 1, 1)]
        if sizes.bottleneck:
            plan = [(inner, 1, 1, 1), (inner, 3, stride, sizes.groups), (4 * base, 1, 1, 1)]
        shortcut = x
        if stride > 1 or x.shape[-1] != plan[-1][0]:
            shortcut = conv_norm(x, f"{prefix}_downsample_0", f"{prefix}_downsample_1", plan[-1][0], 1, stride)
        for part, options in enumerate(plan, start=1):
            x = conv_norm(x, f"{prefix}_conv{part}", f"{prefix}_bn{part}", *options)
            if part < len(plan):
                x = keras.layers.ReLU(name=f"{prefix}_relu{part}")(x)
        x = keras.layers.Add(name=f"{prefix}_add")([x, shortcut])
        return keras.layers.ReLU(name=f"layer{stage}" if last else f"{prefix}_relu")(x)

    inputs = keras.Input((height, width, 3))
    x = keras.layers.ReLU(name="relu")(conv_norm(inputs, "conv1", "bn1", sizes.planes[0], 7, 2))
    x = SymmetricMaxPooling2D(name="maxpool")(x)
    for stage, units in enumerate(sizes.units, start=1):
        for number in range(units):
            x = unit(x, stage, number, number == units - 1)
    return keras.Model(inputs, x, name=name)
