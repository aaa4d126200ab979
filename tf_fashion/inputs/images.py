"""From encoded bytes to the pixels a model sees: one definition for training, evaluation and serving.

Everything here runs inside a TensorFlow graph, so the same code sits in a tf.data pipeline and in an exported model. Formats:
JPEG, PNG, GIF (first frame), BMP and WebP (moving ones are refused). The size in the header is checked before anything is
decoded, so that a small file cannot unfold into gigabytes.

What happens to unusual pictures: the EXIF orientation of a JPEG is honoured (PNG and WebP orientation tags are not); transparent
pixels of PNG and WebP are laid on white, a GIF's become black; CMYK JPEGs are converted by libjpeg; 16-bit PNGs keep their high
byte.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import hash_json

RESIZE_MODES = ("squash", "pad", "crop", "target_pad", "square_pad")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "bilinear_tf1")
SCALINGS = ("tf", "torch", "clip", "imaterialist", "imaterialist_rounded", "caffe", "unit", "raw")
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP")
MAX_SIDE = 65_535

# First 16 bytes by format, -1 where anything may stand.
_MAGIC = [
    [*magic, *([-1] * (16 - len(magic)))]
    for magic in (
        [0xFF, 0xD8, 0xFF],
        [*b"\x89PNG\r\n\x1a\n", -1, -1, -1, -1, *b"IHDR"],
        [*b"GIF8"],
        [*b"BM"],
        [*b"RIFF", -1, -1, -1, -1, *b"WEBP"],
    )
]

_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}
# Pixels to either side that a filter looks at, at scale 1.
_REACH = {"nearest": 1, "bilinear": 1, "bicubic": 2}
# A JPEG is decoded in part where that is at most this fraction of the picture: of wide ones, and of those with rows below the
# part, where looking for damage costs something. Above, partial decoding saves nothing.
_WORTH_CUTTING = (0.85, 0.8)
_STATISTICS = {
    "torch": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    # Of a thousand training photos of iMaterialist 2018, and as the attribute predictor's notebooks have them.
    "imaterialist": (
        (0.6765103936195374, 0.6347460150718689, 0.6207206845283508),
        (0.3283524215221405, 0.33712077140808105, 0.3378842771053314),
    ),
    "imaterialist_rounded": ((0.6765, 0.6347, 0.6207), (0.3284, 0.3371, 0.3379)),
}
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
# Raise when the same ImageSpec starts to give other pixels, so that cached features are not mistaken for current ones.
_PIXEL_VERSION = 1


@dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes a square float array. Hashable, and JSON-able with `to_config`.

    Attributes:
        size: Side S of the result in pixels.
        resize: `squash` (both sides to S, aspect ratio lost); `pad` (long side to S, rest filled by mirroring, FashionIQ 2020);
            `crop` (short side to S, centre crop); `target_pad` (black bars until long/short <= `pad_ratio`, then `crop`;
            CLIP4Cir); `square_pad` (black bars to a square, then `crop`).
        interpolation: `nearest`, `bilinear`, `bicubic`, or `bilinear_tf1` (TensorFlow 1's, which samples from pixel corners and
            never antialiases: what networks trained with TF1 programs saw; only with `squash`).
        antialias: Filter as wide as the reduction, equal to Pillow's result within 1 grey level. Without it shrinking is faster
            and coarser. `nearest` ignores it and equals Pillow's.
        scaling: `tf` (-1..1), `torch` (ImageNet mean and deviation), `clip` (CLIP's), `imaterialist` (its mean and
            deviation, of which `imaterialist_rounded` has four digits), `caffe` (BGR minus the ImageNet mean), `unit` (0..1) or
            `raw` (0..255).
        pad_ratio: Largest long/short side for `target_pad`.
        max_pixels: Larger pictures are refused before decoding.
        max_bytes: Larger files are refused.
        fast_decode: Lets libjpeg shrink large JPEGs by 2, 4 or 8 while decoding (never below twice `size`); about a third
            faster on large photos, with slightly other pixels.
    """

    size: int = 224
    resize: str = "squash"
    interpolation: str = "bilinear"
    antialias: bool = True
    scaling: str = "torch"
    pad_ratio: float = 1.25
    max_pixels: int = 50_000_000
    max_bytes: int = 20_000_000
    fast_decode: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "max_pixels", "max_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"ImageSpec({name}=...): expected a positive whole number, found {value!r}.")
        for name, known in (("resize", RESIZE_MODES), ("interpolation", INTERPOLATIONS), ("scaling", SCALINGS)):
            if getattr(self, name) not in known:
                raise UsageError(f"ImageSpec({name}=...): expected one of {', '.join(known)}; found {getattr(self, name)!r}.")
        if self.interpolation == "bilinear_tf1" and self.resize != "squash":
            raise UsageError(f"ImageSpec(interpolation='bilinear_tf1') needs resize='squash', found {self.resize!r}.")
        if not self.pad_ratio >= 1:
            raise UsageError(f"ImageSpec(pad_ratio=...): expected a number of at least 1, found {self.pad_ratio!r}.")

    def to_config(self) -> dict[str, Any]:
        """The fields as a JSON-able dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ImageSpec:
        """The inverse of `to_config`.

        Raises:
            UsageError: unknown fields, or values out of range.
        """
        unknown = sorted(set(config) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UsageError(f"ImageSpec: unknown fields {', '.join(unknown)} in the configuration.")
        return cls(**config)

    @classmethod
    def clip(cls, size: int = 224, scaling: str = "clip") -> ImageSpec:
        """CLIP's transform: shorter side to `size`, bicubic with antialiasing, centre crop; within a grey level of Pillow's."""
        return cls(size=size, resize="crop", interpolation="bicubic", scaling=scaling)

    def fingerprint(self) -> str:
        """SHA-256 of all that decides the pixel values (the limits do not), to key cached features."""
        config = {key: value for key, value in self.to_config().items() if key not in ("max_pixels", "max_bytes")}
        return hash_json({**config, "pixels": _PIXEL_VERSION})


# Nothing here needs AutoGraph, and tracing is several times faster without it.
_plain = tf.autograph.experimental.do_not_convert


# --- geometry ---------------------------------------------------------------------------------------------------------


def padded_geometry(height: int, width: int, size: int) -> tuple[int, int, int, int, int, int]:
    """Inner size and margins of the `pad` mode: `(inner_width, inner_height, left, right, top, bottom)`.

    The short side is truncated, not rounded, as in the FashionIQ 2020 entry; so a square picture can get one row less than
    `size`. A side never falls below one pixel.
    """
    ratio = size / (height if height > width else width)
    inner_w, inner_h = (max(1, int(width * ratio)), size) if height > width else (size, max(1, int(height * ratio)))
    left, top = (size - inner_w) // 2, (size - inner_h) // 2
    return inner_w, inner_h, left, size - inner_w - left, top, size - inner_h - top


def _hidden(constant: tf.Tensor, positive: tf.Tensor) -> tf.Tensor:
    """`constant`, hidden from the graph optimiser, which would turn x / constant into x * (1 / constant) and move ties."""
    return tf.maximum(constant, tf.minimum(positive, 0))


def _padded_inner(height: tf.Tensor, width: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    tall = height > width
    # float64, as in Python: float32 truncates to other integers.
    ratio = tf.constant(size, tf.float64) / tf.cast(tf.where(tall, height, width), tf.float64)
    short = tf.cast(tf.cast(tf.where(tall, width, height), tf.float64) * ratio, tf.int32)
    short = tf.maximum(short, 1)
    return tf.where(tall, size, short), tf.where(tall, short, size)


def bars_geometry(height: int, width: int, spec: ImageSpec) -> tuple[int, int]:
    """Black bars of `square_pad` and `target_pad`: pixels added at the left (and right), at the top (and bottom)."""
    longest: float = max(height, width)
    if spec.resize == "target_pad":
        if longest / min(height, width) < spec.pad_ratio:
            return 0, 0
        longest = longest / spec.pad_ratio
    elif spec.resize != "square_pad":
        return 0, 0
    return max(int((longest - width) / 2), 0), max(int((longest - height) / 2), 0)


def _bars(height: tf.Tensor, width: tf.Tensor, spec: ImageSpec) -> tuple[tf.Tensor, tf.Tensor]:
    zero = tf.zeros((), tf.int32)
    if spec.resize not in ("square_pad", "target_pad"):
        return zero, zero
    h, w = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    longest = tf.maximum(h, w)
    needed = tf.constant(True)
    if spec.resize == "target_pad":
        needed = longest / tf.maximum(tf.minimum(h, w), 1.0) >= spec.pad_ratio
        longest = longest / _hidden(tf.constant(spec.pad_ratio, tf.float64), longest)
    left = tf.maximum(tf.cast((longest - w) / 2, tf.int32), 0)
    top = tf.maximum(tf.cast((longest - h) / 2, tf.int32), 0)
    return tf.where(needed, left, zero), tf.where(needed, top, zero)


def _crop_geometry(lengths: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Full size and corner of the `crop` mode for pictures of `lengths`; all int32 (2,), vertical first."""
    wide = tf.cast(lengths, tf.int64)
    full = tf.cast(size * wide // tf.reduce_min(wide), tf.int32)
    # tf.round goes to the even neighbour at halves, as Python's round in torchvision's centre crop.
    return full, tf.cast(tf.round(tf.cast(full - size, tf.float32) / 2), tf.int32)


def _centre_part(lengths: tf.Tensor, spec: ImageSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """First row and column, and numbers of rows and columns, that the `crop` mode needs of a picture of `lengths`; int32 (2,).

    Two more than the filter reaches are kept on either side: in a JPEG decoded in part, the outermost column has other colours.
    """
    full, corner = _crop_geometry(lengths, spec.size)
    ratio = tf.cast(lengths, tf.float64) / tf.cast(full, tf.float64)
    reach = _REACH[spec.interpolation] * tf.maximum(ratio, 1.0) + 2.0
    start = tf.maximum(tf.cast(tf.floor(tf.cast(corner, tf.float64) * ratio - reach), tf.int32), 0)
    stop = tf.cast(tf.math.ceil(tf.cast(corner + spec.size, tf.float64) * ratio + reach), tf.int32)
    return start, tf.minimum(stop, lengths) - start


# --- headers ----------------------------------------------------------------------------------------------------------


def _big_endian(values: tf.Tensor) -> tf.Tensor:
    """Unsigned number from int64 bytes, most significant first."""
    weights = [256**power for power in reversed(range(values.shape[0]))]
    return tf.reduce_sum(values * tf.constant(weights, tf.int64))


def _little_endian(values: tf.Tensor) -> tf.Tensor:
    return _big_endian(tf.reverse(values, [0]))


def _exif_tag(raw: tf.Tensor, tiff: tf.Tensor) -> tf.Tensor:
    """Orientation tag (0x0112) of the first directory of the TIFF block at byte `tiff`; 1 where absent or malformed."""
    count = tf.size(raw)
    head = tf.cast(raw[tiff : tiff + 8], tf.int64)

    def parse() -> tf.Tensor:
        little = head[0] == ord("I")
        order = tf.where(little, tf.constant([1, 256], tf.int64), tf.constant([256, 1], tf.int64))
        pointer = tf.ensure_shape(head, (8,))[4:]
        offset = tf.where(little, _little_endian(pointer), _big_endian(pointer))
        start = tiff + tf.cast(tf.minimum(offset, tf.cast(count, tf.int64)), tf.int32)
        number = tf.cast(raw[start : start + 2], tf.int64)
        entries = tf.cond(tf.size(number) == 2, lambda: tf.reduce_sum(number * order), lambda: tf.zeros((), tf.int64))
        rows = tf.maximum(tf.minimum(tf.cast(entries, tf.int32), (count - start - 2) // 12), 0)
        table = tf.cast(tf.reshape(raw[start + 2 : start + 2 + 12 * rows], (-1, 12)), tf.int64)
        tags = tf.reduce_sum(table[:, 0:2] * order, axis=1)
        values = tf.reduce_sum(table[:, 8:10] * order, axis=1)
        value = tf.cast(tf.reduce_max(tf.where(tags == 0x0112, values, 0)), tf.int32)
        return tf.where((rows > 0) & (value >= 1) & (value <= 8), value, 1)

    return tf.cond(tf.size(head) == 8, parse, lambda: tf.ones((), tf.int32))


def _exif_orientation(contents: tf.Tensor) -> tf.Tensor:
    """EXIF orientation (1..8) of a JPEG, int32; 1 where it has none. Never raises."""
    one = tf.ones((), tf.int32)
    # A look for the marker costs microseconds; the walk from segment to segment, which few web pictures need, a millisecond.
    start = tf.io.decode_raw(tf.strings.substr(contents, 0, 16_384), tf.uint8)
    present = tf.reduce_any((start[:-1] == 0xFF) & (start[1:] == 0xE1))

    def walk() -> tf.Tensor:
        raw = tf.io.decode_raw(contents, tf.uint8)
        count = tf.size(raw)

        def more(at: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
            return (exif == 0) & (at + 9 <= count)

        def step(at: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            segment = tf.unstack(tf.ensure_shape(tf.cast(raw[at : at + 8], tf.int32), (8,)))
            marker = segment[1]
            # EXIF stands before the picture's tables: anything but APPn and comments ends the search.
            other = (segment[0] != 0xFF) | ~(((marker >= 0xE0) & (marker <= 0xEF)) | (marker == 0xFE))
            named = tf.reduce_all(tf.stack(segment[4:]) == [0x45, 0x78, 0x69, 0x66])
            length = 2 + tf.maximum(segment[2] * 256 + segment[3], 2)
            return tf.where(other, count, at + length), tf.where((marker == 0xE1) & named, at + 10, exif)

        _, exif = tf.while_loop(more, step, (tf.constant(2), tf.constant(0)), parallel_iterations=1)
        return tf.cond(exif > 0, lambda: _exif_tag(raw, exif), lambda: one)

    return tf.cond(present, walk, lambda: one)


def _webp_size(head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    bits = _little_endian(head[21:25])
    lossy = (_little_endian(head[28:30]) % 16384, _little_endian(head[26:28]) % 16384)
    lossless = (bits // 16384 % 16384 + 1, bits % 16384 + 1)
    extended = (_little_endian(head[27:30]) + 1, _little_endian(head[24:27]) + 1)
    kind = head[15]  # The last letter of the first chunk's name tells the three kinds apart.
    sizes = [
        tf.where(kind == ord("X"), x, tf.where(kind == ord("L"), n, tf.where(kind == ord(" "), y, 0)))
        for x, n, y in zip(extended, lossless, lossy, strict=True)
    ]
    return sizes[0], sizes[1]


# --- decoding ---------------------------------------------------------------------------------------------------------


def _on_white(image: tf.Tensor) -> tf.Tensor:
    """Lays a (H, W, 4) uint8 picture on white."""
    colours = tf.cast(image[..., :3], tf.float32)
    alpha = tf.cast(image[..., 3:], tf.float32) / 255.0
    return tf.cast(tf.floor(colours * alpha + 255.0 * (1.0 - alpha) + 0.5), tf.uint8)


def _without_alpha(image: tf.Tensor, filler: int | tf.Tensor = 255) -> tf.Tensor:
    """(H, W, 4) to (H, W, 3); opaque, without arithmetic, if alpha is `filler` everywhere."""
    alpha = image[..., 3]
    opaque = tf.reduce_all(alpha == 255) | tf.reduce_all(alpha == tf.cast(filler, tf.uint8))
    return tf.cond(opaque, lambda: image[..., :3], lambda: _on_white(image))


def _turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes an EXIF orientation (1..8)."""

    def transposed(picture: tf.Tensor) -> tf.Tensor:
        return tf.transpose(picture, (1, 0, 2))

    return tf.switch_case(
        orientation - 1,
        [
            lambda: image,
            lambda: image[:, ::-1],
            lambda: image[::-1, ::-1],
            lambda: image[::-1],
            lambda: transposed(image),
            lambda: transposed(image)[:, ::-1],
            lambda: transposed(image)[::-1, ::-1],
            lambda: transposed(image)[::-1],
        ],
    )


def _undamaged(contents: tf.Tensor) -> tf.Tensor:
    """Whether a JPEG is one scan from its marker to the end marker, without any other marker in it.

    libjpeg reads no further than the last row asked for, so a partial decoding would accept files that end, or go astray, below
    it. Only of files that pass here nothing can be wrong there that would make a whole decoding fail.
    """
    raw = tf.io.decode_raw(contents, tf.uint8)
    after = tf.gather(raw, tf.where(raw[:-1] == 0xFF)[:, 0] + 1)
    # FF 00 stands for a byte FF, FF D0 to FF D7 are restart markers, FF FF is filling.
    markers = tf.boolean_mask(after, (after != 0) & (after != 0xFF) & ((after < 0xD0) | (after > 0xD7)))
    ends = tf.concat([tf.zeros((2,), tf.uint8), markers], axis=0)[-2:]
    return tf.reduce_all(ends == tf.constant([0xDA, 0xD9], tf.uint8)) & (tf.math.count_nonzero(markers == 0xDA) == 1)


def _decode_jpeg(contents: tf.Tensor, height: tf.Tensor, width: tf.Tensor, spec: ImageSpec, cut: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """A JPEG, upright, and its place; with `cut` perhaps only the part that the `crop` mode needs of it (see `_decode`)."""
    accurate = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
    step, ratios = tf.zeros((), tf.int32), [1]
    if spec.fast_decode:
        # Twice the size must remain, so that the filter that follows still does most of the work.
        spare = tf.minimum(height, width) // (2 * spec.size)
        step = tf.cast(spare >= 2, tf.int32) + tf.cast(spare >= 4, tf.int32) + tf.cast(spare >= 8, tf.int32)
        ratios = [1, 2, 4, 8]

    def reduced(decode: Callable[[int], tf.Tensor]) -> tf.Tensor:
        return decode(1) if len(ratios) == 1 else tf.switch_case(step, [functools.partial(decode, ratio) for ratio in ratios])

    orientation = _exif_orientation(contents)

    def fully() -> tuple[tf.Tensor, tf.Tensor]:
        image = reduced(lambda ratio: tf.io.decode_jpeg(contents, ratio=ratio, **accurate))
        return _whole(tf.cond(orientation == 1, lambda: image, lambda: _turn(image, orientation)))

    if not cut:
        return fully()
    ratio = tf.gather(ratios, step)
    lengths = (tf.stack([height, width]) + ratio - 1) // ratio
    start, number = _centre_part(lengths, spec)

    def partly() -> tuple[tf.Tensor, tf.Tensor]:
        window = tf.concat([start, number], axis=0)
        image = reduced(lambda ratio: tf.io.decode_and_crop_jpeg(contents, window, ratio=ratio, **accurate))
        return image, tf.concat([start, lengths], axis=0)

    share = tf.reduce_prod(tf.cast(number, tf.float32) / tf.cast(lengths, tf.float32))
    # Where the part has the last row, libjpeg reads everything in any case.
    through = start[0] + number[0] == lengths[0]
    worth = (orientation == 1) & (share <= tf.where(through, _WORTH_CUTTING[0], _WORTH_CUTTING[1]))
    possible = tf.cond(worth & ~through, lambda: _undamaged(contents), lambda: worth)
    return tf.cond(possible, partly, fully)


def _within_limits(contents: tf.Tensor, height: tf.Tensor, width: tf.Tensor, spec: ImageSpec) -> tf.Operation | None:
    """Asserts that a picture of this size (int64) may be decoded, bars included."""
    left, top = _bars(height, width, spec)
    pixels = (height + 2 * tf.cast(top, tf.int64)) * (width + 2 * tf.cast(left, tf.int64))
    good = (height > 0) & (width > 0) & (height <= MAX_SIDE) & (width <= MAX_SIDE) & (pixels <= spec.max_pixels)
    wanted = f"Expected a picture of at most {spec.max_pixels} pixels and {spec.max_bytes} bytes; found height, width, bytes:"
    good &= tf.strings.length(contents) <= spec.max_bytes
    return tf.debugging.Assert(good, [wanted, height, width, tf.strings.length(contents)])


def _whole(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A picture with the place of a complete one."""
    shape = tf.shape(image)
    return image, tf.stack([0, 0, shape[0], shape[1]])


def _decode(contents: tf.Tensor, spec: ImageSpec, cut: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """`decode_image`, which with `cut` may leave out what the `crop` mode does not need.

    Returns:
        uint8 (h, w, 3), and its place, int32 (4,): rows above and columns left of it that were left out, height and width of the
        complete picture.
    """
    contents = tf.convert_to_tensor(contents, tf.string)
    padded = tf.strings.join([tf.strings.substr(contents, 0, 30), b"\0" * 30])
    head = tf.ensure_shape(tf.io.decode_raw(tf.strings.substr(padded, 0, 30), tf.uint8), (30,))
    # One comparison for all formats: a row matches where it equals the first 16 bytes or does not care.
    magic = tf.constant(_MAGIC, tf.int32)
    matches = tf.reduce_all((magic < 0) | (magic == tf.cast(head[:16], tf.int32)), axis=1)
    code = tf.where(tf.reduce_any(matches), tf.argmax(matches, output_type=tf.int32), len(_MAGIC))

    def checked(size: tuple[tf.Tensor, tf.Tensor], decode: Callable[[], Any]) -> Any:
        told = _within_limits(contents, tf.cast(size[0], tf.int64), tf.cast(size[1], tf.int64), spec)
        with tf.control_dependencies([told] if told is not None else []):
            return decode()

    def numbers() -> tf.Tensor:
        return tf.cast(head, tf.int64)

    def jpeg() -> tuple[tf.Tensor, tf.Tensor]:
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(contents))
        return checked((height, width), lambda: _decode_jpeg(contents, height, width, spec, cut))

    def png() -> tf.Tensor:
        size = _big_endian(numbers()[20:24]), _big_endian(numbers()[16:20])
        # Where a picture below 8 bits has no alpha, the decoder puts the largest value of so many bits instead of 255.
        filler = tf.where(head[24] < 8, tf.bitwise.left_shift(tf.constant(1, tf.uint8), tf.minimum(head[24], 7)) - 1, 255)

        def decode() -> tf.Tensor:
            return _without_alpha(tf.io.decode_png(contents, channels=4), filler)

        return checked(size, decode)

    def sniffed() -> tf.Tensor:
        return tf.io.decode_image(contents, channels=3, expand_animations=False)

    def gif() -> tf.Tensor:
        return checked((_little_endian(numbers()[8:10]), _little_endian(numbers()[6:8])), sniffed)

    def bmp() -> tf.Tensor:
        height = _little_endian(numbers()[22:26])
        # A negative height means rows from top to bottom.
        return checked((tf.where(height >= 2**31, 2**32 - height, height), _little_endian(numbers()[18:22])), sniffed)

    def webp() -> tf.Tensor:
        def decode() -> tf.Tensor:
            # With any fixed number of channels the decoder refuses the files that have another.
            image = tf.io.decode_image(contents, channels=0, expand_animations=False)
            return tf.cond(tf.shape(image)[-1] == 4, lambda: _without_alpha(image), lambda: image[..., :3])

        # On moving WebPs without alpha TensorFlow 2.21 writes past its buffer and takes the process down.
        still = (tf.reduce_any(head[12:16] != tf.constant(list(b"VP8X"), tf.uint8))) | (head[20] & 2 == 0)
        told = tf.debugging.Assert(still, ["Expected a still WebP; found a moving one"])
        with tf.control_dependencies([told] if told is not None else []):
            return checked(_webp_size(numbers()), decode)

    def unknown() -> tf.Tensor:
        told = tf.debugging.Assert(False, [f"Expected a picture ({', '.join(FORMATS)}); found bytes that start with", head[:16]])
        with tf.control_dependencies([told] if told is not None else []):
            return tf.zeros((1, 1, 3), tf.uint8)

    others = [lambda decode=decode: _whole(decode()) for decode in (png, gif, bmp, webp, unknown)]
    image, place = tf.switch_case(code, [jpeg, *others])
    return tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(place, (4,))


@_plain
def decode_image(contents: tf.Tensor, spec: ImageSpec) -> tf.Tensor:
    """Decodes one picture in-graph, upright, without alpha.

    Args:
        contents: Encoded bytes, string scalar.
        spec: Limits (and `fast_decode`).

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        tf.errors.InvalidArgumentError: when run on bytes that are no readable picture, or exceed the limits of `spec`.
    """
    return _decode(contents, spec, cut=False)[0]


# --- resizing ---------------------------------------------------------------------------------------------------------


def _nearest_indices(source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Source index of each of `target` pixels. Sums up steps as Pillow does: the product would fall on other pixels at ties."""
    scale = tf.cast(source, tf.float64) / tf.cast(_hidden(target, source), tf.float64)
    steps = tf.concat([[0.5 * scale], tf.fill([target - 1], scale)], axis=0)
    return tf.minimum(tf.cast(tf.cumsum(steps), tf.int32), source - 1)


def _reflect(first: tf.Tensor, number: int, length: tf.Tensor) -> tf.Tensor:
    """Indices first..first+number-1 folded into 0..length-1, mirrored with the edge pixel repeated."""
    index = tf.math.floormod(first + tf.range(number), 2 * length)
    return tf.minimum(index, 2 * length - 1 - index)


def _resample(
    image: tf.Tensor,
    full: tuple[tf.Tensor, tf.Tensor],
    window: tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
    spec: ImageSpec,
    place: tf.Tensor | None = None,
) -> tf.Tensor:
    """Resizes to `full` (height, width) and returns only the `window` (top, left, height, width) of the result, float32.

    The part outside the window is never computed, so a strip of 10 x 60,000 pixels costs no memory. With `place` (see `_decode`)
    the image is a part of the picture that is resized.
    """
    top, left, out_h, out_w = window
    shape = tf.shape(image)
    offset, length = ((0, 0), tf.unstack(shape)[:2]) if place is None else (tf.unstack(place)[:2], tf.unstack(place)[2:])
    if spec.interpolation == "nearest":
        rows = _nearest_indices(length[0], full[0])[top : top + out_h] - offset[0]
        columns = _nearest_indices(length[1], full[1])[left : left + out_w] - offset[1]
        return tf.cast(tf.gather(tf.gather(image, rows, axis=0), columns, axis=1), tf.float32)
    y, x = top - offset[0], left - offset[1]
    return _unless_same(
        image,
        (full[0] == length[0]) & (full[1] == length[1]),
        lambda: image[y : y + out_h, x : x + out_w],
        lambda: _filtered(image, full, length, offset, window, spec),
    )


def _unless_same(image: tf.Tensor, same: tf.Tensor, copy: Callable[[], tf.Tensor], resize: Callable[[], tf.Tensor]) -> tf.Tensor:
    """`resize()`, saved where it would change nothing; float32."""
    if image.dtype != tf.uint8:
        return resize()
    return tf.cond(same, lambda: tf.cast(copy(), tf.float32), resize)


def _filtered(image: tf.Tensor, full: Any, length: Any, offset: Any, window: Any, spec: ImageSpec) -> tf.Tensor:
    """`_resample` for all but `nearest`: `length` and `offset` of the picture of which the image is a part, (vertical, horizontal)."""
    top, left, out_h, out_w = window
    shape = tf.shape(image)
    exact = [tf.cast(full[axis], tf.float64) / tf.cast(length[axis], tf.float64) for axis in (0, 1)]
    scales = [tf.cast(full[axis], tf.float32) / tf.cast(length[axis], tf.float32) for axis in (0, 1)]
    # float64, as both terms are large in long strips.
    shifts = [
        tf.cast(tf.cast(offset[axis], tf.float64) * exact[axis] - tf.cast(corner, tf.float64), tf.float32)
        for axis, corner in enumerate((top, left))
    ]

    def run(pictures: tf.Tensor, size: list, scale: list, shift: list) -> tf.Tensor:
        return tf.raw_ops.ScaleAndTranslate(
            images=pictures,
            size=tf.stack(size),
            scale=tf.stack(scale),
            translation=tf.stack(shift),
            kernel_type=_KERNELS[spec.interpolation],
            antialias=spec.antialias,
        )

    if not spec.antialias or spec.interpolation == "bilinear":
        # Without overshoot one pass is within a grey level of Pillow's two, at a fraction of their cost.
        return run(image[tf.newaxis], [out_h, out_w], scales, shifts)[0]

    def grey_levels(picture: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(tf.floor(picture + 0.5), 0.0, 255.0)

    # Rows first, as Pillow always did before version 13. Each pass sees pictures of one row, then of one column, so that the
    # kernel of the other axis costs nothing.
    rows = grey_levels(run(image[:, tf.newaxis], [1, out_w], [1.0, scales[1]], [0.0, shifts[1]]))
    column = tf.reshape(rows, tf.stack([1, shape[0], 1, out_w * 3]))
    column = grey_levels(run(column, [out_h, 1], [scales[0], 1.0], [shifts[0], 0.0]))
    return tf.reshape(column, tf.stack([out_h, out_w, 3]))


def _squashed(image: tf.Tensor, side: tf.Tensor | int, spec: ImageSpec) -> tf.Tensor:
    """The whole picture on `side` x `side` pixels, float32."""
    if spec.interpolation == "bilinear_tf1":
        return tf.raw_ops.ResizeBilinear(images=image[tf.newaxis], size=tf.stack([side, side]), align_corners=False)[0]
    if spec.interpolation == "bilinear" and not spec.antialias:
        same = tf.reduce_all(tf.shape(image)[:2] == side)
        return _unless_same(image, same, lambda: image, lambda: tf.image.resize(image, tf.stack([side, side])))
    zero, full = tf.zeros((), tf.int32), (tf.convert_to_tensor(side), tf.convert_to_tensor(side))
    return _resample(image, full, (zero, zero, *full), spec)


@_plain
def resize_and_crop(image: tf.Tensor, side: tf.Tensor | int, top: tf.Tensor | int, left: tf.Tensor | int, spec: ImageSpec) -> tf.Tensor:
    """Squashes a picture to `side` x `side` and cuts the square of `spec.size` at (top, left) out of it.

    Args:
        image: (height, width, 3), uint8 or float in 0..255.
        side: At least `spec.size`.
        top, left: 0 to `side - spec.size`.
        spec: Size and interpolation.

    Returns:
        float32 (S, S, 3) in 0..255.
    """
    whole = _squashed(tf.convert_to_tensor(image), side, spec)
    return tf.ensure_shape(whole[top : top + spec.size, left : left + spec.size], (spec.size, spec.size, 3))


@_plain
def resize_to(image: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int, spec: ImageSpec) -> tf.Tensor:
    """Squashes a picture to any height and width, by the filter of `spec`; its size and rule do not count.

    Args:
        image: (h, w, 3), uint8 or float in 0..255.
        height, width: Of the result, at least 1.
        spec: Interpolation and antialiasing.

    Returns:
        float32 (height, width, 3), within 0..255 (bicubic without antialias can leave this range a little).

    Raises:
        UsageError: `spec` has the interpolation `bilinear_tf1`.
    """
    if spec.interpolation == "bilinear_tf1":
        raise UsageError("resize_to: the interpolation 'bilinear_tf1' is there for squares only.")
    zero, full = tf.zeros((), tf.int32), (tf.convert_to_tensor(height), tf.convert_to_tensor(width))
    result = _resample(tf.convert_to_tensor(image), full, (zero, zero, *full), spec)
    known = [side if isinstance(side, int) else None for side in (height, width)]
    return tf.ensure_shape(result, (*known, 3))


@_plain
def resize_image(image: tf.Tensor, spec: ImageSpec) -> tf.Tensor:
    """Brings a picture to (S, S) by the rule of `spec.resize`.

    Args:
        image: (height, width, 3), uint8 or float in 0..255.
        spec: Size, mode, interpolation.

    Returns:
        float32 (S, S, 3) in 0..255 (bicubic without antialias can leave this range a little).
    """
    return _resized(tf.convert_to_tensor(image), spec)


def _resized(image: tf.Tensor, spec: ImageSpec, place: tf.Tensor | None = None) -> tf.Tensor:
    """`resize_image`; in the `crop` mode also of a part that contains all that is needed, at its `place` (see `_decode`)."""
    size = spec.size
    if spec.resize in ("square_pad", "target_pad"):
        left, top = _bars(tf.shape(image)[0], tf.shape(image)[1], spec)
        image = tf.pad(image, [[top, top], [left, left], [0, 0]])
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    if spec.resize == "squash":
        result = _squashed(image, size, spec)
    elif spec.resize == "pad":
        zero = tf.zeros((), tf.int32)
        inner_h, inner_w = _padded_inner(height, width, size)
        inner = _resample(image, (inner_h, inner_w), (zero, zero, inner_h, inner_w), spec)
        rows = _reflect(-((size - inner_h) // 2), size, inner_h)
        columns = _reflect(-((size - inner_w) // 2), size, inner_w)
        result = tf.gather(tf.gather(inner, rows, axis=0), columns, axis=1)
    else:
        # The filter would go over whole rows, also where they leave the window.
        offset, lengths = (tf.zeros((2,), tf.int32), tf.stack([height, width])) if place is None else (place[:2], place[2:])
        start, number = _centre_part(lengths, spec)
        first, last = tf.unstack(start - offset), tf.unstack(start - offset + number)
        image = image[first[0] : last[0], first[1] : last[1]]
        full, corner = _crop_geometry(lengths, size)
        window = (corner[0], corner[1], tf.constant(size), tf.constant(size))
        result = _resample(image, (full[0], full[1]), window, spec, tf.concat([start, lengths], axis=0))
    return tf.ensure_shape(result, (size, size, 3))


def scale_pixels(image: tf.Tensor, scaling: str) -> tf.Tensor:
    """Maps float pixels in 0..255, (..., 3) RGB, to the range a backbone was trained with (see `ImageSpec.scaling`)."""
    image = tf.cast(image, tf.float32)
    if scaling == "raw":
        return image
    if scaling == "unit":
        return image / 255.0
    if scaling == "tf":
        return image / 127.5 - 1.0
    if scaling == "caffe":
        return image[..., ::-1] - tf.constant(_CAFFE_MEAN_BGR)
    if scaling not in _STATISTICS:
        raise UsageError(f"Unknown scaling {scaling!r}. Known: {', '.join(SCALINGS)}.")
    mean, deviation = (np.array(values) for values in _STATISTICS[scaling])
    # One multiplication and one addition cost a third of the three operations of the formula.
    factor, term = (1 / (255 * deviation)).astype(np.float32), (mean / deviation).astype(np.float32)
    if image.shape.rank != 3 or not image.shape.is_fully_defined():
        return image * factor - term
    # Rows of constants, as spreading three numbers over a picture takes four times as long as the arithmetic.
    height, width, _ = image.shape
    return tf.reshape(tf.reshape(image, (height, width * 3)) * np.tile(factor, width) - np.tile(term, width), (height, width, 3))


def unscale_pixels(scaled: tf.Tensor, scaling: str) -> tf.Tensor:
    """The inverse of `scale_pixels`: float32 pixels in 0..255, (..., 3) RGB.

    Raises:
        UsageError: unknown `scaling`.
    """
    scaled = tf.cast(scaled, tf.float32)
    if scaling == "raw":
        return scaled
    if scaling == "unit":
        return scaled * 255.0
    if scaling == "tf":
        return (scaled + 1.0) * 127.5
    if scaling == "caffe":
        return (scaled + tf.constant(_CAFFE_MEAN_BGR))[..., ::-1]
    if scaling not in _STATISTICS:
        raise UsageError(f"Unknown scaling {scaling!r}. Known: {', '.join(SCALINGS)}.")
    mean, deviation = (np.array(values) for values in _STATISTICS[scaling])
    # As a normalisation by the inverse statistics, which torchvision's programs use: so rounding is theirs too.
    shift, divisor = (mean / deviation).astype(np.float32), (1 / deviation).astype(np.float32)
    return (scaled + shift) / divisor * 255.0


def display_pixels(scaled: tf.Tensor, scaling: str, legacy_truncate: bool = False) -> tf.Tensor:
    """Pixels that a network takes as a picture that can be shown: uint8 (..., 3) RGB, rounded.

    Args:
        scaled: As `scale_pixels` returns them.
        scaling: See `ImageSpec.scaling`.
        legacy_truncate: Drops fractions instead, as the attribute predictor of iMaterialist does; a tenth of the values come back one
            level darker.
    """
    pixels = tf.clip_by_value(unscale_pixels(scaled, scaling), 0.0, 255.0)
    return tf.cast(pixels if legacy_truncate else tf.floor(pixels + 0.5), tf.uint8)


@_plain
def preprocess(image: tf.Tensor, spec: ImageSpec, augment: Any = None, seed: tf.Tensor | None = None) -> tf.Tensor:
    """Resizes, augments (in training) and scales one decoded picture.

    Args:
        image: (height, width, 3), uint8 or float in 0..255.
        spec: What the result looks like.
        augment: None, or an `Augmentation`.
        seed: int32 (2,), needed with `augment`; the same seed gives the same picture.

    Returns:
        float32 (S, S, 3).
    """
    return _finished(image, spec, augment, seed)


def _finished(image: tf.Tensor, spec: ImageSpec, augment: Any, seed: tf.Tensor | None, place: tf.Tensor | None = None) -> tf.Tensor:
    """`preprocess`; with `place` of what `_decode(cut=True)` returned."""
    if augment is not None:
        if seed is None:
            raise UsageError("preprocess(augment=...) needs a seed: an int32 tensor of shape (2,).")
        image = augment.before_resize(image, seed)
    if augment is not None and augment.side_below is not None:
        image = resize_and_crop(image, *augment.draw_crop(spec.size, seed), spec)
    elif augment is not None and augment.crop_tries:
        image = tf.ensure_shape(_squashed(tf.convert_to_tensor(image), spec.size, spec), (spec.size, spec.size, 3))
    else:
        image = _resized(tf.convert_to_tensor(image), spec, place)
    if augment is not None:
        image = augment.after_resize(image, seed)
    return scale_pixels(image, spec.scaling)


@_plain
def load(contents: tf.Tensor, spec: ImageSpec, augment: Any = None, seed: tf.Tensor | None = None) -> tf.Tensor:
    """`decode_image` followed by `preprocess`: encoded bytes to float32 (S, S, 3), in-graph.

    With `resize="crop"` only the part of a JPEG is decoded that ends up in the crop, where this saves work and the file is such
    that it cannot hide damage. Pixels, and what is refused, are those of the two steps.
    """
    if spec.resize != "crop" or not (augment is None or augment.on_pixels):
        return preprocess(decode_image(contents, spec), spec, augment, seed)
    image, place = _decode(contents, spec, cut=True)
    return _finished(image, spec, augment, seed, place)


# --- bytes that may be anything ---------------------------------------------------------------------------------------


def _kept(elements: tf.data.Dataset, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
    """(index, function(element)) of those elements on which `function` does not fail."""
    done = elements.enumerate().map(
        lambda index, element: (index, function(element)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    return done.ignore_errors()


@_plain
def safe_decode_batch(contents: tf.Tensor, spec: ImageSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes and preprocesses a batch in which some entries may be anything at all.

    Nothing a client sends makes it fail: the decoding runs as a small tf.data pipeline inside the graph, the only construct of
    TensorFlow that survives the error of a kernel. It is part of the exported model and needs no Python there.

    Args:
        contents: Encoded bytes, string (B,); B may be 0.
        spec: Size, mode and limits.

    Returns:
        float32 (B, S, S, 3), zeros where undecodable, and bool (B,), whether the picture is valid. A JPEG whose body is
        damaged in a way that libjpeg can read over counts as valid.
    """
    contents = tf.convert_to_tensor(contents, tf.string)
    with tf.device("/CPU:0"):
        number = tf.size(contents, out_type=tf.int64)
        kept = _kept(tf.data.Dataset.from_tensor_slices(contents), lambda element: load(element, spec))
        # One row more than needed, so that the single batch is never empty.
        extra = tf.data.Dataset.from_tensors((number, tf.zeros((spec.size, spec.size, 3))))
        index, images = kept.concatenate(extra).batch(number + 1).get_single_element()
        index, images = index[:-1, tf.newaxis], images[:-1]
        shape = tf.stack([number, spec.size, spec.size, 3])
        placed = tf.ensure_shape(tf.scatter_nd(index, images, shape), (None, spec.size, spec.size, 3))
        valid = tf.scatter_nd(index, tf.ones_like(index[:, 0], tf.int32), number[tf.newaxis]) > 0
    batch = contents.shape[0]
    return tf.ensure_shape(placed, (batch, *placed.shape[1:])), tf.ensure_shape(valid, (batch,))


def safe_decode(contents: tf.Tensor, spec: ImageSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """One picture by `safe_decode_batch`: float32 (S, S, 3) and a bool scalar."""
    images, valid = safe_decode_batch(tf.reshape(tf.convert_to_tensor(contents, tf.string), (1,)), spec)
    return images[0], valid[0]


@functools.lru_cache(maxsize=32)
def _compiled(spec: ImageSpec) -> Callable[[bytes], tf.Tensor]:
    return tf.function(lambda contents: load(contents, spec), input_signature=[tf.TensorSpec((), tf.string)])


def load_image(source: str | os.PathLike[str] | bytes, spec: ImageSpec) -> tf.Tensor:
    """Reads one picture from a file or from bytes, for use outside a pipeline.

    Returns:
        float32 (S, S, 3).

    Raises:
        DataError: missing, unreadable or over the limits; the message says which.
    """
    where = "the given bytes" if isinstance(source, bytes) else str(source)
    if isinstance(source, bytes):
        contents = source
    else:
        reason = explain_path(Path(source), spec)
        if reason:
            raise DataError(f"{where}: {reason}.")
        contents = Path(source).read_bytes()
    try:
        return _compiled(spec)(contents)
    except tf.errors.InvalidArgumentError:
        raise DataError(f"{where}: {explain_bytes(contents, spec)}.") from None


# --- explanations -----------------------------------------------------------------------------------------------------

_OTHER_KINDS = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"{", "JSON text"),
)


def explain_path(path: Path, spec: ImageSpec) -> str | None:
    """Why a path cannot hold a usable picture, as far as the file system tells; None if nothing speaks against it."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not path.is_file():
        return "a folder, not a file" if path.is_dir() else "not a regular file"
    if status.st_size == 0:
        return "empty file"
    if status.st_size > spec.max_bytes:
        return f"{status.st_size / 1e6:.1f} MB, limit {spec.max_bytes / 1e6:g} MB"
    if not os.access(path, os.R_OK):
        return "cannot be read (permission denied)"
    return None


def explain_bytes(contents: bytes, spec: ImageSpec) -> str:
    """Why bytes that `decode_image` refused are no usable picture, in words for a person."""
    if not contents:
        return "empty file"
    if len(contents) > spec.max_bytes:
        return f"{len(contents) / 1e6:.1f} MB, limit {spec.max_bytes / 1e6:g} MB"
    header = _header(contents)
    if header is None:
        return _explain_unknown(contents)
    kind, height, width = header
    if height == 0 or width == 0:
        return f"{kind} without a readable header"
    if kind == "WebP" and contents[12:16] == b"VP8X" and contents[20] & 2:
        return "a moving WebP, only still ones are supported"
    left, top = bars_geometry(height, width, spec)
    padded = f" ({width + 2 * left} x {height + 2 * top} with its bars)" if left or top else ""
    if (height + 2 * top) * (width + 2 * left) > spec.max_pixels:
        return f"{width} x {height} pixels{padded}, limit {spec.max_pixels / 1e6:g} megapixels"
    if max(height, width) > MAX_SIDE:
        return f"{width} x {height} pixels, limit {MAX_SIDE} a side"
    return f"truncated {kind}" if _truncated(contents, kind) else f"damaged {kind}"


def _header(contents: bytes) -> tuple[str, int, int] | None:
    """Format, height and width from the header, in Python (for messages only); None if no known format."""
    start = list(contents[:16].ljust(16, b"\0"))
    rows = [all(m in (-1, b) for m, b in zip(magic, start, strict=True)) for magic in _MAGIC]
    if not any(rows):
        return None
    kind = FORMATS[rows.index(True)]
    try:
        if kind == "JPEG":
            return kind, *_jpeg_size(contents)
        if kind == "PNG":
            width, height = struct.unpack(">II", contents[16:24])
        elif kind == "GIF":
            width, height = struct.unpack("<HH", contents[6:10])
        elif kind == "BMP":
            width, height = struct.unpack("<ii", contents[18:26])
        else:
            sizes = _webp_size(tf.cast(tf.io.decode_raw(contents[:30], tf.uint8), tf.int64)) if len(contents) >= 30 else (0, 0)
            height, width = (int(size) for size in sizes)
    except struct.error:
        return kind, 0, 0
    return kind, abs(height), width


def _jpeg_size(contents: bytes) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(contents) and contents[at] == 0xFF:
        marker = contents[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return struct.unpack(">HH", contents[at + 5 : at + 9])
        if marker == 0xDA:
            break
        at += 1 if marker == 0xFF else 2 + struct.unpack(">H", contents[at + 2 : at + 4])[0]
    return 0, 0


def _explain_unknown(contents: bytes) -> str:
    start = contents[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return "an HTML page, not a picture"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "an SVG drawing, not a supported format (JPEG, PNG, GIF, BMP, WebP)"
    if start.startswith(b"<"):
        return "an XML or HTML text, not a picture"
    if contents[4:8] == b"ftyp":
        return "an HEIC, AVIF or video file, not a supported format (JPEG, PNG, GIF, BMP, WebP)"
    for magic, name in _OTHER_KINDS:
        if contents.startswith(magic):
            return f"{name}, not a supported format (JPEG, PNG, GIF, BMP, WebP)"
    return f"not a picture in a supported format (starts with bytes {contents[:4].hex(' ')})"


def _truncated(contents: bytes, kind: str) -> bool:
    if kind == "JPEG":
        return b"\xff\xd9" not in contents[-64:]
    if kind == "PNG":
        return b"IEND" not in contents[-64:]
    if kind == "GIF":
        return b"\x3b" not in contents[-16:]
    if kind == "WebP":
        return len(contents) < struct.unpack("<I", contents[4:8])[0] + 8
    return kind == "BMP" and len(contents) < struct.unpack("<I", contents[2:6])[0]
