"""Trains attribute classifiers with several seeds on one dataset and prints mean ± deviation of their numbers under one protocol.

    python benchmarks/attributes.py --data runs/wardrobe-imaterialist --out runs/attributes --variant plain ""
    python benchmarks/attributes.py --data DIR --images DIR --out runs/attributes --weights FILE --freeze-backbone \\
        --variant softmax "" --variant sigmoid "--exclusive none" --right color,category

All options of `tf-fashion train attributes` are taken, and are the same for every run; those of a variant go on top. Finished runs are
not repeated.
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

from tf_fashion.cli import add_attribute_arguments, attribute_config, run_and_explain
from tf_fashion.cli.options import names
from tf_fashion.core.errors import UsageError

RULES = ("at 0.5", "cross-fitted")


def compare(args: argparse.Namespace) -> int:
    import keras

    from tf_fashion.core.files import read_json
    from tf_fashion.reports.tables import format_table
    from tf_fashion.training.attributes import train_attributes

    runs: dict[str, list] = {}
    for seed in map(int, args.seeds.split(",")):
        for name, options in args.variant:
            out = Path(args.out) / f"{name}-{seed}"
            if not (out / "metrics.json").exists():
                keras.backend.clear_session()
                config = attribute_config(build_parser().parse_args([*sys.argv[1:], *shlex.split(options)]))
                train_attributes(dataclasses.replace(config, seed=seed, out=str(out), report=False, export=False, progress=False))
            metrics = read_json(out / "metrics.json")
            runs.setdefault(name, []).append(metrics)
            found = {rule: round(100 * metrics["rules"][rule]["micro_f1"], 2) for rule in RULES}
            print(f"{name} seed {seed}: micro-F1 {found} in {metrics['run']['seconds']} s", flush=True)
    protocols = {entry["protocol"]["fingerprint"] for found in runs.values() for entry in found}
    if len(protocols) > 1:
        print(f"Note: the variants decide by {len(protocols)} protocols (groups that exclude each other, thresholds).")

    def cell(found: list, value) -> str:
        values = [100 * value(entry) for entry in found]
        return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"

    rows, matching = [], []
    for name, found in runs.items():
        tasks = found[0]["rules"][RULES[0]]["tasks"]
        unknown = [task for task in args.right if task not in tasks]
        if unknown:
            raise UsageError(f"--right: no group {unknown[0]!r}. Groups: {', '.join(tasks)}.")
        cells = [cell(found, lambda entry, r=rule, k=key: entry["rules"][r][k]) for rule in RULES for key in ("micro_f1", "macro_f1")]
        cells.append(cell(found, lambda entry: entry["rules"][RULES[0]]["mAP"]))
        cells += [cell(found, lambda entry, t=task: entry["rules"][RULES[0]]["tasks"][t]["accuracy"]) for task in args.right]
        rows.append([name, *cells, f"{np.mean([entry['run']['seconds'] for entry in found]):.0f}"])
        for metric in found[0]["matching"]:
            pair = [cell(found, lambda entry, m=metric, k=key: entry["matching"][m]["mean"][k] / 100) for key in ("mAP", "P@1")]
            matching.append([name, metric, *pair])
    heads = [f"{key} {rule}" for rule in RULES for key in ("micro-F1", "macro-F1")]
    heads = ["model", *heads, "mAP", *(f"{task} right" for task in args.right), "seconds"]
    print(format_table(heads, rows, style="markdown"))
    print()
    print(format_table(["model", "matching by", "mAP", "P@1"], matching, style="markdown"))
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_attribute_arguments(parser)
    parser.add_argument("--variant", nargs=2, action="append", required=True, metavar=("NAME", "OPTIONS"), help="one row")
    parser.add_argument("--right", type=names, default=(), metavar="A,B", help="groups whose likeliest label's accuracy is a column")
    parser.add_argument("--seeds", default="0,1,2")
    return parser


if __name__ == "__main__":
    sys.exit(run_and_explain(compare, build_parser().parse_args()))
