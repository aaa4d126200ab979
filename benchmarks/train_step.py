"""Training step of `ComposedRetriever`: CPU-seconds per step and triplets per CPU-second, measured in one run.

python benchmarks/train_step.py
python benchmarks/train_step.py --composer concat --steps 20
"""

from __future__ import annotations

import argparse
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--composer", default="tirg")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two of warm-up")
    arguments = parser.parse_args()

    from tf_fashion.core.quiet import import_tensorflow_quietly

    import_tensorflow_quietly()
    import keras
    import numpy as np
    import tensorflow as tf

    from tf_fashion.encoders.image import ImageEncoder
    from tf_fashion.encoders.text import TEXT_ENCODERS
    from tf_fashion.models import ComposedRetriever
    from tf_fashion.reports.tables import format_table
    from tf_fashion.training.optimizers import GroupedAdamW

    random = np.random.default_rng(0)
    cases = [
        ("cached features 2971-d, swem, batch 128", "mobilenet_v2", 224, "swem", 128, True, 512),
        ("cached features 2971-d, gru 256, batch 128", "mobilenet_v2", 224, "gru", 128, True, 512),
        ("small_cnn 64 px, swem, batch 64", "small_cnn", 64, "swem", 64, False, 256),
        ("mobilenet_v2 96 px trained along, swem, batch 32", "mobilenet_v2", 96, "swem", 32, False, 512),
    ]
    rows = []
    for name, backbone, size, text, batch, cached, dim in cases:
        keras.backend.clear_session()
        taps = ("stage5", "stage4", "stage3", "stage2", "stage1") if cached else ("stage5",)
        encoder = ImageEncoder(backbone, image_size=size, taps=taps, descriptors=("colour", "shape") if cached else ())
        encoder.trainable = not cached
        units = {"units": 256} if text == "gru" else {}
        words = TEXT_ENCODERS.get(text)(vocabulary_size=1000, dim=dim, embedding_dim=256, **units)
        model = ComposedRetriever(encoder, words, arguments.composer, dim=dim, feature_norm=True)
        model.compile(GroupedAdamW(1e-3))
        kind, shape = ("features", (batch, encoder.feature_dim)) if cached else ("image", (batch, size, size, 3))
        inputs = {f"{role}_{kind}": random.uniform(0, 1, shape).astype("float32") for role in ("reference", "target")}
        inputs["text"] = random.integers(1, 1000, (batch, 24)).astype("int32")
        data = tf.data.Dataset.from_tensors((inputs, tf.range(batch))).repeat()
        model.fit(data, steps_per_epoch=2, epochs=1, verbose=0, shuffle=False)
        start = time.process_time()
        model.fit(data, steps_per_epoch=arguments.steps, epochs=1, verbose=0, shuffle=False)
        spent = (time.process_time() - start) / arguments.steps
        rows.append([name, spent, batch / spent, batch / spent])
    for row in rows:
        row[3] /= rows[0][2]
    print(format_table(["step", "CPU-s per step", "triplets per CPU-s", "ratio"], rows, style="markdown", digits=3))


if __name__ == "__main__":
    main()
