"""Trains street-to-shop models with several seeds, adapts each by several strategies, and prints mean ± deviation under one protocol.

    python benchmarks/street_to_shop.py --data runs/wardrobe-street_to_shop --out runs/street_to_shop
    python benchmarks/street_to_shop.py --data LISTS --images DIR --out runs/street_to_shop --weights FILE --freeze-backbone \\
        --protocol cross-domain --test df --first triplet "--loss mined_triplet --learning-rate 0.003 --epochs 15" --first contrast ""

All options of `tf-fashion train street_to_shop` are taken for the first stage, and are the same for every run; those of a variant
(`--first`) go on top. `--adapt` gives options of `tf-fashion adapt` to all second stages. The weighting "none" is the same further
training without any photo of the target. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tf_fashion.cli import adapt_config, add_adapt_arguments, add_street_arguments, run_and_explain, street_config
from tf_fashion.cli.options import names
from tf_fashion.core.quiet import import_tensorflow_quietly


def compare(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    import keras

    from tf_fashion.core.files import read_json
    from tf_fashion.reports.udma import street_comparison
    from tf_fashion.training.adaptation import adapt
    from tf_fashion.training.street import train_street

    quiet = {"report": False, "export": False, "progress": False}
    runs: dict[str, list] = {}
    second = argparse.ArgumentParser()
    add_adapt_arguments(second)
    for seed in map(int, args.seeds.split(",")):
        for variant, options in args.first or [("first stage", "")]:
            out = Path(args.out) / f"{variant.replace(' ', '-')}-{seed}"
            if not (out / "metrics.json").exists():
                keras.backend.clear_session()
                config = street_config(build_parser().parse_args([*sys.argv[1:], *shlex.split(options)]))
                train_street(dataclasses.replace(config, seed=seed, out=str(out), **quiet))
            metrics = read_json(out / "metrics.json")
            for name, tests in metrics["compared"].items():
                runs.setdefault(name, [])
                if not runs[name] or seed not in [found["seed"] for found in runs[name]]:
                    runs[name].append({"seed": seed, **tests})
            runs.setdefault(variant, []).append({"seed": seed, **metrics["tests"]})
            print(f"{variant} seed {seed}: {_short(metrics['tests'])} in {metrics['run']['seconds']} s", flush=True)
            for weighting in args.weightings:
                folder = out / weighting
                if not (folder / "metrics.json").exists():
                    keras.backend.clear_session()
                    given = ["--data", args.data, "--model", str(out / "model.keras"), "--out", str(folder), "--weighting", weighting]
                    for option in ("images", "protocol", "ap", "cache"):
                        given += [f"--{option}", getattr(args, option)] if getattr(args, option) else []
                    given += ["--test", ",".join(args.test)] if args.test else []
                    config = adapt_config(second.parse_args([*given, *shlex.split(args.adapt)]))
                    adapt(dataclasses.replace(config, seed=seed, **quiet))
                metrics = read_json(folder / "metrics.json")
                name = f"{variant}, then {'no target (control)' if weighting == 'none' else weighting}"
                runs.setdefault(name, []).append({"seed": seed, **metrics["tests"]})
                print(f"{name} seed {seed}: {_short(metrics['tests'])}", flush=True)
    for source in next(iter(runs.values()))[0]:
        if source != "seed":
            print(f"\n{source}\n")
            print(
                street_comparison(
                    {name: [entry[source] for entry in found] for name, found in runs.items()}, style="markdown", digits=1
                )
            )
    return 0


def _short(tests: dict) -> dict:
    return {source: round(result["mean"]["mAP"], 2) for source, result in tests.items()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_street_arguments(parser)
    parser.add_argument("--first", nargs=2, action="append", metavar=("NAME", "OPTIONS"), help="a first stage; repeatable")
    parser.add_argument(
        "--weightings",
        type=names,
        default=("none", "ws5", "ws6", "ws7", "ws8", "soft", "unweighted"),
        metavar="A,B",
        help="strategies of the second stage",
    )
    parser.add_argument("--adapt", default="", metavar="OPTIONS", help="options of all second stages")
    parser.add_argument("--seeds", default="0,1,2")
    return parser


if __name__ == "__main__":
    sys.exit(run_and_explain(compare, build_parser().parse_args()))
