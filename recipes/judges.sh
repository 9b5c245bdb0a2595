#!/bin/sh
# The judges of counselling replies that recipes here use as rewards and as judges of reports, and their exams
# (docs/scorers.md has the tables). Rewards and judges of reports are trained on different data sets.
#
#   DATA=data BASE=my-base OUT=scorers recipes/judges.sh
#
# DATA: a folder with pair/, annomi/, epitome/ and esconv/. BASE: a causal language model such as
# HuggingFaceTB/SmolLM2-135M-Instruct. Each judge takes some 20 minutes on one CPU core that is its own and computes in
# bfloat16. One that was interrupted goes on; one that is there is left alone. ONLY=reflection makes just that one.
set -eu
: "${DATA:?a folder with the data sets}" "${BASE:?a folder or hub id of a causal language model}" "${OUT:=scorers}"
PAIR=pair:$DATA/pair/pair.csv
ANNOMI=annomi:$DATA/annomi/annomi-full.csv
REACTIONS=epitome:$DATA/epitome/emotional-reactions-reddit.csv
ESCONV=esconv:$DATA/esconv/train.jsonl

judge() { # name, then what `emorl train-scorer` takes
    name=$1
    shift
    if [ "${ONLY:-$name}" != "$name" ] || [ -d "$OUT/$name" ]; then return; fi
    if [ -d "$OUT/.$name.partial" ]; then set -- "$@" --resume; fi
    emorl train-scorer "$@" --on-bad-row skip --loss states --encoder "$BASE" --out "$OUT/$name" --seed 0 --threads 1
}

# Rewards.
judge reflection "$PAIR" "$ANNOMI" --replies exchanges:reflection
judge empathy "$REACTIONS" --replies "$PAIR" --replies exchanges:empathy
judge plainness exchanges:plain
# Judges of reports: other data than the rewards'.
judge listening "$ESCONV"
