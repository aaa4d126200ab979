"""Random changes of training pictures, in-graph and repeatable: the same seed gives the same picture."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tf_fashion.core.errors import UsageError
from tf_fashion.inputs.colour_jitter import colour_jitter


def affine_matrix(
    height: int | tf.Tensor,
    width: int | tf.Tensor,
    angle: Any,
    translate: tuple[Any, Any],
    scale: Any,
    center_offset: float = 0.0,
) -> tf.Tensor:
    """Six coefficients (a, b, c, d, e, f) of the map from output to source: x' = a x + b y + c, y' = d x + e y + f.

    With centre k = (width/2, height/2) + center_offset and m = 1/scale [[cos, sin], [-sin, cos]], the source of (x, y) is
    m ((x, y) - k - translate) + k, where pixel centres lie at halves.

    Args:
        height: Rows of the picture.
        width: Columns of the picture.
        angle: Degrees, counter-clockwise on the screen for negative values.
        translate: Shift (x, y) in pixels.
        scale: Enlargement.
        center_offset: 0, or 0.5 for torchvision before 0.6 (FashionIQ 2020).

    Returns:
        float64 (6,).
    """
    radians = tf.cast(angle, tf.float64) * (math.pi / 180.0)
    factor = 1.0 / tf.cast(scale, tf.float64)
    cos, sin = tf.cos(radians) * factor, tf.sin(radians) * factor
    centre_x = tf.cast(width, tf.float64) * 0.5 + center_offset
    centre_y = tf.cast(height, tf.float64) * 0.5 + center_offset
    from_x = -centre_x - tf.cast(translate[0], tf.float64)
    from_y = -centre_y - tf.cast(translate[1], tf.float64)
    return tf.stack([cos, sin, cos * from_x + sin * from_y + centre_x, -sin, cos, -sin * from_x + cos * from_y + centre_y])


def _nearest(image: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Nearest neighbour with black outside, in the 16.16 fixed-point arithmetic of Pillow."""
    shape = tf.shape(image)
    height, width = shape[0], shape[1]

    def fixed(value: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.floor(value * 65536.0 + 0.5), tf.int64)

    a, b, c, d, e, f = tf.unstack(matrix)
    rows = tf.cast(tf.range(height), tf.int64)[:, tf.newaxis]
    columns = tf.cast(tf.range(width), tf.int64)[tf.newaxis]
    x = (fixed(c + 0.5 * a + 0.5 * b) + columns * fixed(a) + rows * fixed(b)) // 65536
    y = (fixed(f + 0.5 * d + 0.5 * e) + columns * fixed(d) + rows * fixed(e)) // 65536
    wide, high = tf.cast(width, tf.int64), tf.cast(height, tf.int64)
    inside = (x >= 0) & (x < wide) & (y >= 0) & (y < high)
    place = tf.where(inside, y * wide + x, 0)
    picked = tf.gather(tf.reshape(image, (-1, 3)), place)
    return tf.where(inside[..., tf.newaxis], picked, tf.zeros((), image.dtype))


def affine(
    image: tf.Tensor,
    angle: Any = 0.0,
    translate: tuple[Any, Any] = (0.0, 0.0),
    scale: Any = 1.0,
    interpolation: str = "bilinear",
    center_offset: float = 0.0,
) -> tf.Tensor:
    """Turns, shifts and scales a picture about its centre; black comes in at the edges.

    Args:
        image: (height, width, 3), uint8 or float32.
        angle: See `affine_matrix`, as `translate`, `scale` and `center_offset`.
        interpolation: `nearest` (equal to Pillow's to the pixel) or `bilinear`.

    Returns:
        Same shape and type as `image`.
    """
    if interpolation not in ("nearest", "bilinear"):
        raise UsageError(f"affine(interpolation=...): expected 'nearest' or 'bilinear', found {interpolation!r}.")
    image = tf.convert_to_tensor(image)
    shape = tf.shape(image)
    matrix = affine_matrix(shape[0], shape[1], angle, translate, scale, center_offset)
    if interpolation == "nearest":
        return tf.ensure_shape(_nearest(image, matrix), image.shape)
    a, b, c, d, e, f = tf.unstack(matrix)
    # The op counts from pixel centres, the matrix from pixel corners.
    coefficients = [a, b, c + 0.5 * (a + b) - 0.5, d, e, f + 0.5 * (d + e) - 0.5, tf.zeros_like(a), tf.zeros_like(a)]
    turned = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=tf.cast(tf.stack(coefficients), tf.float32)[tf.newaxis],
        output_shape=shape[:2],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
    return tf.ensure_shape(turned, image.shape)


