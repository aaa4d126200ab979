#!/usr/bin/env bash
# Composed retrieval on the layout of Shoes with VAL, from nothing to a results table and a model that can be served.
set -euo pipefail

usage() {
  cat <<'TEXT'
bash scripts/run_shoes.sh [--data DIR] [--images DIR] [--out DIR] [option ...]

Sets up .venv, trains VAL on pictures of footwear and sentences that compare two of them, evaluates it as published (R@1, R@10,
R@50), and exports it. Without --data it first draws its own dataset, a wardrobe of footwear in the layout of Shoes
(runs/wardrobe-shoes).

  bash scripts/run_shoes.sh
      the drawn wardrobe, a small network from scratch; a few minutes on two cores
  bash scripts/run_shoes.sh --data shoes --weights imagenet --freeze-backbone
      Shoes with a frozen ImageNet backbone whose features are computed once
  bash scripts/run_shoes.sh --data shoes --preset val_shoes --weights resnet_v2_50.weights.h5 --pretrain-epochs 5
      the released VAL, here with its first stage on the descriptions (GPU; `tf-fashion weights convert` makes the weights)
  bash scripts/run_shoes.sh --composer tirg --out runs/tirg
      another way to compose

The layout of Shoes under --data:
  relative_captions_shoes.json  captions_shoes.json  train_im_names.txt  eval_im_names.txt  shoes-test-all.txt
  attributedata/womens_*/*/NAME.jpg (or --images DIR)

What is left in --out (default runs/shoes): model.keras, export/1 (SavedModel), metrics.json, results.log, history.csv, sheet.png,
report.html. The same command continues a run that was interrupted.

All other options go to `tf-fashion train composed`; --help-all lists them.
TEXT
}

defaults=(--composer val)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_training run_shoes composed shoes "$@"
