#!/usr/bin/env bash
# Builds docker/Dockerfile and runs the image as it is meant to be run: user 10001, no capabilities, everything read-only
# but /tmp and /var/lib/emorl. Needs no Docker engine and no registry: the base image is made of Debian's packages.
#
#   docker/check_images.sh            as root, on Debian, with buildah and debootstrap; takes minutes and some 10 GB
#
# Variables, all optional:
#   BUNDLE           a bundle's folder to serve; without it the image makes the tiny demo bundle, which takes minutes more
#   PORT             of 127.0.0.1 (default 18080)
#   PIP_INDEX_ARGS   as in docker/Dockerfile; PIP_FIND_LINKS, where it names a folder, and PIP_CONFIG_FILE or /etc/pip.conf
#                    count too
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '%6d s  %s\n' "$SECONDS" "$*"; }
fail() {
  echo "docker/check_images.sh: $*" >&2
  exit 1
}

missing=()
for tool in buildah curl debootstrap jq setpriv unshare; do command -v "$tool" >/dev/null || missing+=("$tool"); done
((${#missing[@]} == 0)) || fail "${missing[*]} not found; on Debian: apt-get install buildah curl debootstrap jq util-linux"
((EUID == 0)) || fail "user $(id -un) may not build images; run it as root"
[[ -z ${BUNDLE:-} || -f $BUNDLE/bundle.yaml ]] || fail "BUNDLE is $BUNDLE, which has no bundle.yaml"
unshare --mount true 2>/dev/null || fail "this machine lets nobody mount anything (unshare --mount failed)"

port=${PORT:-18080}
image=localhost/emorl:check
work=$(mktemp -d)
server=''
cleanup() {
  [[ -z $server ]] || kill -KILL "$server" 2>/dev/null || true
  [[ ! -d $work/storage ]] || buildah --root "$work/storage" --runroot "$work/run" rm --all >/dev/null 2>&1 || true
  rm -rf --one-file-system "$work"
}
trap cleanup EXIT

export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot TMPDIR=$work
buildah() { command buildah --root "$work/storage" --runroot "$work/run" "$@"; }

# -- build ------------------------------------------------------------------------------------------------------------

base() { # an image with Python, in place of the one that the Dockerfile names
  local mirror suite container
  mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '/^URIs:/ {print $2; exit}')
  [[ -n $mirror ]] || mirror=$(awk '$1 == "deb" {print $2; exit}' /etc/apt/sources.list)
  # shellcheck source=/dev/null
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$work/root" "$mirror" \
    >"$work/debootstrap.log" 2>&1 || fail "debootstrap failed: $(tail -1 "$work/debootstrap.log")"
  ln -sf /usr/bin/python3 "$work/root/usr/local/bin/python"
  cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/" # for a mirror with a certificate of the house
  container=$(buildah from scratch)
  buildah copy -q "$container" "$work/root" / >/dev/null
  buildah commit -q "$container" localhost/python >/dev/null
  buildah rm "$container" >/dev/null
  rm -rf "$work/root"
}

say "making a base image"
base

options=() arguments=${PIP_INDEX_ARGS:-}
for place in ${PIP_FIND_LINKS:-}; do
  arguments+=" --find-links $place"
  [[ ! -d $place ]] || options+=(--volume "$place:$place:ro")
done
settings=${PIP_CONFIG_FILE:-/etc/pip.conf}
[[ -r $settings ]] || settings=$work/pip.conf
touch "$work/pip.conf"
say "building $image"
buildah bud "${options[@]}" --build-arg PIP_INDEX_ARGS="$arguments" --build-arg PYTHON_IMAGE=localhost/python \
  --secret "id=pip,src=$settings" --file docker/Dockerfile --tag "$image" . >"$work/build.log" 2>&1 ||
  { tail -20 "$work/build.log" >&2 && fail "the build failed"; }

# -- run --------------------------------------------------------------------------------------------------------------

buildah inspect --type image "$image" | jq .OCIv1.config >"$work/config.json"
user=$(jq -r .User "$work/config.json")
[[ $user == 10001:10001 ]] || fail "the image runs as $user; allowed: 10001:10001"
mapfile -t variables < <(jq -r '.Env[]' "$work/config.json")
mapfile -t entry < <(jq -r '.Entrypoint[]' "$work/config.json")
signal=$(jq -r .StopSignal "$work/config.json")
root=$(buildah mount "$(buildah from "$image")")

contained() { # FOLDER ro|rw COMMAND…: replaces this shell by the command in the image, FOLDER at /bundle
  local folder=$1 mode=$2
  shift 2
  # shellcheck disable=SC2016  # expanded by the shell that has mounts of its own
  exec unshare --mount --propagation private sh -euc '
    root=$1 folder=$2 mode=$3
    shift 3
    mount --bind "$root" "$root"
    mount --bind "$folder" "$root/bundle"
    mount -o "remount,bind,$mode" "$root/bundle"
    mount -t tmpfs -o size=256m,mode=1777 tmpfs "$root/tmp"
    mount -t tmpfs -o size=256m,mode=700,uid=10001,gid=10001 tmpfs "$root/var/lib/emorl"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -o remount,bind,ro "$root"
    exec chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --inh-caps=-all \
      --bounding-set=-all env -i -C /var/lib/emorl "$@"
  ' sh "$root" "$folder" "$mode" "${variables[@]}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" EMORL_PORT="$port" "$@"
}

serve() { # FOLDER
  contained "$1" ro EMORL_BUNDLE=/bundle "${entry[@]}" >"$work/server.log" 2>&1 &
  server=$!
}

ended() { # SECONDS: wait for the server's end; its exit status in $status
  for ((i = 0; i < $1 * 10; i++)); do
    if ! kill -0 "$server" 2>/dev/null; then
      status=0
      wait "$server" || status=$?
      server=''
      return 0
    fi
    sleep 0.1
  done
  return 1
}

ask() { curl --silent --show-error --fail-with-body --max-time 60 "$@"; }

if [[ -z ${BUNDLE:-} ]]; then
  say "making the tiny demo bundle in the image"
  mkdir "$work/made" && chown 10001:10001 "$work/made"
  (contained "$work/made" rw emorl demo --tiny --folder /bundle/demo --build-only) >"$work/demo.log" 2>&1 ||
    { tail -5 "$work/demo.log" >&2 && fail "no demo bundle could be made in the image"; }
  BUNDLE=$work/made/demo
fi
# As another user leaves it, whose files are readable for all or for nobody else.
(umask 022 && cp -r --no-preserve=mode,ownership "$BUNDLE" "$work/open")
(umask 077 && cp -r --no-preserve=mode,ownership "$BUNDLE" "$work/closed")

say "serving"
serve "$work/open"
until ask "http://127.0.0.1:$port/readyz" >/dev/null 2>&1; do
  kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2 && server='' && fail "the server ended by itself"; }
  ((SECONDS < 3600)) || fail "not ready within an hour"
  sleep 0.5
done
ask "http://127.0.0.1:$port/livez" >/dev/null || fail "/livez does not answer"
(contained "$work/open" ro python /usr/local/lib/emorl/healthcheck.py) || fail "the image's health check fails"
answer=$(ask "http://127.0.0.1:$port/generate" --json '{"prompt": "i feel sad", "max_new_tokens": 8}') ||
  fail "/generate: $answer"
jq -e '.text | type == "string"' >/dev/null <<<"$answer" || fail "/generate: no text in its answer"
owner=$(awk '$1 == "Uid:" {print $2}' "/proc/$server/status")
[[ $owner == 10001 ]] || fail "the server runs as user $owner; allowed: 10001"

say "stopping by $signal"
kill -s "$signal" "$server"
ended 40 || fail "the server was still there 40 s after $signal; its drain_timeout_s is 30"
((status == 0)) || { cat "$work/server.log" >&2 && fail "the server ended with exit code $status after $signal"; }

say "a bundle that user 10001 may not read"
serve "$work/closed"
ended 60 || fail "a bundle that cannot be read is being served"
((status == 2)) || { cat "$work/server.log" >&2 && fail "such a bundle ends with exit code $status; expected: 2"; }
grep -i 'permission denied\|may not be read' "$work/server.log" >&2 || { cat "$work/server.log" >&2 && fail "no line says why"; }

say "done"
