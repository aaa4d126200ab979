"""GeM pooling with gradients, pooling over scales, whitening, and how pictures are cut and resized."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.parity.harness import Fixture, checks
from tf_fashion.datasets.pictures import png_bytes
from tf_fashion.datasets.street_lists import Box
from tf_fashion.datasets.street_to_shop import crop_picture
from tf_fashion.inputs.images import ImageSpec, preprocess
from tf_fashion.layers import GeM, Whitening, pool_scales


@checks(r"gem_whiten_preprocess\.npz")
def gem_whiten_preprocess(fixture: Fixture) -> None:
    for part in sorted({key.split("/")[0] for key in fixture.data if key.startswith("gem")}):
        _gem(fixture, part)
    scales = fixture.input("multiscale/descs")
    for how in ("mean", "gem"):
        fixture.compare(f"multiscale/{how}", pool_scales(scales, how), rtol=0)
    _whitening(fixture)
    _pictures(fixture)


def _gem(fixture: Fixture, part: str) -> None:
    x, upstream = (tf.transpose(fixture.input(f"{part}/{key}"), (0, 2, 3, 1)) for key in ("x", "upstream"))
    layer = GeM(initial_p=float(fixture.input(f"{part}/p")[0]), epsilon=float(fixture.input(f"{part}/eps")))
    layer.build(x.shape)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        total = tf.reduce_sum(y * upstream[:, 0, 0])
    dx, dp = tape.gradient(total, [x, layer.p.value])
    for twin in ("", "_f64"):
        fixture.compare(f"{part}/y{twin}", y[:, :, None, None], rtol=2e-5)
        fixture.compare(f"{part}/dx{twin}", tf.transpose(dx, (0, 3, 1, 2)), rtol=2e-5)
        fixture.compare(f"{part}/dp{twin}", tf.reshape(dp, (1,)), rtol=2e-5, atol=1e-4)


def _whitening(fixture: Fixture) -> None:
    x = fixture.input("whiten/X")
    analysis = [fixture.input(f"whiten/{key}") for key in ("mean_", "components_", "explained_variance_")]
    for key in [key for key in fixture.data if re.match(r"whiten/(p\d|nowhiten)", key)]:
        name = key.removeprefix("whiten/")
        options = {"whiten": False} if name == "nowhiten" else {"power": float(name.split("_")[0][1:])}
        for part in name.split("_")[1:]:
            if part == "nol2":
                options["normalize"] = False
            elif part[0] == "v":
                options["dim"] = int(part[1:])
            else:
                options["multiplier"] = float(part[1:])
        # Without normalisation values are larger.
        rtol = 1e-5 if "nol2" in name else 0
        fixture.compare(key, Whitening.of(*analysis, **options)(x), rtol=rtol)


def _pictures(fixture: Fixture) -> None:
    image = fixture.input("preprocess/image")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.png"
        path.write_bytes(png_bytes(image))
        crop = crop_picture(path, Box(*map(float, fixture.input("preprocess/bbox_ltwh"))))
    fixture.exact("preprocess/bbox_crop_u8", crop)
    for key, picture in (("resized_u8", image), ("bbox_crop_resized_u8", crop)):
        for name in [name for name in fixture.data if re.fullmatch(rf"preprocess/{key}_\d+", name)]:
            spec = ImageSpec(size=int(name.rsplit("_", 1)[1]), scaling="raw")
            fixture.within(name, np.rint(preprocess(picture, spec)), 1)
    for name in [name for name in fixture.data if name.startswith("preprocess/normalised_chw_")]:
        spec = ImageSpec(size=int(name.rsplit("_", 1)[1]), scaling="torch")
        ours = tf.transpose(preprocess(image, spec), (2, 0, 1))
        fixture.within(name, ours, 1 / (255 * 0.224) + 1e-5, note="one grey level")
