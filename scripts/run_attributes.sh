#!/usr/bin/env bash
# Attribute prediction on iMaterialist's layout, from nothing to a results table and a model that can be served.
set -euo pipefail

usage() {
  cat <<'TEXT'
bash scripts/run_attributes.sh [--data DIR] [--images DIR] [--out DIR] [option ...]

Sets up .venv, trains a classifier that says which labels of several groups (category, colour, pattern, ...) a photo shows, finds
thresholds by cross-fitting, measures labels and product matching, and exports the model. Without --data it first draws its own
dataset, a wardrobe of garment pictures with their labels (runs/wardrobe-imaterialist).

  bash scripts/run_attributes.sh
      the drawn wardrobe, a small network from scratch; a few minutes on two cores
  bash scripts/run_attributes.sh --data imat --images photos --weights imagenet --freeze-backbone
      a frozen ImageNet backbone whose features are computed once
  bash scripts/run_attributes.sh --data imat --preset imaterialist --weights resnet50.weights.h5
      the published system: ResNet-50 on 512 pixels trained along (GPU)
  bash scripts/run_attributes.sh --data my_shop --weights imagenet --freeze-backbone
      a folder of photos with a CSV file whose columns are groups of labels (several in one cell: red|blue)

iMaterialist's layout under --data:
  train.json  validation.json  label_map.csv (labelId,taskId,labelName,taskName)  train/ID.jpg  validation/ID.jpg
`tf-fashion data fetch` downloads the pictures of such a list.

What is left in --out (default runs/attributes): model.keras, export/1 (SavedModel), thresholds.json, metrics.json, labels.csv,
history.csv, calibration.svg, report.html. The same command continues a run that was interrupted. Afterwards:

  tf-fashion predict attributes photos --model runs/attributes/model.keras --out tagged
  tf-fashion match query.jpg --model runs/attributes/model.keras --gallery photos --sheet matches.png

All other options go to `tf-fashion train attributes`; --help-all lists them.
TEXT
}

defaults=()
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_training run_attributes attributes imaterialist "$@"
