"""Trains dual encoders with several seeds on one dataset and prints mean ± deviation in both directions under one protocol.

    python benchmarks/dual_encoders.py --data runs/wardrobe-fashion_gen --out runs/dual_encoders --variant plain "" \\
        --variant concepts "--concept-loss"
    python benchmarks/dual_encoders.py --data DIR --images DIR --out runs/dual_encoders \\
        --variant frozen "--weights FILE --freeze-backbone" \\
        --variant frozen-concepts "--weights FILE --freeze-backbone --concept-loss" \\
        --variant clip "--preset tiny_clip" --variant clip-concepts "--preset tiny_clip --concept-loss"

All options of `tf-fashion train dual` are taken, and are the same for every run; those of a variant go on top. Finished runs are not
repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from tf_fashion.cli import add_dual_arguments, dual_config, run_and_explain

SIDES = {"text to image": "T2I", "image to text": "I2T"}


def compare(args: argparse.Namespace) -> int:
    import keras

    from tf_fashion.core.files import read_json
    from tf_fashion.reports.tables import format_table
    from tf_fashion.retrieval.protocol import compare_results
    from tf_fashion.training.dual import train_dual

    runs: dict[str, list] = {}
    for seed in map(int, args.seeds.split(",")):
        for name, options in args.variant:
            out = Path(args.out) / f"{name}-{seed}"
            if not (out / "metrics.json").exists():
                keras.backend.clear_session()
                config = dual_config(build_parser().parse_args([*sys.argv[1:], *shlex.split(options)]))
                train_dual(dataclasses.replace(config, seed=seed, out=str(out), report=False, export=False, progress=False))
                (out / "model.keras").unlink()
            metrics = read_json(out / "metrics.json")
            runs.setdefault(name, []).append(metrics)
            print(f"{name} seed {seed}: {metrics['mean']} in {metrics['run']['seconds']} s", flush=True)
    # Refuses results of different protocols or data.
    compare_results([metrics for found in runs.values() for metrics in found])
    cuts = [key for key in next(iter(runs.values()))[0]["mean"] if key != "mean"]
    rows = []
    for name, found in runs.items():
        cells = []
        for side in SIDES:
            for key in (*cuts, "mean"):
                values = [metrics["categories"][side][key] for metrics in found]
                cells.append(f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}")
        rows.append([name, *cells, f"{np.mean([metrics['run']['seconds'] for metrics in found]):.0f}"])
    heads = [f"{short} {key}" for short in SIDES.values() for key in (*cuts, "mean")]
    print(format_table(["model", *heads, "seconds"], rows, style="markdown"))
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_dual_arguments(parser)
    parser.add_argument("--variant", nargs=2, action="append", required=True, metavar=("NAME", "OPTIONS"), help="one row")
    parser.add_argument("--seeds", default="0,1,2")
    return parser


if __name__ == "__main__":
    sys.exit(run_and_explain(compare, build_parser().parse_args()))
