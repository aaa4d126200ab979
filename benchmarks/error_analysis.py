"""Which kinds of change a composed retriever gets wrong: recall by the attributes in which reference and target differ.

    python benchmarks/error_analysis.py --model M.keras --data DIR [--images DIR] --attributes products.csv --columns colour,type

The CSV has a column `id` and one column per attribute. A kind is the set of columns whose values differ between reference and target.
The second table says what is wrong with the picture at rank 1 where the target is not found among the first ten.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

from tf_fashion.cli import add_data_arguments, run_and_explain
from tf_fashion.core.quiet import import_tensorflow_quietly


def analyse(args: argparse.Namespace) -> int:
    import_tensorflow_quietly()
    import numpy as np

    from tf_fashion.core.errors import UsageError
    from tf_fashion.datasets import open_composed
    from tf_fashion.datasets.catalogue import read_table
    from tf_fashion.reports.tables import format_table
    from tf_fashion.retrieval.protocol import get_protocol
    from tf_fashion.retrieval.search import top_k
    from tf_fashion.training.commands import load_composed
    from tf_fashion.training.evaluation import Embedder, evaluate_composed, needed_images

    table = read_table(Path(args.attributes))
    columns = args.columns.split(",")
    missing = [name for name in ["id", *columns] if name not in table.columns]
    if missing:
        raise UsageError(f"{args.attributes}: no column {', '.join(missing)}. Found: {', '.join(table.columns)}.")
    rows_by_name = [dict(zip(table.columns, values, strict=True)) for _, values in table.rows]
    attributes = {row["id"]: row for row in rows_by_name}
    dataset = open_composed(args.data, args.images, args.categories)
    model = load_composed(args.model)
    embedder = Embedder(model)
    features = embedder.encode_photos({i: dataset.image_path(i) for i in needed_images(dataset, args.split)})
    protocol = get_protocol(args.protocol, dataset=dataset.name, split=args.split, join=model.caption_style)
    ranks: dict[str, list[float]] = defaultdict(list)
    wrong: Counter[str] = Counter()
    missed = 0
    for evaluation in evaluate_composed(embedder, dataset, features, protocol).values():
        _, best = top_k(evaluation.query_embeddings, evaluation.gallery_embeddings, 1)
        for query, rank, first in zip(evaluation.queries, evaluation.result.ranks, best[:, 0], strict=True):
            reference, target = attributes[query.reference], attributes[query.target]
            changed = [name for name in columns if reference[name] != target[name]]
            ranks[" + ".join(changed) or "(nothing)"].append(rank)
            if rank > 10:
                missed += 1
                found = attributes[evaluation.gallery_ids[first]]
                wrong.update([name for name in columns if found[name] != target[name]] or ["(none of them)"])
    rows = [
        [kind, len(values), 100 * float(np.mean(np.array(values) <= 10)), 100 * float(np.mean(np.array(values) <= 50))]
        for kind, values in sorted(ranks.items(), key=lambda item: -len(item[1]))
    ]
    print(format_table(["changed", "queries", "R@10", "R@50"], rows, style="markdown", digits=1))
    print(f"\nOf {missed} queries whose target is not among the first ten, the first picture is wrong in:")
    print(
        format_table(
            ["attribute", "percent"], [[k, 100 * n / max(missed, 1)] for k, n in wrong.most_common()], style="markdown", digits=1
        )
    )
    print(protocol.describe())
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    add_data_arguments(parser)
    parser.add_argument("--attributes", required=True, metavar="CSV")
    parser.add_argument("--columns", required=True, metavar="A,B")
    parser.add_argument("--split", default="val")
    parser.add_argument("--protocol", default="original")
    sys.exit(run_and_explain(analyse, parser.parse_args()))
