"""`python -m tests.parity DIR [--only PART]`: compares the library with every fixture file in DIR.

Prints one line per compared value, then the keys that are not covered with the reason, then a closing line
`N compared, M failed, K not covered`. Exit code 0 if nothing failed, 1 if something did (or nothing was found), 2 for bad usage.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tf_fashion.core.quiet import import_tensorflow_quietly


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with fixture files (.npz)")
    parser.add_argument("--only", action="append", default=[], help="only files whose name contains this (repeatable)")
    parser.add_argument("--quiet", action="store_true", help="print failures and totals only")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    import_tensorflow_quietly()
    from tests.parity.harness import run_folder

    fixtures = run_folder(args.folder, args.only)
    if not fixtures:
        print(f"{args.folder}: no .npz file matches", file=sys.stderr)
        return 1
    for fixture in fixtures:
        for comparison in fixture.comparisons:
            if not (args.quiet and comparison.ok):
                print(comparison)
    uncovered = 0
    for fixture in fixtures:
        missing = fixture.uncovered()
        uncovered += len(missing)
        if args.quiet:
            continue
        for reason, count in Counter(missing.values()).items():
            keys = [key for key, why in missing.items() if why == reason]
            listed = "all keys" if count == len(fixture.data) else ", ".join(keys)
            print(f"not covered: {fixture.name}: {listed}: {reason}")
    compared = [c for fixture in fixtures for c in fixture.comparisons]
    failed = [c for c in compared if not c.ok]
    print(f"{len(compared)} compared, {len(failed)} failed, {uncovered} not covered")
    return 1 if failed or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
