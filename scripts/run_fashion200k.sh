#!/usr/bin/env bash
# Composed retrieval on Fashion200k's layout with VAL, from nothing to a results table and a model that can be served.
set -euo pipefail

usage() {
  cat <<'TEXT'
bash scripts/run_fashion200k.sh [--data DIR] [--images DIR] [--out DIR] [option ...]

Sets up .venv, trains VAL on pictures whose captions differ in one word ("replace red with blue"), evaluates it as published
(R@1, R@10, R@50; every picture with the wished caption counts), and exports it. Without --data it first draws its own dataset, a
wardrobe in Fashion200k's layout (runs/wardrobe-fashion200k).

  bash scripts/run_fashion200k.sh
      the drawn wardrobe, a small network from scratch; a few minutes on two cores
  bash scripts/run_fashion200k.sh --data fashion200k --weights imagenet --freeze-backbone
      Fashion200k with a frozen ImageNet backbone whose features are computed once
  bash scripts/run_fashion200k.sh --data fashion200k --preset val_fashion200k --weights mobilenet_v1.weights.h5
      the released VAL: its network, loss and training (GPU; `tf-fashion weights convert` makes the weights from TF-slim's)
  bash scripts/run_fashion200k.sh --composer tirg --out runs/tirg
      another way to compose

Fashion200k's layout under --data:
  labels/CATEGORY_{train,test}_detect_all.txt   test_queries.txt   women/... (or --images DIR)

What is left in --out (default runs/fashion200k): model.keras, export/1 (SavedModel), metrics.json, results.log, history.csv,
sheet.png, report.html. The same command continues a run that was interrupted.

All other options go to `tf-fashion train composed`; --help-all lists them.
TEXT
}

defaults=(--composer val)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_training run_fashion200k composed fashion200k "$@"
