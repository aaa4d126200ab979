"""Input pipeline: pictures and features per CPU-second, measured in one run.

python benchmarks/input_pipeline.py
python benchmarks/input_pipeline.py --pictures 400
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=192, help="pictures per measurement")
    parser.add_argument("--rows", type=int, default=20_000, help="rows of cached features")
    arguments = parser.parse_args()

    from tf_fashion.core.quiet import import_tensorflow_quietly

    import_tensorflow_quietly()
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from tf_fashion.inputs.feature_cache import FeatureTable, image_batches
    from tf_fashion.inputs.images import ImageSpec
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

    def plain(paths: list[Path], antialias: bool) -> tf.data.Dataset:
        def read(name: tf.Tensor) -> tf.Tensor:
            return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(name), channels=3), (224, 224), antialias=antialias)

        return tf.data.Dataset.from_tensor_slices(list(map(str, paths))).map(read, tf.data.AUTOTUNE).batch(32).prefetch(2)

    def rate(dataset: tf.data.Dataset, count: int) -> float:
        for _ in dataset.take(1):
            pass
        start = time.process_time()
        for _ in dataset:
            pass
        return count / (time.process_time() - start)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        large, small = photos(Path(folder) / "large", (600, 800)), photos(Path(folder) / "small", (256, 256))
        n = arguments.pictures
        for name, paths in (("600x800 JPEG", large), ("256 px JPEG", small)):
            rows += [
                (f"{name}, plain TensorFlow, no antialiasing", rate(plain(paths, False), n)),
                (f"{name}, plain TensorFlow, antialiased", rate(plain(paths, True), n)),
                (f"{name}, ours, whole photo", rate(image_batches(paths, ImageSpec(224), 32), n)),
                (f"{name}, ours, no antialiasing", rate(image_batches(paths, ImageSpec(224, antialias=False), 32), n)),
                (f"{name}, ours, centre crop", rate(image_batches(paths, ImageSpec(224, resize="crop"), 32), n)),
            ]
        ids = [str(i) for i in range(2000)]
        table = FeatureTable(ids, random.normal(size=(2000, 512)).astype(np.float16))
        names = [ids[i % 2000] for i in range(arguments.rows)]
        triplets = TripletTable(names, names[::-1], [("is red", "is longer")] * len(names), ["a"] * len(names), np.arange(len(names)))
        batches, steps = training_batches(triplets, FeatureSource(table), WordTokenizer(["is", "red", "longer", "and"]), 128, 1)
        rows.append(("cached 512-d features, triplets with tokenised text", rate(batches, steps * 128)))
    first = rows[0][1]
    print(
        format_table(["pipeline", "per CPU-second", "ratio"], [[name, value, value / first] for name, value in rows], style="markdown")
    )


if __name__ == "__main__":
    main()
