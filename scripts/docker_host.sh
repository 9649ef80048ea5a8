#!/usr/bin/env bash
# Makes this machine able to run the compose cluster, as far as it can be made so.
#
#   scripts/docker_host.sh up          install, start dockerd, get a base image, fill the wheelhouse
#   scripts/docker_host.sh postgres    then: get an image of PostgreSQL, for docker-compose.postgres.yml
#   scripts/docker_host.sh prometheus  then: get an image of Prometheus, for profile "obs"
#   scripts/docker_host.sh down        stop the dockerd that "up" started
#
# "up" ends with 0 and the line "docker is ready", or with 3 and one line that says why docker
# cannot run here. It needs Debian with apt and root only where something is missing. Where no image
# can be pulled, the base image is made by debootstrap, once per machine: the result is kept in
# ${XDG_CACHE_HOME:-~/.cache}/stairwell. Certificates that the administrator added to this host go
# into that image, so that a network that re-signs TLS works inside as it does outside.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly PUBLIC_BASE=python:3.11-slim-bookworm
readonly LOCAL_BASE=stairwell/base:bookworm
readonly PUBLIC_POSTGRES=postgres:17-bookworm
readonly LOCAL_POSTGRES=stairwell/postgres:bookworm
readonly PUBLIC_PROMETHEUS=prom/prometheus:v3.7.2
readonly LOCAL_PROMETHEUS=stairwell/prometheus:bookworm
readonly SUITE=bookworm
readonly MIRROR=${STAIRWELL_DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly PACKAGES=ca-certificates,python3,python3-pip,python3-venv
readonly CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/stairwell
readonly STATE=${STAIRWELL_DOCKER_STATE:-/run/stairwell-docker}
readonly START_SECONDS=60

say() { printf '== %s\n' "$*"; }

cannot() {
  printf 'docker cannot run here: %s\n' "$*"
  exit 3
}

# install COMMAND PACKAGE...: has apt bring what is missing.
install() {
  local command=$1
  shift
  if command -v "$command" >/dev/null; then return; fi
  [ "$(id -u)" = 0 ] || cannot "$command is not installed, and only root can install it"
  command -v apt-get >/dev/null || cannot "$command is not installed, and there is no apt"
  say "installing $*"
  if [ ! -e "$CACHE/apt-updated" ] || [ -n "$(find "$CACHE/apt-updated" -mmin +60)" ]; then
    apt-get update -qq || cannot "apt-get update failed"
    touch "$CACHE/apt-updated"
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
    >"$CACHE/apt.log" 2>&1 || { tail -5 "$CACHE/apt.log"; cannot "apt could not install $*"; }
}

# Compose, either version: the plugin where it is there, else the distribution's program.
have_compose() { docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; }

start_daemon() {
  if docker info >/dev/null 2>&1; then return; fi
  [ "$(id -u)" = 0 ] || cannot "no docker daemon answers, and only root can start one"
  install dockerd docker.io iptables
  say "starting dockerd"
  mkdir -p "$STATE"
  setsid dockerd --pidfile "$STATE/dockerd.pid" >"$STATE/dockerd.log" 2>&1 </dev/null &
  local deadline=$((SECONDS + START_SECONDS))
  until docker info >/dev/null 2>&1; do
    if ! kill -0 $! 2>/dev/null; then
      cannot "dockerd ended: $(grep -E 'failed|level=(error|fatal)' "$STATE/dockerd.log" | tail -1)"
    fi
    [ $SECONDS -lt $deadline ] || cannot "dockerd does not answer; see $STATE/dockerd.log"
    sleep 0.2
  done
}

# Sees to it that there is an image named $LOCAL_BASE.
base_image() {
  if docker image inspect "$LOCAL_BASE" >/dev/null 2>&1; then return; fi
  if ! docker image inspect "$PUBLIC_BASE" >/dev/null 2>&1; then
    say "pulling $PUBLIC_BASE"
    if ! timeout 120 docker pull -q "$PUBLIC_BASE" >/dev/null 2>&1; then
      say "it cannot be pulled: making $LOCAL_BASE from Debian packages"
      make_base
      return
    fi
  fi
  docker tag "$PUBLIC_BASE" "$LOCAL_BASE"
}

make_base() {
  install zstd zstd
  local archive root
  archive=$CACHE/base-$SUITE-$(echo "$PACKAGES $MIRROR" | cat - <(local_certificates | xargs -r cat) |
    sha256sum | cut -c1-12).tar.zst
  if [ ! -e "$archive" ]; then
    [ "$(id -u)" = 0 ] || cannot "only root can make a base image"
    install debootstrap debootstrap
    root=$(mktemp -d "$CACHE/root.XXXXXX")
    trap 'rm -rf "$root"' EXIT
    say "debootstrap $SUITE (about a minute, once per machine)"
    debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$root" "$MIRROR" \
      >"$CACHE/debootstrap.log" 2>&1 ||
      { tail -5 "$CACHE/debootstrap.log"; cannot "debootstrap failed"; }
    local_certificates | xargs -r cp -t "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates >/dev/null 2>&1
    tar -C "$root" --exclude './var/cache/apt/archives/*.deb' --exclude './var/lib/apt/lists/*' \
      --exclude './proc/*' --exclude './sys/*' --exclude './dev/*' -c . | zstd -q -3 >"$archive.part"
    mv "$archive.part" "$archive"
    rm -rf "$root"
    trap - EXIT
  fi
  say "importing $archive"
  zstd -dc "$archive" | docker import - "$LOCAL_BASE" >/dev/null
}

local_certificates() { find /usr/local/share/ca-certificates -name '*.crt' 2>/dev/null | sort; }

# The wheels the image is installed from, for the Python of the base image (3.11), so that the build
# itself needs no network. Only what pyproject.toml asks for and the build back-end.
fill_wheelhouse() {
  local python=.venv/bin/python wanted stamp=wheelhouse/.from
  [ -x "$python" ] || cannot "there is no .venv yet: run 'make setup' first"
  wanted=$(sha256sum pyproject.toml scripts/docker_host.sh)
  if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
  say "filling wheelhouse/"
  rm -rf wheelhouse
  mkdir -p wheelhouse
  "$python" - <<'PYTHON' >wheelhouse/requirements.txt
import tomllib

file = tomllib.load(open("pyproject.toml", "rb"))
project = file["project"]
wanted = [*project["dependencies"], *project["optional-dependencies"]["postgres"]]
print("\n".join([*wanted, *file["build-system"]["requires"]]))
PYTHON
  "$python" -m pip download --quiet --disable-pip-version-check --dest wheelhouse \
    --only-binary=:all: --python-version 3.11 --requirement wheelhouse/requirements.txt
  echo "$wanted" >"$stamp"
}

up() {
  mkdir -p "$CACHE"
  install docker docker.io iptables
  start_daemon
  have_compose || install docker-compose docker-compose
  base_image
  fill_wheelhouse
  say "docker is ready"
}

# beside NAME PUBLIC LOCAL: sees to it that there is an image LOCAL, which docker-compose.yml or a file
# over it takes by the variable STAIRWELL_NAME: PUBLIC, or what deploy/NAME makes.
beside() {
  local name=$1 public=$2 own=$3
  docker info >/dev/null 2>&1 || cannot "no docker daemon answers; begin with 'up'"
  if ! docker image inspect "$own" >/dev/null 2>&1; then
    say "pulling $public"
    if timeout 120 docker pull -q "$public" >/dev/null 2>&1; then
      docker tag "$public" "$own"
    else
      say "it cannot be pulled: making $own from Debian's packages"
      docker build -q --build-arg "BASE=$LOCAL_BASE" -t "$own" "deploy/$name" \
        >"$CACHE/$name.log" 2>&1 || { tail -5 "$CACHE/$name.log"; cannot "that failed"; }
    fi
  fi
  say "export STAIRWELL_${name^^}=$own"
}

down() {
  local pid
  [ -e "$STATE/dockerd.pid" ] || return 0
  pid=$(cat "$STATE/dockerd.pid")
  say "stopping dockerd"
  kill "$pid" 2>/dev/null || true
  local deadline=$((SECONDS + START_SECONDS))
  while kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $deadline ]; do sleep 0.2; done
  rm -rf "$STATE"
}

case "${1-}" in
  up) up ;;
  postgres) beside postgres "$PUBLIC_POSTGRES" "$LOCAL_POSTGRES" ;;
  prometheus) beside prometheus "$PUBLIC_PROMETHEUS" "$LOCAL_PROMETHEUS" ;;
  down) down ;;
  *)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
