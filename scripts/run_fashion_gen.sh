#!/usr/bin/env bash
# Image-text retrieval on FashionGen's layout, from nothing to a results table and a model that can be served.
set -euo pipefail

usage() {
  cat <<'TEXT'
bash scripts/run_fashion_gen.sh [--data DIR] [--images DIR] [--out DIR] [option ...]

Sets up .venv, trains two towers that bring photos and their descriptions together (so that words find photos, and photos words),
evaluates them under a named protocol, and exports them. Without --data it first draws its own dataset, a wardrobe of garment
pictures with descriptions (runs/wardrobe-fashion_gen).

  bash scripts/run_fashion_gen.sh
      the drawn wardrobe, a small network from scratch; a few minutes on two cores
  bash scripts/run_fashion_gen.sh --concept-loss --out runs/concepts
      with FashionKLIP's concept loss: concepts of the texts against pictures that stand for them
  bash scripts/run_fashion_gen.sh --data fashion_gen --images photos --weights imagenet --freeze-backbone
      a frozen ImageNet backbone whose features are computed once
  bash scripts/run_fashion_gen.sh --preset tiny_clip --out runs/tiny_clip
      a small CLIP from scratch
  bash scripts/run_fashion_gen.sh --data fashion_gen --preset fashion_klip --weights ViT-B-32.pt --bpe bpe_simple_vocab_16e6.txt.gz
      FashionKLIP: OpenAI's ViT-B/32 trained along (GPU)
  bash scripts/run_fashion_gen.sh --data my_shop
      a folder of photos with a CSV file that has a column of descriptions

FashionGen's layout under --data:
  train/PREFIX_train_queries_phrases.jsonl   val/PREFIX_val_queries.jsonl   images/ID.jpg (or --images DIR), or .npz files
  train/PREFIX_concepts_queries.jsonl, train/PREFIX_concepts_fathers.jsonl (concepts; `tf-fashion concepts mine` makes them)

What is left in --out (default runs/fashion_gen): model.keras, export/1 (SavedModel), metrics.json, history.csv, sheet.png,
report.html. The same command continues a run that was interrupted.

All other options go to `tf-fashion train dual`; --help-all lists them.
TEXT
}

defaults=()
extras=(clip)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_training run_fashion_gen dual fashion_gen "$@"
