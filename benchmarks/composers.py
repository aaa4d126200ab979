"""Trains several composers with several seeds on one dataset and prints mean ± deviation under one protocol.

    python benchmarks/composers.py --data runs/wardrobe --out runs/composers
    python benchmarks/composers.py --data DIR --images DIR --weights FILE --freeze-backbone --out runs/composers --seeds 0,1,2

    python benchmarks/composers.py ... --composers tirg --variant val-3 "--composer val --pooling none --taps low,mid,high"

All options of `tf-fashion train composed` are taken, and are the same for every run; those of a variant go on top. Finished runs
are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tf_fashion.cli import add_training_arguments, run_and_explain, training_config


def variants(args: argparse.Namespace) -> dict[str, argparse.Namespace]:
    """Name of every row of the table -> its options."""
    named = {composer: ["--composer", composer] for composer in args.composers.split(",") if composer}
    named |= {name: shlex.split(options) for name, options in args.variant}
    return {name: build_parser().parse_args([*sys.argv[1:], *options]) for name, options in named.items()}


def compare(args: argparse.Namespace) -> int:
    import keras

    from tf_fashion.core.files import read_json
    from tf_fashion.reports.tables import seeds_table
    from tf_fashion.training.composed import train_composed

    runs: dict[str, list] = {}
    for seed in map(int, args.seeds.split(",")):
        for name, options in variants(args).items():
            out = Path(args.out) / f"{name}-{seed}"
            if not (out / "metrics.json").exists():
                keras.backend.clear_session()
                train_composed(
                    dataclasses.replace(training_config(options), seed=seed, out=str(out), report=False, export=False, progress=False)
                )
                (out / "model.keras").unlink()
            metrics = read_json(out / "metrics.json")
            runs.setdefault(name, []).append(metrics)
            print(f"{name} seed {seed}: {metrics['mean']} in {metrics['run']['seconds']} s", flush=True)
    print(seeds_table(runs, style="markdown", digits=1))
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--composers", default="image_only,text_only,sum,concat,tirg,tirg_fiq2020")
    parser.add_argument("--variant", nargs=2, action="append", default=[], metavar=("NAME", "OPTIONS"), help="one more row")
    parser.add_argument("--seeds", default="0,1,2")
    return parser


if __name__ == "__main__":
    sys.exit(run_and_explain(compare, build_parser().parse_args()))
