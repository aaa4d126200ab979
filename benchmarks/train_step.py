"""Training step of `ComposedRetriever`: CPU-seconds per step and images per CPU-second, measured in one run.

python benchmarks/train_step.py
python benchmarks/train_step.py --composer concat --steps 20
python benchmarks/train_step.py --val            VAL at full size: 224 px, batch 8, 5,000 words, sentences of 12
python benchmarks/train_step.py --fashion-iq-2020 [--against-torch PYTHON]
                                                 the FashionIQ 2020 entry: ResNet-50 trained along, LSTM beside GRU, 2048 wide,
                                                 3,512 words, sentences of 13; and the same step in PyTorch, in turns, with an
                                                 interpreter that has it (benchmarks/torch_tirg.py: three passes of the trunk, as
                                                 released; --skip-unused-pass: two)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--composer", default="tirg")
    parser.add_argument("--val", action="store_true", help="VAL with its two published backbones instead")
    parser.add_argument("--fashion-iq-2020", action="store_true", help="the FashionIQ 2020 entry instead")
    parser.add_argument("--against-torch", metavar="PYTHON", help="with --fashion-iq-2020: an interpreter that has PyTorch")
    parser.add_argument("--skip-unused-pass", action="store_true", help="PyTorch's step without the pass whose result is not used")
    parser.add_argument("--batch", type=int, default=8, help="with --fashion-iq-2020: triplets per step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two of warm-up")
    arguments = parser.parse_args()
    if arguments.against_torch and not arguments.fashion_iq_2020:
        parser.error("--against-torch needs --fashion-iq-2020")

    from tf_fashion.core.quiet import import_tensorflow_quietly

    import_tensorflow_quietly()
    import keras
    import numpy as np
    import tensorflow as tf

    from tf_fashion.reports.tables import format_table

    if arguments.fashion_iq_2020:
        fashion_iq_2020(arguments)
        return

    random = np.random.default_rng(0)
    rows = []
    for name, build, batch, words in VAL_CASES if arguments.val else CASES:
        keras.backend.clear_session()
        model = build(arguments.composer)
        encoder = model.image_encoder
        cached = not encoder.trainable
        kind, shape = ("features", encoder.feature_shape) if cached else ("image", (encoder.image_size, encoder.image_size, 3))
        inputs = {f"{role}_{kind}": random.uniform(0, 255, (batch, *shape)).astype("float32") for role in ("reference", "target")}
        inputs["text"] = random.integers(1, 1000, (batch, words)).astype("int32")
        data = tf.data.Dataset.from_tensors((inputs, tf.range(batch))).repeat()
        model.fit(data, steps_per_epoch=2, epochs=1, verbose=0, shuffle=False)
        start, clock = time.process_time(), time.perf_counter()
        model.fit(data, steps_per_epoch=arguments.steps, epochs=1, verbose=0, shuffle=False)
        spent, wall = ((now - then) / arguments.steps for now, then in ((time.process_time(), start), (time.perf_counter(), clock)))
        rows.append([name, spent, wall, 2 * batch / spent])
    for row in rows:
        row.append(row[3] / rows[0][3])
    print(format_table(["step", "CPU-s per step", "s per step", "images per CPU-s", "ratio"], rows, style="markdown", digits=3))


def small_model(backbone: str, size: int, text: str, dim: int, cached: bool, composer: str) -> Any:
    """A model as the presets `frozen` and `scratch` make it."""
    from tf_fashion.encoders.image import ImageEncoder
    from tf_fashion.encoders.text import TEXT_ENCODERS
    from tf_fashion.models import ComposedRetriever
    from tf_fashion.training.optimizers import GroupedAdamW

    taps = ("stage5", "stage4", "stage3", "stage2", "stage1") if cached else ("stage5",)
    encoder = ImageEncoder(backbone, image_size=size, taps=taps, descriptors=("colour", "shape") if cached else ())
    encoder.trainable = not cached
    units = {"units": 256} if text == "gru" else {}
    words = TEXT_ENCODERS.get(text)(vocabulary_size=1000, dim=dim, embedding_dim=256, **units)
    model = ComposedRetriever(encoder, words, composer, dim=dim, feature_norm=True)
    model.compile(GroupedAdamW(1e-3))
    return model


def val_model(backbone: str, composer: str) -> Any:
    """VAL as the presets `val_fashion200k` and `val_fashion_iq` make it, at 224 px."""
    from tf_fashion.composers import COMPOSERS
    from tf_fashion.encoders.image import ImageEncoder
    from tf_fashion.encoders.text import TEXT_ENCODERS
    from tf_fashion.losses import LOSSES
    from tf_fashion.models import ComposedRetriever
    from tf_fashion.training.composed import PRESETS
    from tf_fashion.training.optimizers import TFAdam

    preset = PRESETS["val_fashion200k" if "mobilenet" in backbone else "val_fashion_iq"]
    encoder = ImageEncoder(backbone, 224, preset["taps"], pooling=None, batch_norm_momentum=preset["norm_momentum"])
    words = TEXT_ENCODERS.get("lstm")(5000, dim=512, embedding_dim=300, units=1024, output_dropout=0.1, **preset["text_options"])
    val = COMPOSERS.get("val")(**preset["composer_options"])
    model = ComposedRetriever(encoder, words, val, dim=512, projection="none", l2_penalty=preset["l2_penalty"])
    loss = LOSSES.get("bidirectional_matching")(**preset["loss_options"])
    model.compile(TFAdam(2e-4, epsilon=1e-8, use_ema=True, ema_momentum=preset["ema"]), loss)
    return model


def entry_model() -> Any:
    """The FashionIQ 2020 entry's TIRG at full size, optimised as there."""
    from tf_fashion.composers import COMPOSERS
    from tf_fashion.encoders.image import ImageEncoder
    from tf_fashion.encoders.text import TEXT_ENCODERS
    from tf_fashion.losses import LOSSES
    from tf_fashion.models import ComposedRetriever
    from tf_fashion.training.optimizers import GroupedAdamW

    words = TEXT_ENCODERS.get("lstm_gru")(3512, dim=2048, embedding_dim=900, layers=2)
    composer = COMPOSERS.get("tirg_fiq2020")(trainable_scalars=False)
    model = ComposedRetriever(ImageEncoder("torch_resnet50"), words, composer, dim=2048, initial_scale=5.0)
    model.compile(GroupedAdamW(1e-4, 0.01, 0.55, 0.999, decay_vectors=True), LOSSES.get("batch_hard_triplet")())
    return model


