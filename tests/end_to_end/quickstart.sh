#!/bin/bash
# A quickstart of a few seconds: it leaves what it promises, and a second run trains nothing.
#   quickstart.sh PROGRAM SCRATCH_FOLDER
set -euo pipefail
program=$1 folder=$2/quickstart
quickstart=$(dirname "$(readlink -f "$0")")/../../tools/quickstart
fail() { echo "FAILED: $*"; exit 1; }

rm -rf "$folder"
"$quickstart" --short --folder "$folder" --program "$program"
for file in bible.txt tokens.h5 checkpoints/metrics.jsonl loss.svg sample.txt; do
  [[ -s $folder/$file ]] || fail "there is no $file"
done
grep -q '"ranks": 4' "$folder/checkpoints/communication.json" || fail "not trained on 4 ranks"
head -n 1 "$folder/bible.txt" | grep -qx "In the beginning God created the heaven and the earth." || fail "the text's first line"
grep -q '"step"' "$folder/checkpoints/metrics.jsonl" || fail "no step in metrics.jsonl"
python3 -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' "$folder/loss.svg" || fail "loss.svg is not XML"

before=$(find "$folder" -type f -printf '%p %T@\n' | sort)
again=$("$quickstart" --short --folder "$folder" --program "$program")
[[ $(find "$folder" -type f -printf '%p %T@\n' | sort) == "$before" ]] || fail "the second run changed files"
grep -q "trained before" <<<"$again" || fail "the second run does not say that it was trained before"
grep -q "Everything lies in $folder" <<<"$again" || fail "the second run does not say where everything lies"

mkdir -p "$2/bin"  # without mpirun
ln -sf "$(command -v dirname)" "$(command -v readlink)" "$2/bin"
! message=$(PATH=$2/bin "$quickstart" --short --folder "$2/none" --program "$program" 2>&1) || fail "a success without mpirun"
[[ $message == "quickstart: no 'mpirun' program"* && $message != *$'\n'* ]] || fail "without mpirun: $message"
echo "a quickstart of $SECONDS s, the second time without training"
