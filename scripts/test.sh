#!/usr/bin/env bash
# Sets up .venv and runs the tests: bash scripts/test.sh [--all] [pytest arguments]
# Without --all the longest ones (marked slow) are left out.
# Tests that need the shared folder of recorded numbers find it beside the checkout or through TF_FASHION_SHARED.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = --all ]; then shift; else set -- -m "not slow" "$@"; fi
bash scripts/setup.sh dev
export TF_CPP_MIN_LOG_LEVEL=3
# A process per CPU, at most four; the tests of a file stay together, as they share what they train.
workers=$(nproc 2>/dev/null || echo 2)
exec .venv/bin/python -m pytest -n "$((workers > 4 ? 4 : workers))" --dist loadfile "$@"
