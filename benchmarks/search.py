"""Exact search: this library against FAISS flat and NumPy, in CPU-seconds of one run.

python benchmarks/search.py                                   # about a minute on 2 cores
python benchmarks/search.py --gallery 1000000 --queries 1000  # a big catalogue (2 GB of float32 at --dim 512)
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description="Measures exact top-k and rank-of-target of tf_fashion against FAISS IndexFlatIP (pip install faiss-cpu) and "
        "numpy.argpartition on random unit vectors. Every method gets the same vectors and must find the same neighbours. "
        "CPU-seconds count the work of all threads, so a loaded machine changes them little; 'ratio' is the CPU time relative "
        "to tf_fashion's top-k in the same run (below 1 is cheaper).",
        epilog="Example: python benchmarks/search.py --gallery 200000 --dim 640 --queries 1024 --k 50",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--gallery", type=int, default=50_000, metavar="N", help="gallery rows")
    parser.add_argument("--queries", type=int, default=512, metavar="Q", help="query rows")
    parser.add_argument("--dim", type=int, default=512, metavar="D", help="width of the vectors")
    parser.add_argument("--k", type=int, default=50, help="neighbours to find")
    parser.add_argument("--chunk", type=int, default=8192, help="gallery rows per block")
    parser.add_argument("--repeats", type=int, default=3, help="runs per method; the fastest counts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random vectors")
    arguments = parser.parse_args(argv)
    for name in ("gallery", "queries", "dim", "k", "chunk", "repeats"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.k > arguments.gallery:
        parser.error(f"--k {arguments.k} is more than --gallery {arguments.gallery}")
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

    from tf_fashion.retrieval.search import rank_of_target, top_k

    rng = np.random.default_rng(args.seed)
    vectors = rng.standard_normal((args.gallery + args.queries, args.dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries, gallery = vectors[: args.queries], vectors[args.queries :]
    targets = rng.integers(0, args.gallery, args.queries)

    def numpy_top_k():
        positions = np.empty((args.queries, args.k), np.int64)
        for start in range(0, args.queries, 256):
            scores = queries[start : start + 256] @ gallery.T
            part = np.argpartition(-scores, args.k - 1, axis=1)[:, : args.k]
            order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1)
            positions[start : start + 256] = np.take_along_axis(part, order, axis=1)
        return positions

    def numpy_ranks():
        ranks = np.empty(args.queries, np.int64)
        for start in range(0, args.queries, 256):
            scores = queries[start : start + 256] @ gallery.T
            own = scores[np.arange(len(scores)), targets[start : start + 256]]
            ranks[start : start + 256] = (scores > own[:, None]).sum(axis=1) + 1
        return ranks

    half = gallery.astype(np.float16)
    methods = {
        "tf_fashion top_k": lambda: top_k(queries, gallery, args.k, chunk=args.chunk)[1],
        "tf_fashion top_k, float64": lambda: top_k(queries, gallery, args.k, chunk=args.chunk, precision="float64")[1],
        "tf_fashion top_k, float16 gallery": lambda: top_k(queries, half, args.k, chunk=args.chunk)[1],
        "numpy argpartition": numpy_top_k,
    }
    try:
        import faiss
    except ImportError:
        print("FAISS is not installed (pip install faiss-cpu): its row is left out.")
    else:
        flat = faiss.IndexFlatIP(args.dim)
        flat.add(gallery)
        methods["faiss IndexFlatIP"] = lambda: flat.search(queries, args.k)[1]
    ranking = {
        "tf_fashion rank_of_target": lambda: rank_of_target(queries, gallery, targets, chunk=args.chunk),
        "numpy rank of target": numpy_ranks,
    }

    print(f"{args.queries} queries, gallery {args.gallery} x {args.dim}, k={args.k}, best of {args.repeats}, {os.cpu_count()} cores")
    print(f"{'method':36} {'CPU-s':>8} {'wall s':>8} {'queries/CPU-s':>14} {'ratio':>7}  agrees")
    top_k(queries[:8], gallery[:1000], min(args.k, 1000))
    base = None
    for table in (methods, ranking):
        first = None
        for name, function in table.items():
            result, cpu, wall = measure(function, args.repeats)
            base = cpu if base is None else base
            first = result if first is None else first
            # Rounding may swap neighbours whose scores differ in the last digits, and half precision more of them.
            if table is ranking:
                same = float((first == result).mean())
            else:
                same = float(np.mean([len(np.intersect1d(a, b)) / args.k for a, b in zip(first, result, strict=True)]))
            print(f"{name:36} {cpu:8.2f} {wall:8.2f} {args.queries / cpu:14.0f} {cpu / base:7.2f}  {100 * same:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
