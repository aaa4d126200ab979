#!/usr/bin/env bash
# Makes .venv with tf_fashion and what it needs; run again it only repairs what is missing.
#   bash scripts/setup.sh [EXTRA ...]      for example: bash scripts/setup.sh dev tune
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  -h | --help)
    sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    echo "extras: dev (tests, linters), clip (CLIP models), concepts (mining them), hub (TF-Hub), tune (keras-tuner), weights, tensorboard"
    echo "environment: PYTHON=python3.11 (interpreter to use), TF_FASHION_LATEST=1 (newest versions in range, not the tested set)"
    exit 0
    ;;
esac

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "setup: Python 3.11 to 3.13 is needed and was not found. Install it, or name it: PYTHON=/path/to/python bash scripts/setup.sh" >&2
  exit 2
fi

extras=$(printf '%s\n' "$@" | sed '/^$/d' | sort -u | paste -sd, -)
target=.${extras:+[$extras]}
stamp=.venv/.tf_fashion_setup
# What is installed is decided by these files, the extras asked for so far, and the interpreter.
wanted=$(cat setup.py pyproject.toml requirements-lock.txt | cksum)
have_extras=""
if [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$wanted" ] && [ -x .venv/bin/python ]; then
  have_extras=$(sed -n 2p "$stamp")
  missing=""
  for extra in $(echo "$extras" | tr ',' ' '); do
    case ",$have_extras," in *",$extra,"*) ;; *) missing=yes ;; esac
  done
  [ -z "$missing" ] && exit 0
fi

[ -x .venv/bin/python ] || { echo "setup: making .venv with $python"; "$python" -m venv .venv; }
echo "setup: installing tf_fashion${extras:+ with $extras} (about 1 GB the first time)"
constraint="-c requirements-lock.txt"
[ -n "${TF_FASHION_LATEST:-}" ] && constraint=""
# shellcheck disable=SC2086
.venv/bin/python -m pip install --quiet --disable-pip-version-check $constraint -e "$target"
all=$(printf '%s\n' "$have_extras" "$extras" | tr ',' '\n' | sed '/^$/d' | sort -u | paste -sd, -)
printf '%s\n%s\n' "$wanted" "$all" > "$stamp"
