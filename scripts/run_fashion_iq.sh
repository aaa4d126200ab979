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
  bash scripts/run_fashion_iq.sh --composer val --out runs/val
      another way to compose: VAL's visiolinguistic attention, on three feature maps
  bash scripts/run_fashion_iq.sh --data fashion_iq --preset val_fashion_iq --weights resnet_v2_50.weights.h5 --out runs/val
      the released VAL: its network, image size, sentences, loss and training (GPU; `tf-fashion weights convert` makes the weights)

FashionIQ's layout under --data:
  captions/cap.CATEGORY.SPLIT.json   image_splits/split.CATEGORY.SPLIT.json   images/ID.jpg (or --images DIR)

What is left in --out (default runs/fashion_iq): model.keras, export/1 (SavedModel), metrics.json, history.csv, sheet.png,
report.html. The same command continues a run that was interrupted.

All other options go to `tf-fashion train composed`; --help-all lists them.
TEXT
}

defaults=()
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_training run_fashion_iq composed fashion_iq "$@"
