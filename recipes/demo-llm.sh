#!/bin/sh
# The adapters of `emorl demo`, from nothing: the base, the judges that reward them, the training. Everything that was
# interrupted goes on.
#
#   DATA=data recipes/demo-llm.sh
#
# DATA: a folder with pair/, annomi/, epitome/ and esconv/, which reach the adapters through rewards only.
set -eu
: "${DATA:?a folder with the data sets}"
cd "$(dirname "$0")/.."
emorl demo --folder my-demo --build-only
DATA=$DATA BASE=my-demo/base OUT=scorers sh recipes/judges.sh
if [ -d my-counselor.run ]; then set -- --resume; else set --; fi
emorl train recipes/demo-llm.yaml --out my-counselor --threads 2 "$@"
