"""Consumer-to-shop evaluation: what ranks cost beyond the bare matrix product, in CPU-seconds of one run, and that sorting agrees.

python benchmarks/street_to_shop_evaluation.py                       # 2,000 x 20,000 x 2048, some seconds
python benchmarks/street_to_shop_evaluation.py --queries 10000 --gallery 100000
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description="Measures the ranks of all right pictures (tf_fashion.retrieval.multi_positive) against the bare product of the "
        "same random unit vectors, block by block as there, and against a stable sort of some rows, which must give the same ranks. "
        "CPU-seconds count the work of all threads, so a loaded machine changes them little. Exit code 1 if ranks differ or "
        "cost more than --limit times the bare product.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--queries", type=int, default=2_000, metavar="Q", help="query rows")
    parser.add_argument("--gallery", type=int, default=20_000, metavar="N", help="gallery rows")
    parser.add_argument("--dim", type=int, default=2048, metavar="D", help="width of the vectors")
    parser.add_argument("--positives", type=int, default=2, metavar="P", help="right pictures per query")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each; the fastest counts")
    parser.add_argument("--sorted-rows", type=int, default=200, metavar="S", help="queries that are also sorted")
    parser.add_argument("--limit", type=float, default=1.1, help="greatest allowed ratio")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random vectors")
    arguments = parser.parse_args(argv)
    for name in ("queries", "gallery", "dim", "positives", "repeats", "sorted_rows"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(arguments, name)}")
    if arguments.positives > arguments.gallery:
        parser.error("--positives must not be more than --gallery")
    return arguments


def measure(function, repeats):
    """(result, least CPU-seconds, least seconds) over the repeats."""
    best_cpu = best_wall = float("inf")
    result = None
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        result = function()
        best_cpu = min(best_cpu, time.process_time() - cpu)
        best_wall = min(best_wall, time.perf_counter() - wall)
    return result, best_cpu, best_wall


def main(argv=None):
    args = parse(argv)
    import numpy as np

    from tf_fashion.retrieval.multi_positive import SCORE_BYTES, average_precisions, multi_positive_ranks

    rng = np.random.default_rng(args.seed)

    def unit(count):
        rows = rng.standard_normal((count, args.dim), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    gallery, queries = unit(args.gallery), unit(args.queries)
    # Some copies, so that there are ties.
    gallery[-max(1, args.gallery // 200) :] = gallery[: max(1, args.gallery // 200)]
    picked = [np.sort(rng.choice(args.gallery, args.positives, replace=False)) for _ in range(args.queries)]
    splits, positions = np.arange(args.queries + 1) * args.positives, np.concatenate(picked)
    block = max(1, min(1024, SCORE_BYTES // (4 * args.gallery)))
    scores = np.empty((block, args.gallery), np.float32)

    def bare():
        for start in range(0, args.queries, block):
            rows = queries[start : start + block]
            np.matmul(rows, gallery.T, out=scores[: len(rows)])

    def ranks():
        return multi_positive_ranks(queries, gallery, splits, positions)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    _, bare_cpu, bare_wall = measure(bare, args.repeats)
    found, cpu, wall = measure(ranks, args.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    count = min(args.sorted_rows, args.queries)
    _, originals, which = np.unique(gallery[:, :4], axis=0, return_index=True, return_inverse=True)
    sort_cpu = 0.0
    agree = 0
    for row in range(count):
        # A copy has its original's score, whatever the kernel rounds.
        line = (queries[row] @ gallery.T)[originals][which.ravel()]
        start = time.process_time()
        order = np.argsort(-line, kind="stable")
        sort_cpu += time.process_time() - start
        place = np.empty(args.gallery, np.int64)
        place[order] = np.arange(1, args.gallery + 1)
        own = np.sort(place[picked[row]])
        near = np.abs(line[:, None] - line[picked[row]]) < 1e-6
        agree += bool((np.abs(own - found.of(row).ranks()) <= near.sum(axis=0).max() - 1).all())

    ratio = cpu / bare_cpu
    sizes = f"{args.queries} queries, gallery {args.gallery} x {args.dim}, {args.positives} right each"
    print(f"{sizes}, blocks of {block}, {os.cpu_count()} cores")
    print(f"bare product          {bare_cpu:8.2f} CPU-s {bare_wall:8.2f} s")
    print(f"ranks of all          {cpu:8.2f} CPU-s {wall:8.2f} s   ratio {ratio:.3f} (limit {args.limit})")
    print(f"a sort of all rows    {sort_cpu / count * args.queries:8.2f} CPU-s more than the product (from {count} queries)")
    print(f"ranks agree for {agree} of {count} queries, up to scores nearer than 1e-6")
    print(f"memory {peak:.2f} GiB, {before:.2f} of it the vectors; mAP (trapezoid) {100 * np.nanmean(average_precisions(found)):.4f} %")
    return 0 if agree == count and ratio <= args.limit else 1


if __name__ == "__main__":
    sys.exit(main())
