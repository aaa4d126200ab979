"""Input pipeline: pictures and features per CPU-second of this process, measured in one run.

Each pipeline runs over its data once before the clock starts, and then several times.

python benchmarks/input_pipeline.py
python benchmarks/input_pipeline.py --pictures 400
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=192, help="pictures per measurement")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of cached features")
    parser.add_argument("--passes", type=int, default=3, help="timed passes over the data")
    arguments = parser.parse_args()

    from tf_fashion.core.quiet import import_tensorflow_quietly

    import_tensorflow_quietly()
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from tf_fashion.inputs.feature_cache import FeatureTable, image_batches
    from tf_fashion.inputs.images import ImageSpec, decode_image, preprocess
    from tf_fashion.inputs.pipelines import FeatureSource, TripletTable, training_batches
    from tf_fashion.inputs.text import WordTokenizer
    from tf_fashion.reports.tables import format_table

    random = np.random.default_rng(0)

    def photos(folder: Path, size: tuple[int, int]) -> list[Path]:
        folder.mkdir()
        paths = []
        for number in range(arguments.pictures):
            coarse = Image.fromarray(random.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
            noisy = np.clip(np.asarray(coarse) + random.normal(0, 8, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
            paths.append(folder / f"{number}.jpg")
            Image.fromarray(noisy).save(paths[-1], quality=90)
        return paths

    def pictures(paths: list[Path], read: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
        names = tf.data.Dataset.from_tensor_slices(list(map(str, paths)))
        return names.map(lambda name: read(tf.io.read_file(name)), tf.data.AUTOTUNE).batch(32).prefetch(2)

    def plain(paths: list[Path], antialias: bool) -> tf.data.Dataset:
        def read(contents: tf.Tensor) -> tf.Tensor:
            return tf.image.resize(tf.io.decode_jpeg(contents, channels=3), (224, 224), antialias=antialias)

        return pictures(paths, read)

    def in_two_steps(paths: list[Path], spec: ImageSpec) -> tf.data.Dataset:
        return pictures(paths, lambda contents: preprocess(decode_image(contents, spec), spec))

    def rate(dataset: tf.data.Dataset, batches: int, count: int) -> float:
        # One iterator for all passes: to build one means to optimise its graphs, which costs as much as a hundred small pictures.
        batch = iter(dataset.repeat())
        for _ in range(batches):
            next(batch)
        start = time.process_time()
        for _ in range(batches * arguments.passes):
            next(batch)
        return count * arguments.passes / (time.process_time() - start)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        n = arguments.pictures
        photo_batches = -(-n // 32)
        large, small = photos(Path(folder) / "large", (600, 800)), photos(Path(folder) / "small", (256, 256))
        ready, wide = photos(Path(folder) / "ready", (224, 224)), photos(Path(folder) / "wide", (1600, 400))
        for name, paths in (("600x800 JPEG", large), ("256 px JPEG", small), ("224 px JPEG", ready)):
            for what, dataset in (
                ("plain TensorFlow, no antialiasing", plain(paths, False)),
                ("plain TensorFlow, antialiased", plain(paths, True)),
                ("ours, whole photo", image_batches(paths, ImageSpec(224), 32)),
                ("ours, no antialiasing", image_batches(paths, ImageSpec(224, antialias=False), 32)),
            ):
                rows.append((f"{name}, {what}", rate(dataset, photo_batches, n)))
        for name, paths in (("600x800 JPEG", large), ("1600x400 JPEG", wide)):
            for interpolation in ("bilinear", "bicubic"):
                spec = ImageSpec(224, "crop", interpolation)
                rows += [
                    (f"{name}, centre crop, {interpolation}, plain", rate(in_two_steps(paths, spec), photo_batches, n)),
                    (f"{name}, centre crop, {interpolation}, fused", rate(image_batches(paths, spec, 32), photo_batches, n)),
                ]
        ids = [str(i) for i in range(2000)]
        table = FeatureTable(ids, random.normal(size=(2000, 512)).astype(np.float16))
        names = [ids[i % 2000] for i in range(arguments.rows)]
        triplets = TripletTable(names, names[::-1], [("is red", "is longer")] * len(names), ["a"] * len(names), np.arange(len(names)))
        batches, steps = training_batches(triplets, FeatureSource(table), WordTokenizer(["is", "red", "longer", "and"]), 128, 1)
        rows.append(("cached 512-d features, triplets with tokenised text", rate(batches, steps, steps * 128)))
    first = rows[0][1]
    print(
        format_table(["pipeline", "per CPU-second", "ratio"], [[name, value, value / first] for name, value in rows], style="markdown")
    )


if __name__ == "__main__":
    main()
