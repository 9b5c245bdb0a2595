#!/usr/bin/env bash
# Steering by curl, against a server that runs: emorl demo, or emorl serve my-bundle.
#
#   bash examples/steer.sh [URL]
set -euo pipefail
url=${1:-http://127.0.0.1:8000}

post() { # PATH BODY: print the answer; fail on an error status
  curl --silent --show-error --fail-with-body --no-buffer "$url$1" -H 'Content-Type: application/json' -d "$2"
  echo
}

echo '--- what can be weighted, and which weights have a name'
curl --silent --show-error --fail-with-body "$url/objectives"; echo
curl --silent --show-error --fail-with-body "$url/profiles"; echo

echo '--- the same prompt under two mixes'
post /generate '{"prompt": "I cannot keep up at work.", "weights": {"reflection": 0.9, "empathy": 0.1}}'
post /generate '{"prompt": "I cannot keep up at work.", "weights": {"reflection": 0.1, "empathy": 0.9}}'

echo '--- token by token, with what each objective had to do with it'
post /generate '{"prompt": "I cannot keep up at work.", "weights": {"reflection": 0.5, "empathy": 0.5},
                 "max_new_tokens": 8, "stream": true, "attribution": true}'

echo '--- many mixes in one request, and every text between two of them'
post /sweep '{"prompts": ["I cannot keep up at work."], "resolution": 4, "max_new_tokens": 16}'
post /sweep/line '{"prompt": "I cannot keep up at work.", "from": {"reflection": 1}, "to": {"empathy": 1}, "max_new_tokens": 16}'
