#!/usr/bin/env bash
# Composed retrieval on FashionIQ's layout, from nothing to a results table and a model that can be served.
set -euo pipefail

usage() {
  cat <<'TEXT'
bash scripts/run_fashion_iq.sh [--data DIR] [--images DIR] [--out DIR] [option ...]

Sets up .venv, trains a model that finds "this photo, but ..." , evaluates it under a named protocol, and exports it.
Without --data it first draws its own dataset, a wardrobe of garment pictures (runs/wardrobe).

  bash scripts/run_fashion_iq.sh
      the drawn wardrobe, a small network from scratch; a few minutes on two cores
  bash scripts/run_fashion_iq.sh --data fashion_iq --weights imagenet --freeze-backbone
      FashionIQ with a frozen ImageNet backbone whose features are computed once
  bash scripts/run_fashion_iq.sh --composer concat --out runs/concat
      another way to compose

FashionIQ's layout under --data:
  captions/cap.CATEGORY.SPLIT.json   image_splits/split.CATEGORY.SPLIT.json   images/ID.jpg (or --images DIR)

What is left in --out (default runs/fashion_iq): model.keras, export/1 (SavedModel), metrics.json, history.csv, sheet.png,
report.html. The same command continues a run that was interrupted.

All other options go to `tf-fashion train composed`; --help-all lists them.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data="" out="" all_help="" rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --help-all) all_help=yes; shift ;;
    --data | --out)
      [ $# -ge 2 ] || { echo "run_fashion_iq: $1 needs a folder" >&2; exit 2; }
      if [ "$1" = --data ]; then data=$2; else out=$2; fi
      shift 2
      ;;
    --data=*) data=${1#*=}; shift ;;
    --out=*) out=${1#*=}; shift ;;
    *) rest+=("$1"); shift ;;
  esac
done

bash "$here/scripts/setup.sh"
tf_fashion="$here/.venv/bin/tf-fashion"
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
if [ -n "$all_help" ]; then
  exec "$tf_fashion" train composed --help
fi
if [ -z "$data" ]; then
  data="$here/runs/wardrobe"
  mkdir -p "$here/runs"
  "$tf_fashion" data draw "$data"
fi
exec "$here/.venv/bin/python" "$here/scripts/train_composed.py" --data "$data" --out "${out:-$here/runs/fashion_iq}" ${rest[@]+"${rest[@]}"}
