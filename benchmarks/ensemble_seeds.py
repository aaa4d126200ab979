"""Members and ensemble over several seeds, as one table.

for seed in 0 1 2; do bash scripts/run_ensemble.sh --data DIR --seed $seed --out runs/ensemble-$seed; done
python benchmarks/ensemble_seeds.py runs/ensemble-0/ensemble runs/ensemble-1/ensemble runs/ensemble-2/ensemble
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Reads what `tf-fashion ensemble` wrote for runs that differ in their seed and prints mean and sample standard "
        "deviation of every member, of equal weights, and of the cross-fitted ensemble, and what it gains over the best member.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="--out of an ensemble, one per seed")
    arguments = parser.parse_args(argv)
    from tf_fashion.core.errors import TfFashionError
    from tf_fashion.core.files import read_json

    try:
        results = [read_json(Path(folder) / "ensemble.json") for folder in arguments.folders]
        print(table(results))
    except TfFashionError as error:
        sys.exit(f"ensemble_seeds: {error}")


def table(results):
    """The table of several `ensemble.json` with the same members and protocol."""
    import numpy as np

    from tf_fashion.core.errors import UsageError
    from tf_fashion.reports.tables import format_table

    names = [member["name"] for member in results[0]["members"]]
    for result in results:
        if [member["name"] for member in result["members"]] != names:
            raise UsageError(f"These ensembles have other members: {names} and {[member['name'] for member in result['members']]}.")
        if result["protocol"]["fingerprint"] != results[0]["protocol"]["fingerprint"]:
            raise UsageError("These ensembles were measured under different protocols.")
    cuts = list(results[0]["equal"])
    rows = [(name, [result["members"][place] for result in results]) for place, name in enumerate(names)]
    rows.append(("equal weights", [result["equal"] for result in results]))
    rows.append(("ensemble, cross-fitted", [result["cross_fitted"] for result in results]))

    def spread(values):
        return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else f"{values[0]:.1f}"

    lines = [[name, *(spread([entry[cut] for entry in entries]) for cut in cuts)] for name, entries in rows]
    gains = [r["cross_fitted"]["mean"] - max(member["mean"] for member in r["members"]) for r in results]
    text = format_table(["member", *cuts], lines)
    seeds = f"{len(results)} seed" + "s" * (len(results) > 1)
    return f"{text}\n{results[0]['protocol']['description']}; {seeds}\nGain over the best member: {spread(gains)} points"


if __name__ == "__main__":
    main()
