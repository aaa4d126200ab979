#!/usr/bin/env bash
# Sets up .venv and runs the tests: bash scripts/test.sh [pytest arguments]
# Tests that need the shared folder of recorded numbers find it beside the checkout or through TF_FASHION_SHARED.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev
export TF_CPP_MIN_LOG_LEVEL=3
exec .venv/bin/python -m pytest "$@"
