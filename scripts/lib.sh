# What the run_*.sh scripts share. Sourced by them; it does nothing by itself.

# run_training NAME KIND LAYOUT ARGUMENT...
#   Sets up .venv, draws a wardrobe in LAYOUT where no --data is given, and trains a model of KIND (composed, dual) with the remaining
#   arguments. The caller defines `usage`, the array `defaults` (options that stand before the user's, so that those win), and, where
#   it needs any, the array `extras` (of the package).
run_training() {
  local name=$1 kind=$2 layout=$3 here data="" out="" all_help="" rest=()
  shift 3
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --help-all) all_help=yes; shift ;;
      --data | --out)
        [ $# -ge 2 ] || { echo "$name: $1 needs a folder" >&2; exit 2; }
        if [ "$1" = --data ]; then data=$2; else out=$2; fi
        shift 2
        ;;
      --data=*) data=${1#*=}; shift ;;
      --out=*) out=${1#*=}; shift ;;
      *) rest+=("$1"); shift ;;
    esac
  done

  bash "$here/scripts/setup.sh" ${extras[@]+"${extras[@]}"}
  local tf_fashion="$here/.venv/bin/tf-fashion"
  export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-3}
  if [ -n "$all_help" ]; then
    exec "$tf_fashion" train "$kind" --help
  fi
  if [ -z "$data" ]; then
    data="$here/runs/wardrobe"
    [ "$layout" = fashion_iq ] || data="$data-$layout"
    mkdir -p "$here/runs"
    "$tf_fashion" data draw "$data" --layout "$layout"
  fi
  exec "$here/.venv/bin/python" "$here/scripts/train_$kind.py" --data "$data" --out "${out:-$here/runs/${name#run_}}" \
    ${defaults[@]+"${defaults[@]}"} ${rest[@]+"${rest[@]}"}
}
