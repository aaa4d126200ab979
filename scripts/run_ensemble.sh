#!/usr/bin/env bash
# Three different composed retrievals and their ensemble, from nothing to one table.
set -euo pipefail

usage() {
  cat <<'TEXT'
bash scripts/run_ensemble.sh [--data DIR] [--images DIR] [--out DIR] [--member "NAME OPTION ..."] [option ...]

Sets up .venv, trains members that differ in how they compose and read, scores the evaluated split with each, finds the weights of
their sum with keras-tuner, and prints members against ensemble. The ensemble's number is cross-fitted: the weights that a query is
ranked with were found without it. Without --data it first draws its own dataset, a wardrobe of garment pictures (runs/wardrobe).

  bash scripts/run_ensemble.sh
      the drawn wardrobe, three small networks from scratch
  bash scripts/run_ensemble.sh --data fashion_iq --weights imagenet --freeze-backbone --test-split test
      FashionIQ with a frozen ImageNet backbone, and the challenge's submission files for the test split
  bash scripts/run_ensemble.sh --member "rtic --composer rtic" --member "tirg --composer tirg --seed 1"
      your own members: a name and options of `tf-fashion train composed`

Options of its own:
  --member "NAME OPTION ..."  a member in place of the three; repeatable
  --trials N                  weightings to try in each search (default 100)
  --folds N                   parts of the queries for cross-fitting (default 5)
  --normalise HOW             zscore (default), cosine, rank or raw
  --split NAME                split that the weights are found on (default: val, or test where there is no val)
  --protocol NAME             protocol of all members (default: the dataset's usual one)
  --test-split NAME           also rank this split, which needs no targets, and write the challenge's files
All others go to `tf-fashion train composed` for every member (--help-all lists them).

What is left in --out (default runs/ensemble): a folder per member, and in ensemble/: ensemble.json (weights, members, results),
metrics.json, contributions.png, ranking.SPLIT.json, fused/, and with --test-split submission/. The same command continues what was
interrupted.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data="" images="" out="" all_help="" split="" protocol="" test_split="" members=() fusing=() rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --help-all) all_help=yes; shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --data | --images | --out | --member | --trials | --folds | --normalise | --split | --protocol | --test-split)
      [ $# -ge 2 ] || { echo "run_ensemble: $1 needs a value" >&2; exit 2; }
      case "$1" in
        --data) data=$2 ;;
        --images) images=$2 ;;
        --out) out=$2 ;;
        --member) members+=("$2") ;;
        --split) split=$2 ;;
        --protocol) protocol=$2 ;;
        --test-split) test_split=$2 ;;
        *) fusing+=("$1" "$2") ;;
      esac
      shift 2
      ;;
    *) rest+=("$1"); shift ;;
  esac
done
if [ ${#members[@]} -eq 0 ]; then
  # Members pay where they err differently: other composers, other readers, and above all pictures of other sizes.
  case " ${rest[*]-} " in
    *" --freeze-backbone "*)
      members=(
        "rtic-swem --composer rtic --text-encoder swem --word-dim 256"
        "rtic-lstm --composer rtic --text-encoder lstm --image-size 160"
        "tirg-gru --composer tirg_fiq2020 --text-encoder gru --image-size 112"
      )
      ;;
    *)
      members=(
        "rtic-swem --composer rtic"
        "tirg-gru --composer tirg_fiq2020 --text-encoder gru --text-units 96 --image-size 48"
        "concat-swem --composer concat --image-size 56"
      )
      ;;
  esac
fi

bash "$here/scripts/setup.sh" tune
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
out=${out:-$here/runs/ensemble}
common=(--data "$data" ${images:+--images "$images"} ${protocol:+--protocol "$protocol"})

val=() test=()
for member in "${members[@]}"; do
  read -r -a words <<<"$member"
  name=${words[0]}
  [[ $name =~ ^[A-Za-z0-9_.-]+$ && $name != ensemble ]] || {
    echo "run_ensemble: --member \"$member\": the first word names the member's folder: letters, digits, '_', '.' and '-'" >&2
    exit 2
  }
  echo "== $name: ${words[*]:1}"
  "$tf_fashion" train composed "${common[@]}" ${split:+--split "$split"} --out "$out/$name" --no-export \
    ${rest[@]+"${rest[@]}"} "${words[@]:1}"
  for part in "$split" "$test_split"; do
    [ -n "$part" ] || [ "$part" = "$split" ] || continue
    scores="$out/$name/scores/${part:-default}"
    "$tf_fashion" scores --model "$out/$name/model.keras" "${common[@]}" ${part:+--split "$part"} --name "$name" \
      --out "$scores" --overwrite
  done
  val+=("$out/$name/scores/${split:-default}")
  [ -z "$test_split" ] || test+=("$out/$name/scores/$test_split")
done

echo "== ensemble"
exec "$tf_fashion" ensemble --members "${val[@]}" ${test[@]+--test "${test[@]}"} --out "$out/ensemble" ${fusing[@]+"${fusing[@]}"}
