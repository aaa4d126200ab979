"""CLIP's transforms of pictures: Pillow's to the grey level, ours in the graph within one."""

from __future__ import annotations

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from tests.parity.harness import Fixture, checks
from tf_fashion.inputs.images import ImageSpec, decode_image, resize_image, scale_pixels
from tf_fashion.inputs.pillow import clip_pixels, short_side_size


@checks(r"image_preprocess\.npz")
def pictures(fixture: Fixture) -> None:
    """Every picture from its bytes to the network's input."""
    size = int(fixture.input("n_px"))
    spec = ImageSpec.clip(size)
    for number in sorted({int(key.split("/")[0]) for key in fixture.data if "/" in key}):
        _picture(fixture, f"{number}/", size, spec)


def _picture(fixture: Fixture, at: str, size: int, spec: ImageSpec) -> None:
    contents, mode, rgb = fixture.input(f"{at}file_bytes").tobytes(), str(fixture.input(f"{at}mode")), fixture.data[f"{at}decoded_rgb"]
    own = Image.open(io.BytesIO(contents))
    fixture.equal(f"{at}mode of the file", own.mode, mode)
    # JPEG decoders differ by up to 6 levels.
    jpeg = contents[:2] == b"\xff\xd8"
    fixture.within(f"{at}decoded_rgb", np.asarray(own.convert("RGB"), np.int32), 6 if jpeg else 0, "by Pillow")
    if mode != "RGBA":
        # Ours lays transparent pixels on white, the original takes their colours.
        fixture.within(f"{at}decoded_rgb", decode_image(contents, spec), 6 if jpeg else 0, "in the graph")
    native: np.ndarray | Image.Image = rgb
    if f"{at}decoded_native" in fixture:
        recorded = fixture.data[f"{at}decoded_native"]
        fixture.within(f"{at}decoded_native", np.asarray(own, np.int32), 6 if jpeg else 0, "by Pillow")
        native = own if mode == "P" else recorded
    fixture.exact(f"{at}resized_wh", short_side_size(rgb.shape[1], rgb.shape[0], size))

    cropped = clip_pixels(native, size, original_mode=True)
    # Colours of RGBA are divided by alpha after the filter.
    steps = 1 if mode == "RGBA" else 0
    fixture.within(f"{at}cropped_rgb_uint8", cropped, steps, "by Pillow")
    scaled = np.transpose(scale_pixels(tf.constant(cropped), "clip"), (2, 0, 1))
    fixture.compare(f"{at}eval_chw", scaled, rtol=0.0, atol=steps / 255 / 0.26130258 + 2e-6, note="by Pillow")
    top, left, height, width = map(int, fixture.input(f"{at}train_crop_tlhw"))
    box = (top, left, height, width)
    fixture.within(f"{at}train_rgb_uint8", clip_pixels(native, size, box, original_mode=True), steps, "by Pillow")

    if mode == "RGBA":
        return
    # Palettes are resized by nearest neighbour in the original.
    kind = "nearest" if mode == "P" else "bicubic"
    enlarging = min(rgb.shape[:2]) < size and mode != "P"
    graph = resize_image(rgb, ImageSpec(size, "crop", kind))
    fixture.within(f"{at}cropped_rgb_uint8", graph, 6 if enlarging else 1, "in the graph")
    steps = (6 if enlarging else 1) / 255 / 0.26130258
    scaled = np.transpose(scale_pixels(graph, "clip"), (2, 0, 1))
    fixture.compare(f"{at}eval_chw", scaled, rtol=0.0, atol=steps + 1e-5, note="in the graph")
    part = rgb[top : top + height, left : left + width]
    graph = resize_image(part, ImageSpec(size, "squash", kind))
    fixture.within(f"{at}train_rgb_uint8", graph, 6 if min(part.shape[:2]) < size and mode != "P" else 1, "in the graph")