@dataclass(frozen=True)
class Augmentation:
    """Which random changes a training picture undergoes. Hashable and JSON-able; the default changes nothing but mirrors.

    Attributes:
        flip: Probability of mirroring left to right.
        rotate: Angles are uniform in -rotate..rotate degrees.
        translate: Shifts are whole pixels, uniform within this fraction of the side, each axis by itself.
        scale: Range of the enlargement.
        interpolation: Of the affine change, `bilinear` or `nearest`.
        center_offset: 0.5 turns about the point that torchvision before 0.6 used.
        crop_area: None, or the range of the fraction of the area that a random crop of the photo keeps, before resizing.
        crop_ratio: Range of the crop's width/height.
        crop_tries: 0: a random crop that is larger than the photo is cut to it, and resized as `ImageSpec.resize` has it. Above: as
            torchvision's RandomResizedCrop, with so many tries for a crop that fits, then the largest one in the middle, squashed to
            the square.
        side_below: None, or a side in pixels: the picture is squashed to a random side from S up to but not including this, of
            which a random square of S x S is kept.
        flip_first: Mirrors the photo in its full resolution, before it is resized. This makes a difference to interpolations that
            are not symmetrical (`bilinear_tf1`).
        brightness, contrast, saturation: Factors are uniform in 1-x..1+x.
        hue: Shift of the colour circle, uniform in -hue..hue (0..0.5).
        jitter: How the last four are done, always on the resized picture, so that resized pictures can be kept. `float`: one after
            the other in this order, without rounding, hue by TensorFlow. `pillow`: in a random order, with Pillow's arithmetic of
            whole grey levels (see `colour_jitter`).
    """

    flip: float = 0.5
    rotate: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    interpolation: str = "bilinear"
    center_offset: float = 0.0
    crop_area: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_tries: int = 0
    side_below: int | None = None
    flip_first: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter: str = "float"

    def __post_init__(self) -> None:
        for name in ("scale", "crop_area", "crop_ratio"):
            value = getattr(self, name)
            if value is None and name == "crop_area":
                continue
            if not isinstance(value, (tuple, list)) or len(value) != 2 or not 0 < value[0] <= value[1]:
                raise UsageError(f"Augmentation({name}=...): expected two positive numbers, low and high; found {value!r}.")
            object.__setattr__(self, name, (float(value[0]), float(value[1])))
        if self.side_below is not None and (isinstance(self.side_below, bool) or self.side_below < 2):
            raise UsageError(f"Augmentation(side_below=...): expected None or a number of pixels, found {self.side_below!r}.")
        if self.crop_area and self.crop_area[1] > 1:
            raise UsageError(f"Augmentation(crop_area=...): expected fractions up to 1, found {self.crop_area!r}.")
        if isinstance(self.crop_tries, bool) or self.crop_tries < 0 or (self.crop_tries and self.crop_area is None):
            raise UsageError(f"Augmentation(crop_tries=...): expected 0, or more with crop_area; found {self.crop_tries!r}.")
        for name, high in (
            ("flip", 1.0),
            ("translate", 1.0),
            ("brightness", 1.0),
            ("contrast", 1.0),
            ("saturation", 1.0),
            ("hue", 0.5),
        ):
            if not 0 <= getattr(self, name) <= high:
                raise UsageError(f"Augmentation({name}=...): expected a number in 0..{high:g}, found {getattr(self, name)!r}.")
        if self.interpolation not in ("nearest", "bilinear"):
            raise UsageError(f"Augmentation(interpolation=...): expected 'nearest' or 'bilinear', found {self.interpolation!r}.")
        if self.jitter not in ("float", "pillow"):
            raise UsageError(f"Augmentation(jitter=...): expected 'float' or 'pillow', found {self.jitter!r}.")

    @classmethod
    def fashion_iq_2020(cls, legacy: bool = False) -> Augmentation:
        """Mirror, up to 45 degrees, 15 % shift, 0.9..1.1; `legacy=True` adds nearest neighbour and the old centre."""
        modern = cls(flip=0.5, rotate=45.0, translate=0.15, scale=(0.9, 1.1))
        return dataclasses.replace(modern, interpolation="nearest", center_offset=0.5) if legacy else modern

    @classmethod
    def val(cls, crop: bool = True) -> Augmentation:
        """VAL's: mirror the photo, squash it to a side of S..279 pixels and cut S x S out of it; without `crop` only mirror it."""
        return cls(flip=0.5, flip_first=True, side_below=280 if crop else None)

    @classmethod
    def clip(cls) -> Augmentation:
        """CLIP's: a random crop of 90 to 100 % of the area, with a width of 3/4 to 4/3 of its height, squashed; no mirroring."""
        return cls(flip=0.0, crop_area=(0.9, 1.0), crop_tries=10)

    @classmethod
    def imaterialist(cls) -> Augmentation:
        """What the attribute predictor of iMaterialist was meant to be trained with: mirror, and torchvision's colour jitter.

        There the jitter comes before resizing; here after it, which is the same up to rounding and clipping.
        """
        return cls(flip=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, jitter="pillow")

    @property
    def on_pixels(self) -> bool:
        """Whether everything happens after resizing, so that resized pictures can be kept."""
        return self.crop_area is None and self.side_below is None and not self.flip_first

    def to_config(self) -> dict[str, Any]:
        """The fields as a JSON-able dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Augmentation:
        """The inverse of `to_config`; lists are taken for ranges.

        Raises:
            UsageError: unknown fields, or values out of range.
        """
        unknown = sorted(set(config) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UsageError(f"Augmentation: unknown fields {', '.join(unknown)} in the configuration.")
        return cls(**config)

    def __call__(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Changes one picture.

        Args:
            image: (height, width, 3), uint8 or float in 0..255.
            seed: int32 (2,).

        Returns:
            float32 (height, width, 3) in 0..255; a random crop is brought back to the old size.

        Raises:
            UsageError: `side_below` is set, which only `images.preprocess` can follow, as it knows the final size.
        """
        if self.side_below is not None:
            raise UsageError("Augmentation(side_below=...) is part of resizing: use tf_fashion.inputs.images.preprocess.")
        image = tf.cast(image, tf.float32)
        if not self.on_pixels:
            shape = tf.shape(image)
            image = tf.ensure_shape(tf.image.resize(self.before_resize(image, seed), shape[:2]), image.shape)
        return self.after_resize(image, seed)

    def before_resize(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """What happens to the photo in its full resolution: (h, w, 3) to (h', w', 3) of the same type."""
        if self.flip_first and self.flip:
            photo = tf.convert_to_tensor(image)
            image = tf.cond(tf.random.stateless_uniform((9,), seed)[0] < self.flip, lambda: photo[:, ::-1], lambda: photo)
        if self.crop_area is None:
            return image
        image = tf.convert_to_tensor(image)
        if self.crop_tries:
            top, left, height, width = tf.unstack(self.draw_box(tf.shape(image)[0], tf.shape(image)[1], seed))
            return image[top : top + height, left : left + width]
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        draw = tf.random.stateless_uniform((4,), seed + tf.constant([101, 0]))
        area = shape[0] * shape[1] * (self.crop_area[0] + draw[0] * (self.crop_area[1] - self.crop_area[0]))
        low, high = math.log(self.crop_ratio[0]), math.log(self.crop_ratio[1])
        ratio = tf.exp(low + draw[1] * (high - low))
        size = tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)])
        size = tf.cast(tf.clip_by_value(tf.round(size), 1.0, shape), tf.int32)
        room = tf.cast(tf.shape(image)[:2] - size + 1, tf.float32)
        corner = tf.minimum(tf.cast(draw[2:] * room, tf.int32), tf.shape(image)[:2] - size)
        return image[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]

    def draw_box(self, height: int | tf.Tensor, width: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The random crop of a photo with `crop_tries`: (top, left, height, width), int32 (4,).

        Raises:
            UsageError: `crop_area` or `crop_tries` is not set.
        """
        if self.crop_area is None or not self.crop_tries:
            raise UsageError("Augmentation.draw_box needs crop_area and crop_tries.")
        shape = tf.cast(tf.stack([height, width]), tf.float32)
        draw = tf.random.stateless_uniform((self.crop_tries, 2), seed + tf.constant([101, 0]))
        area = shape[0] * shape[1] * (self.crop_area[0] + draw[:, 0] * (self.crop_area[1] - self.crop_area[0]))
        low, high = math.log(self.crop_ratio[0]), math.log(self.crop_ratio[1])
        ratio = tf.exp(low + draw[:, 1] * (high - low))
        sizes = tf.round(tf.stack([tf.sqrt(area / ratio), tf.sqrt(area * ratio)], axis=1))
        fits = tf.reduce_all((sizes >= 1.0) & (sizes <= shape), axis=1)
        # The largest crop of an allowed shape, for a photo that is longer than all of these.
        least, most = self.crop_ratio
        whole = tf.maximum(tf.round(tf.minimum(shape, tf.stack([shape[1] / least, shape[0] * most]))), 1.0)
        found = tf.reduce_any(fits)
        size = tf.cast(tf.where(found, sizes[tf.argmax(fits)], whole), tf.int32)
        room = tf.cast(shape, tf.int32) - size
        place = tf.random.stateless_uniform((2,), seed + tf.constant([103, 0])) * tf.cast(room + 1, tf.float32)
        corner = tf.where(found, tf.minimum(tf.cast(place, tf.int32), room), room // 2)
        return tf.concat([corner, size], axis=0)

    def draw_crop(self, size: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Side, top and left of the square that `side_below` asks for, int32.

        Raises:
            UsageError: there is no side between `size` and `side_below`.
        """
        if self.side_below is None or size >= self.side_below:
            raise UsageError(f"Augmentation(side_below={self.side_below}): expected more than the picture's side, {size}.")
        seed = seed + tf.constant([211, 0])
        side = tf.random.stateless_uniform((), seed, size, self.side_below, tf.int32)
        corner = tf.random.stateless_uniform((2,), seed + tf.constant([1, 0]), 0, side - size + 1, tf.int32)
        return side, corner[0], corner[1]

    def after_resize(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Everything but the crop, on float32 (S, S, 3) in 0..255."""
        image = tf.cast(image, tf.float32)
        draw = tf.random.stateless_uniform((9,), seed)
        signed = 2.0 * draw - 1.0
        if self.flip and not self.flip_first:
            image = tf.cond(draw[0] < self.flip, lambda: image[:, ::-1], lambda: image)
        if self.rotate or self.translate or self.scale != (1.0, 1.0):
            shape = tf.cast(tf.shape(image), tf.float32)
            image = affine(
                image,
                angle=signed[1] * self.rotate,
                translate=(tf.round(signed[2] * self.translate * shape[1]), tf.round(signed[3] * self.translate * shape[0])),
                scale=self.scale[0] + draw[4] * (self.scale[1] - self.scale[0]),
                interpolation=self.interpolation,
                center_offset=self.center_offset,
            )
        if self.jitter == "pillow":
            return self._jittered(image, signed[5:], seed)
        if self.brightness:
            image = tf.clip_by_value(image * (1.0 + signed[5] * self.brightness), 0.0, 255.0)
        if self.contrast:
            grey = tf.reduce_mean(tf.image.rgb_to_grayscale(image))
            image = tf.clip_by_value(grey + (image - grey) * (1.0 + signed[6] * self.contrast), 0.0, 255.0)
        if self.saturation:
            grey = tf.image.rgb_to_grayscale(image)
            image = tf.clip_by_value(grey + (image - grey) * (1.0 + signed[7] * self.saturation), 0.0, 255.0)
        if self.hue:
            image = tf.clip_by_value(tf.image.adjust_hue(image / 255.0, signed[8] * self.hue), 0.0, 1.0) * 255.0
        return image

    def _jittered(self, image: tf.Tensor, draw: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Pillow's colour jitter of a float32 picture, with the four draws in -1..1 and an order of its own."""
        limits = [self.brightness, self.contrast, self.saturation, self.hue]
        wanted = [number for number, limit in enumerate(limits) if limit]
        if not wanted:
            return image
        order = tf.argsort(tf.random.stateless_uniform((len(wanted),), seed + tf.constant([307, 0])))
        factors = draw * limits + tf.constant([1.0, 1.0, 1.0, 0.0])
        levels = tf.cast(tf.floor(tf.clip_by_value(image, 0.0, 255.0) + 0.5), tf.uint8)
        return tf.cast(colour_jitter(levels, factors, tf.gather(wanted, order)), tf.float32)
