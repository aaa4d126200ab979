#!/usr/bin/env bash
# Street to shop with UDMA: extract, cluster, weight, train, evaluate; from nothing to one table.
set -euo pipefail

usage() {
  cat <<'TEXT'
bash scripts/run_udma.sh [--data DIR] [--images DIR] [--out DIR] [--weighting NAME] [--alignment NAME] [option ...]

Sets up .venv and runs both stages of UDMA: trains an embedding by which a photo from the street finds its product in the shop, on a
source whose products are known (df), then fits it to another shop (s2s) of which only shop photos without product labels are used:
shop photos of both are clustered with FINCH, products of the source get those of the target that share their clusters, and the
embedding's linear layer is trained further with them. The same further training without any photo of the target is run too: only what
goes beyond it is owed to the target. The last table compares all of them. Without --data it first draws its own dataset, a wardrobe
photographed by two shops and in two streets (runs/wardrobe-street_to_shop).

  bash scripts/run_udma.sh
      the drawn wardrobe, a small network from scratch; several minutes on two cores
  bash scripts/run_udma.sh --data lists --images photos --weights imagenet --freeze-backbone
      a frozen ImageNet backbone whose features are computed once
  bash scripts/run_udma.sh --data lists --images photos --preset df_bl --init-from tl_gem.keras --adapt-preset udma
      the published system: ResNet-101 with GeM, then 45,000 steps of adaptation (GPU); tl_gem.keras comes from
      tf-fashion weights convert Resnet101-TL-GeM.pt --to dirtorch --out tl_gem.keras
  bash scripts/run_udma.sh --data lists --images photos --model runs/mine/street/model.keras --weighting soft
      the second stage alone, from a model that is there

UDMA's layout under --data:
  train_cluster/{df,s2s}_{consumer,shop}.txt         path product category [category name]
  test/consumer_df.txt  test/shop_df.txt             path,id
  test/test_{consumer,shop}_single*street2shop.json  photos with boxes

Options of the second stage:
  --model FILE         begin with this model; the first stage is left out
  --weighting NAME     ws5 (default, published), ws6, ws7, ws8, soft or unweighted
  --alignment NAME     which categories are clustered together: single (default), by_name, deepfashion, or a JSON file
  --partition N        which partition of FINCH (default 0, the finest)
  --adapt-preset NAME  short (default), udma or udma_original
For both stages: --images, --test, --protocol, --ap, --seed, --cache, --skip-bad-images, --overwrite, --no-report, --quiet. All others
go to `tf-fashion train street_to_shop`; --help-all lists them, and those of `tf-fashion adapt`.

What is left in --out (default runs/udma): street/ (first stage), control/ and adapted/ (second), each with model.keras, metrics.json,
history.csv, sheet.png and report.html; street/ and adapted/ also export/1 (SavedModel); adapted/ clusters.png, cluster_tree.png,
weights.svg and the pseudo-labels; and comparison.md. The same command continues what was interrupted. Afterwards:

  tf-fashion embed photos --model runs/udma/adapted/model.keras --out runs/udma/index
  tf-fashion search --model runs/udma/adapted/model.keras --gallery runs/udma/index --photo street.jpg --sheet found.png
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data="" images="" out="" model="" all_help="" weighting=ws5 both=() adapting=() rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --help-all) all_help=yes; shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --data | --images | --out | --model | --weighting | --alignment | --partition | --adapt-preset | --test | --protocol | --ap | --seed | --cache)
      [ $# -ge 2 ] || { echo "run_udma: $1 needs a value" >&2; exit 2; }
      case "$1" in
        --data) data=$2 ;;
        --images) images=$2 ;;
        --out) out=$2 ;;
        --model) model=$2 ;;
        --weighting) weighting=$2 ;;
        --alignment | --partition) adapting+=("$1" "$2") ;;
        --adapt-preset) adapting+=(--preset "$2") ;;
        *) both+=("$1" "$2") ;;
      esac
      shift 2
      ;;
    --skip-bad-images | --overwrite | --no-report | --quiet) both+=("$1"); shift ;;
    *) rest+=("$1"); shift ;;
  esac
done

bash "$here/scripts/setup.sh"
tf_fashion="$here/.venv/bin/tf-fashion"
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
if [ -n "$all_help" ]; then
  "$tf_fashion" train street_to_shop --help
  exec "$tf_fashion" adapt --help
fi
if [ -z "$data" ]; then
  data="$here/runs/wardrobe-street_to_shop"
  mkdir -p "$here/runs"
  "$tf_fashion" data draw "$data" --layout street_to_shop
fi
out=${out:-$here/runs/udma}
both=(--data "$data" ${images:+--images "$images"} ${both[@]+"${both[@]}"})

compared=()
if [ -z "$model" ]; then
  echo "== first stage: products of the source"
  "$here/.venv/bin/python" "$here/scripts/train_street_to_shop.py" "${both[@]}" --out "$out/street" ${rest[@]+"${rest[@]}"}
  model="$out/street/model.keras"
  compared+=("$out/street/metrics.json")
elif [ ${#rest[@]} -gt 0 ]; then
  echo "run_udma: ${rest[0]} belongs to the first stage, which --model leaves out" >&2
  exit 2
fi
echo "== control: further training without the target's photos"
"$tf_fashion" adapt --model "$model" "${both[@]}" ${adapting[@]+"${adapting[@]}"} --weighting none --out "$out/control" --no-export
echo "== second stage: the target's shop photos ($weighting)"
"$tf_fashion" adapt --model "$model" "${both[@]}" ${adapting[@]+"${adapting[@]}"} --weighting "$weighting" --out "$out/adapted"
echo "== comparison"
exec "$tf_fashion" compare street_to_shop ${compared[@]+"${compared[@]}"} "$out/control/metrics.json" "$out/adapted/metrics.json" \
  --out "$out/comparison.md"