def fashion_iq_2020(arguments: argparse.Namespace) -> None:
    """Times the entry's step, in turns with PyTorch's if its interpreter is given."""
    import numpy as np
    import tensorflow as tf

    from tf_fashion.reports.tables import format_table

    tf.config.threading.set_intra_op_parallelism_threads(2)
    model = entry_model()
    random, batch = np.random.default_rng(0), arguments.batch
    inputs = {f"{role}_image": random.uniform(0, 255, (batch, 224, 224, 3)).astype("float32") for role in ("reference", "target")}
    inputs["text"] = random.integers(3, 3512, (batch, 13)).astype("int32")
    data = tf.data.Dataset.from_tensors((inputs, tf.range(batch))).repeat()

    def step() -> tuple[float, float]:
        start, clock = time.process_time(), time.perf_counter()
        model.fit(data, steps_per_epoch=1, epochs=1, verbose=0, shuffle=False)
        return time.process_time() - start, time.perf_counter() - clock

    torch = None
    if arguments.against_torch:
        command = [arguments.against_torch, str(Path(__file__).with_name("torch_tirg.py")), "--serve", "--batch", str(batch)]
        passive = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        torch = subprocess.Popen(
            command + ["--skip-unused-pass"] * arguments.skip_unused_pass,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=passive,
        )
        torch.stdout.readline()
    for _ in range(2):
        step()
    ours, theirs = [], []
    for _ in range(arguments.steps):
        ours.append(step())
        if torch is not None:
            print("step", file=torch.stdin, flush=True)
            told = json.loads(torch.stdout.readline())
            theirs.append((told["cpu"], told["wall"]))
    rows = []
    for name, found in ((f"ours, two passes ({model.count_params():,} weights)", ours), ("PyTorch", theirs)):
        if found:
            spent, wall = (statistics.median(column) for column in zip(*found, strict=True))
            rows.append([name, spent, wall, batch / spent])
    if torch is not None:
        torch.stdin.close()
        torch.wait()
        rows[1][0] += ", two passes" if arguments.skip_unused_pass else ", three passes as released"
        for row in rows:
            row.append(row[1] / rows[1][1])
    columns = ["step of the FashionIQ 2020 entry", "CPU-s", "s", "triplets per CPU-s", "CPU-s against PyTorch"]
    print(format_table(columns[: len(rows[0])], rows, style="markdown", digits=3))


CASES = [
    ("cached features 2971-d, swem, batch 128", partial(small_model, "mobilenet_v2", 224, "swem", 512, True), 128, 24),
    ("cached features 2971-d, gru 256, batch 128", partial(small_model, "mobilenet_v2", 224, "gru", 512, True), 128, 24),
    ("small_cnn 64 px, swem, batch 64", partial(small_model, "small_cnn", 64, "swem", 256, False), 64, 24),
    ("mobilenet_v2 96 px trained along, swem, batch 32", partial(small_model, "mobilenet_v2", 96, "swem", 512, False), 32, 24),
]
VAL_CASES = [
    ("VAL, MobileNet v1, 224 px, batch 8", partial(val_model, "slim_mobilenet_v1"), 8, 12),
    ("VAL, ResNet v2 50, 224 px, batch 8", partial(val_model, "slim_resnet_v2_50"), 8, 12),
]


if __name__ == "__main__":
    main()
