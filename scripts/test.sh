#!/usr/bin/env bash
# Sets up .venv and runs the tests: bash scripts/test.sh [pytest arguments]
# Tests that need the shared folder of recorded numbers find it beside the checkout or through TF_FASHION_SHARED.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev
export TF_CPP_MIN_LOG_LEVEL=3
# A process per CPU, at most four; the tests of a file stay together, as they share what they train.
workers=$(nproc 2>/dev/null || echo 2)
exec .venv/bin/python -m pytest -n "$((workers > 4 ? 4 : workers))" --dist loadfile "$@"
