"""Training step of `ComposedRetriever`: CPU-seconds per step and images per CPU-second, measured in one run.

python benchmarks/train_step.py
python benchmarks/train_step.py --composer concat --steps 20
python benchmarks/train_step.py --val            VAL at full size: 224 px, batch 8, 5,000 words, sentences of 12
python benchmarks/train_step.py --fashion-iq-2020 [--against-torch PYTHON]
                                                 the FashionIQ 2020 entry: ResNet-50 trained along, LSTM beside GRU, 2048 wide,
                                                 3,512 words, sentences of 13; and the same step in PyTorch, in turns, with an
                                                 interpreter that has it (benchmarks/torch_tirg.py: three passes of the trunk, as
                                                 released; --skip-unused-pass: two)
python benchmarks/train_step.py --clip [--against-torch PYTHON] [--clip-model ViT-L/14] [--tokens 48]
                                                 CLIP: both towers trained along with the contrastive loss and AdamW, captions padded
                                                 to 77, of which ours leaves out what is behind the longest (--tokens), and once more
                                                 with all 77; in turns with HuggingFace's CLIPModel (benchmarks/torch_clip.py)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--composer", default="tirg")
    parser.add_argument("--val", action="store_true", help="VAL with its two published backbones instead")
    parser.add_argument("--fashion-iq-2020", action="store_true", help="the FashionIQ 2020 entry instead")
    parser.add_argument("--clip", action="store_true", help="CLIP instead")
    parser.add_argument("--clip-model", default="ViT-B/32", help="with --clip: ViT-B/32, ViT-B/16 or ViT-L/14")
    parser.add_argument("--tokens", type=int, default=48, help="with --clip: tokens of the longest caption of the batch")
    parser.add_argument(
        "--against-torch",
        metavar="PYTHON",
        help="with --fashion-iq-2020 or --clip: an interpreter that has PyTorch (with --clip also transformers)",
    )
    parser.add_argument("--skip-unused-pass", action="store_true", help="PyTorch's step without the pass whose result is not used")
    parser.add_argument("--batch", type=int, default=8, help="with --fashion-iq-2020 or --clip: examples per step")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two of warm-up")
    arguments = parser.parse_args()
    if arguments.against_torch and not (arguments.fashion_iq_2020 or arguments.clip):
        parser.error("--against-torch needs --fashion-iq-2020 or --clip")

    from tf_fashion.core.quiet import import_tensorflow_quietly

    import_tensorflow_quietly()
    import keras
    import numpy as np
    import tensorflow as tf

    from tf_fashion.reports.tables import format_table

    if arguments.fashion_iq_2020:
        fashion_iq_2020(arguments)
        return
    if arguments.clip:
        clip(arguments)
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

    tf.config.threading.set_intra_op_parallelism_threads(2)
    model = entry_model()
    random, batch = np.random.default_rng(0), arguments.batch
    inputs = {f"{role}_image": random.uniform(0, 255, (batch, 224, 224, 3)).astype("float32") for role in ("reference", "target")}
    inputs["text"] = random.integers(3, 3512, (batch, 13)).astype("int32")
    data = tf.data.Dataset.from_tensors((inputs, tf.range(batch))).repeat()

    torch = None
    if arguments.against_torch:
        options = ["--batch", str(batch), *["--skip-unused-pass"] * arguments.skip_unused_pass]
        torch = TorchStep(arguments.against_torch, "torch_tirg.py", options)
    found = in_turns({f"ours, two passes ({model.count_params():,} weights)": fit_step(model, data)}, torch, arguments.steps)
    if torch is not None:
        torch.close()
        found[f"PyTorch, {'two passes' if arguments.skip_unused_pass else 'three passes as released'}"] = found.pop("PyTorch")
    print_steps("step of the FashionIQ 2020 entry", found, batch, "triplets")


def clip(arguments: argparse.Namespace) -> None:
    """Times a step of CLIP, with and without the padding, in turns with PyTorch's if its interpreter is given."""
    import numpy as np
    import tensorflow as tf

    from tf_fashion.encoders.clip import CLIP_CONFIGS, CLIPImageEncoder, CLIPTextEncoder
    from tf_fashion.models.dual import DualEncoder
    from tf_fashion.training.optimizers import GroupedAdamW

    tf.config.threading.set_intra_op_parallelism_threads(2)
    config, batch = CLIP_CONFIGS[arguments.clip_model], arguments.batch
    random = np.random.default_rng(0)
    token_ids = np.zeros((batch, 77), np.int32)
    for row, tokens in enumerate(np.linspace(arguments.tokens, arguments.tokens // 3, batch).astype(int)):
        token_ids[row, :tokens] = [49406, *random.integers(320, 49000, tokens - 2), 49407]
    images = random.uniform(0, 255, (batch, config.image_resolution, config.image_resolution, 3)).astype("float32")
    data = tf.data.Dataset.from_tensors(({"image": images, "text": token_ids}, tf.range(batch))).repeat()
    model = DualEncoder(CLIPImageEncoder(config), CLIPTextEncoder(config))
    model.compile(GroupedAdamW(1e-5, 0.001, 0.9, 0.98, 1e-6))

    torch = None
    if arguments.against_torch:
        options = ["--batch", str(batch), "--tokens", str(arguments.tokens), "--model", arguments.clip_model]
        torch = TorchStep(arguments.against_torch, "torch_clip.py", options)
    weights = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    for trim, name in ((True, f"ours ({weights:,} weights)"), (False, "ours, padding not trimmed")):
        model.text_encoder.trim_padding = trim
        model.make_train_function(force=True)
        found = in_turns({name: fit_step(model, data)}, torch, arguments.steps)
        if torch is not None:
            found["PyTorch, HuggingFace's CLIPModel"] = found.pop("PyTorch")
        print_steps(f"step of {arguments.clip_model}, longest caption {arguments.tokens} of 77", found, batch, "pairs")
    if torch is not None:
        torch.close()


class TorchStep:
    """A program that runs one step of PyTorch for each line that it is sent."""

    def __init__(self, python: str, program: str, options: list[str]) -> None:
        passive = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        command = [python, str(Path(__file__).with_name(program)), "--serve", *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=passive)
        self.process.stdout.readline()

    def __call__(self) -> tuple[float, float]:
        print("step", file=self.process.stdin, flush=True)
        told = json.loads(self.process.stdout.readline())
        return told["cpu"], told["wall"]

    def close(self) -> None:
        """Ends the program."""
        self.process.stdin.close()
        self.process.wait()


def fit_step(model: Any, data: Any) -> Callable[[], tuple[float, float]]:
    """A function that trains for one step and returns its CPU-seconds and seconds."""

    def step() -> tuple[float, float]:
        start, clock = time.process_time(), time.perf_counter()
        model.fit(data, steps_per_epoch=1, epochs=1, verbose=0, shuffle=False)
        return time.process_time() - start, time.perf_counter() - clock

    return step


def in_turns(
    steps: dict[str, Callable[[], tuple[float, float]]], torch: TorchStep | None, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """CPU-seconds and seconds of every step in every round, after two of warm-up; PyTorch, which warms itself up, last."""
    for step in list(steps.values()) * 2:
        step()
    steps = {**steps, **({"PyTorch": torch} if torch is not None else {})}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            found[name].append(step())
    return found


def print_steps(heading: str, found: dict[str, list[tuple[float, float]]], batch: int, what: str) -> None:
    """The medians as a table; ratios to the last row if there are several."""
    from tf_fashion.reports.tables import format_table

    rows: list[list[Any]] = []
    for name, times in found.items():
        spent, wall = (statistics.median(column) for column in zip(*times, strict=True))
        rows.append([name, spent, wall, batch / spent])
    columns = [heading, "CPU-s", "s", f"{what} per CPU-s"]
    if len(rows) > 1:
        columns.append("CPU-s against PyTorch")
        for row in rows:
            row.append(row[1] / rows[-1][1])
    print(format_table(columns, rows, style="markdown", digits=3))


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
