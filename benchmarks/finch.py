"""FINCH: this library beside the authors' package finch-clust, in CPU-seconds, peak memory and partitions.

python benchmarks/finch.py                                              this library alone, up to 50,000 x 128
python benchmarks/finch.py --against PYTHON                             and finch-clust, with an interpreter that has it
                                                                        (pip install finch-clust pynndescent)
python benchmarks/finch.py --rows 200000 --rows 1000000 --faiss         larger ones, and the approximate mode (pip install faiss-cpu)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve()
OURS, APPROXIMATE, PACKAGE = "tf_fashion", "tf_fashion, FAISS", "finch-clust"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__
        + "\nEvery program clusters the same unit rows, drawn around one centre for ten rows, by cosine, twice in one process of its\n"
        "own: finch-clust compiles its approximate search in the first call. 'with nearest': share of 2,000 rows that the first\n"
        "partition puts together with their nearest neighbour, looked up in double precision. 'same partitions' compares all labels\n"
        "of all partitions with those of the first program; where they differ, the adjusted Rand index of the first partition stands\n"
        "beside it. finch-clust searches exactly up to 20,000 rows and approximately above.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, action="append", help="how many (repeatable); default 10000, 20000 and 50000")
    parser.add_argument("--dim", type=int, default=128, help="width of the rows")
    parser.add_argument("--spread", type=float, default=0.8, help="deviation of rows around their centres, whose own is 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", metavar="PYTHON", help="an interpreter that has finch-clust")
    parser.add_argument("--faiss", action="store_true", help="the approximate mode too")
    parser.add_argument("--no-exact", action="store_true", help="leave the exact mode out (a million rows take it long)")
    parser.add_argument("--once", action="store_true", help="no second call")
    parser.add_argument("--run", nargs=4, metavar=("PROGRAM", "FEATURES", "LABELS", "CALLS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run[:3], int(arguments.run[3]))
        return
    programs = [OURS] * (not arguments.no_exact) + [APPROXIMATE] * arguments.faiss + [PACKAGE] * bool(arguments.against)
    sizes = arguments.rows or [10_000, 20_000, 50_000]
    if not programs or min(sizes) < 100 or arguments.dim < 1:
        parser.error("there must be something to run, on at least 100 rows with at least one column")
    print("| rows | program | CPU-s | s | CPU-s again | peak GB | clusters | with nearest | same partitions | CPU-s, again: ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for rows in sizes:
        compare(rows, programs, arguments)


def compare(rows: int, programs: list[str], arguments: argparse.Namespace) -> None:
    """Runs the programs on one set of rows and prints a line for each."""
    features = drawn(rows, arguments.dim, arguments.spread, arguments.seed)
    some = np.random.default_rng(arguments.seed + 1).choice(rows, min(2000, rows), replace=False)
    nearest = nearest_of(features, some)
    told, first, lines = {}, None, []
    with tempfile.TemporaryDirectory() as folder:
        given, kept = str(Path(folder, "features.npy")), Path(folder, "found.npz")
        np.save(given, features)
        del features
        for program in programs:
            python = arguments.against if program == PACKAGE else sys.executable
            command = [python, str(HERE), "--run", program, given, str(kept), "1" if arguments.once else "2"]
            told[program] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
            with np.load(kept) as found:
                labels = found["labels"]
            together = f"{100 * np.mean(labels[some, 0] == labels[nearest, 0]):.2f} %"
            same = ""
            if first is None:
                first = labels
            else:
                same = "yes" if np.array_equal(first, labels) else f"no, {rand_index(first[:, 0], labels[:, 0]):.4f}"
            lines.append((program, together, same, (labels.max(axis=0) + 1).tolist()))
    for program, together, same, counts in lines:
        one = told[program]
        ratio = ""
        if PACKAGE in told:
            ratio = ", ".join(f"{mine / its:.2f}" for mine, its in zip(one["cpu"], told[PACKAGE]["cpu"], strict=True))
        again = f"{one['cpu'][1]:.2f}" if len(one["cpu"]) > 1 else ""
        figures = f"{one['cpu'][0]:.2f} | {one['wall'][0]:.2f} | {again} | {one['peak']:.2f}"
        print(f"| {rows:,} | {program} | {figures} | {' '.join(map(str, counts))} | {together} | {same} | {ratio} |", flush=True)


def run(program: str, given: str, kept: str, calls: int) -> None:
    """Clusters the rows of the file `given` with one program, saves what it found, and prints what each call took as JSON."""
    features = np.load(given)
    if program == PACKAGE:
        # This file has the package's name.
        sys.path.remove(str(HERE.parent))
        from finch import FINCH

        def cluster() -> np.ndarray:
            return FINCH(features, verbose=False)[0]
    else:
        sys.path.insert(0, str(HERE.parents[1]))
        from tf_fashion.clustering.finch import finch

        def cluster() -> np.ndarray:
            return finch(features, neighbours="faiss" if program == APPROXIMATE else "exact").labels

    told = {"cpu": [], "wall": []}
    for _ in range(calls):
        start, clock = time.process_time(), time.perf_counter()
        labels = cluster()
        told["cpu"].append(time.process_time() - start)
        told["wall"].append(time.perf_counter() - clock)
    np.savez(kept, labels=np.asarray(labels))
    print(json.dumps({**told, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))


def drawn(rows: int, width: int, spread: float, seed: int) -> np.ndarray:
    """Unit rows around one centre for ten rows: float32 (rows, width)."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((rows // 10, width), np.float32)
    features = centres[random.integers(0, len(centres), rows)]
    features += np.float32(spread) * random.standard_normal((rows, width), np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def nearest_of(features: np.ndarray, some: np.ndarray) -> np.ndarray:
    """The first neighbours of the rows `some` among all rows, in double precision."""
    nearest, best = np.zeros(len(some), np.int64), np.full(len(some), -np.inf)
    chosen = features[some].astype(np.float64)
    chosen /= np.linalg.norm(chosen, axis=1, keepdims=True)
    for start in range(0, len(features), 4096):
        block = features[start : start + 4096].astype(np.float64)
        scores = chosen @ (block / np.linalg.norm(block, axis=1, keepdims=True)).T
        own = np.flatnonzero((some >= start) & (some < start + len(block)))
        scores[own, some[own] - start] = -np.inf
        columns = scores.argmax(axis=1)
        values = scores[np.arange(len(some)), columns]
        nearest[values > best] = columns[values > best] + start
        best = np.maximum(best, values)
    return nearest


def rand_index(one: np.ndarray, other: np.ndarray) -> float:
    """Adjusted Rand index of two partitions: 1 for equal ones, about 0 for unrelated ones (Hubert and Arabie 1985)."""

    def pairs(labels: np.ndarray) -> float:
        sizes = np.unique(labels, return_counts=True)[1].astype(np.float64)
        return float((sizes * (sizes - 1) / 2).sum())

    together = pairs(one.astype(np.int64) * (int(other.max()) + 1) + other)
    first, second, most = pairs(one), pairs(other), len(one) * (len(one) - 1) / 2
    expected = first * second / most
    return (together - expected) / max((first + second) / 2 - expected, 1e-12)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
