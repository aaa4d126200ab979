"""Fusing score files: seconds and memory of the search for weights and of everything around it.

python benchmarks/ensemble.py                                       # 5 members, 6,000 queries x 16,000 entries, 200 trials
python benchmarks/ensemble.py --queries 1000 --gallery 4000 --trials 50
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description="Makes members whose targets stand out from noise by --strength standard deviations, partly in common, writes them "
        "as score files, fuses them as `tf-fashion ensemble` does, and prints time and greatest memory of the fusion.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--queries", type=int, default=6000)
    parser.add_argument("--gallery", type=int, default=16000)
    parser.add_argument("--categories", type=int, default=1)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--strength", type=float, default=1.5)
    parser.add_argument("--normalise", default="zscore")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--no-fused", dest="fused", action="store_false", help="do not write the fused matrix")
    parser.add_argument("--folder", metavar="DIR", help="where the files go (default: a temporary folder)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def make_members(folder, args):
    import numpy as np

    from tf_fashion.ensemble.scores import ScoredQuery, ScoreWriter
    from tf_fashion.retrieval.protocol import get_protocol

    share = args.queries // args.categories
    for member in range(args.members):
        with ScoreWriter(folder / f"member{member}", f"member{member}", get_protocol("fiq2020"), 25.0, dtype=args.dtype) as writer:
            for number in range(args.categories):
                gallery = [f"g{place}" for place in range(args.gallery)]
                targets = np.random.default_rng([args.seed, number]).integers(args.gallery, size=share)
                queries = [ScoredQuery(f"q{row}", f"r{row}", gallery[target]) for row, target in enumerate(targets)]
                matrix = writer.category(f"category{number}", queries, gallery)
                for start in range(0, share, 500):
                    rows = slice(start, min(start + 500, share))
                    common, own = (
                        np.random.default_rng([args.seed, number, start, stream]).standard_normal(
                            (rows.stop - start, args.gallery), np.float32
                        )
                        for stream in (0, member + 1)
                    )
                    block = 0.5 * common + 0.87 * own
                    strength = args.strength * (1 + 0.3 * member)
                    block[np.arange(len(block)), targets[rows]] += strength
                    matrix[rows] = 0.05 * block


def main(argv=None):
    args = parse(argv)
    from tf_fashion.training.ensembling import EnsembleConfig, build_ensemble

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        print("writing the members", flush=True)
        make_members(folder, args)
        members = tuple(str(folder / f"member{member}") for member in range(args.members))
        config = EnsembleConfig(
            members,
            str(folder / "out"),
            normalise=args.normalise,
            trials=args.trials,
            folds=args.folds,
            fused=args.fused,
            seed=args.seed,
        )
        child = os.fork()
        if child == 0:
            wall, cpu = time.perf_counter(), time.process_time()
            build_ensemble(config)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"fused in {time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} CPU-s, at most {peak:.2f} GB")
            sys.stdout.flush()
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
