"""Trains several composers with several seeds on one dataset and prints mean ± deviation under one protocol.

    python benchmarks/composers.py --data runs/wardrobe --out runs/composers
    python benchmarks/composers.py --data DIR --images DIR --weights FILE --freeze-backbone --out runs/composers --seeds 0,1,2

All options of `tf-fashion train composed` are taken, and are the same for every run. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tf_fashion.cli import add_training_arguments, run_and_explain, training_config


def compare(args: argparse.Namespace) -> int:
    import keras

    from tf_fashion.core.files import read_json
    from tf_fashion.reports.tables import seeds_table
    from tf_fashion.training.composed import train_composed

    base = training_config(args)
    runs: dict[str, list] = {}
    for composer in args.composers.split(","):
        for seed in map(int, args.seeds.split(",")):
            out = Path(args.out) / f"{composer}-{seed}"
            if not (out / "metrics.json").exists():
                keras.backend.clear_session()
                train_composed(
                    dataclasses.replace(base, composer=composer, seed=seed, out=str(out), report=False, export=False, progress=False)
                )
                (out / "model.keras").unlink()
            metrics = read_json(out / "metrics.json")
            runs.setdefault(composer, []).append(metrics)
            print(f"{composer} seed {seed}: {metrics['mean']} in {metrics['run']['seconds']} s", flush=True)
    print(seeds_table(runs, style="markdown", digits=1))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    parser.add_argument("--composers", default="image_only,text_only,sum,concat,tirg,tirg_fiq2020")
    parser.add_argument("--seeds", default="0,1,2")
    sys.exit(run_and_explain(compare, parser.parse_args()))
