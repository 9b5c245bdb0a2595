#!/bin/sh
# The judges of counselling replies that recipes here use as rewards and as judges of reports, and their exams
# (docs/scorers.md has the tables). Rewards and judges of reports are trained on different data sets.
#
#   DATA=data ENCODER=my-encoder BASE=my-base OUT=scorers recipes/judges.sh
#
# DATA: a folder with pair/, annomi/, epitome/ and esconv/. ENCODER: a small encoder, see docs/scorers.md. BASE, for fluency:
# a causal language model such as HuggingFaceTB/SmolLM2-135M-Instruct, best the one that is steered. Each judge takes
# three quarters of an hour on one CPU core that is its own. One that was interrupted goes on; one that is there is left alone.
set -eu
: "${DATA:?a folder with the data sets}" "${ENCODER:?a folder or hub id of an encoder}" "${OUT:=scorers}"
PAIR=pair:$DATA/pair/pair.csv
ANNOMI=annomi:$DATA/annomi/annomi-full.csv
REACTIONS=epitome:$DATA/epitome/emotional-reactions-reddit.csv
ESCONV=esconv:$DATA/esconv/train.jsonl

judge() { # name, then what `emorl train-scorer` takes
    name=$1
    shift
    if [ -d "$OUT/$name" ]; then return; fi
    if [ -d "$OUT/.$name.partial" ]; then set -- "$@" --resume; fi
    emorl train-scorer "$@" --on-bad-row skip --loss pairwise --encoder "$ENCODER" --out "$OUT/$name" \
        --batch-size 36 --max-length 80 --freeze-layers 2 --learning-rate 1.5e-4 --seed 0 --threads 1
}

# Rewards.
judge reflection "$PAIR" "$ANNOMI" --epochs 6 --prompts-per-epoch 360
judge empathy "$REACTIONS" --replies "$PAIR" --epochs 6 --prompts-per-epoch 360
# Judges of reports: other data than the rewards'.
judge listening "$ESCONV" --epochs 6 --prompts-per-epoch 360

# Weights for the likelihoods under BASE.
if [ -n "${BASE:-}" ] && [ ! -d "$OUT/fluency" ]; then
    emorl train-scorer "$PAIR" "$ANNOMI" --on-bad-row skip --loss fluency --encoder "$BASE" --out "$OUT/fluency" \
        --seed 0 --threads 1
fi
