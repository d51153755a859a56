#!/usr/bin/env bash
# Set the working copy up on Debian 12: packages, .venv, locked dependencies, editable install.
# Safe to run again at any time, and quick when there is nothing to do. Needs root or sudo only
# when a Debian package is missing, or apt's lists are.
set -euo pipefail
cd "$(dirname "$0")/.."

# Nothing of the caller's Python may leak into ours.
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONSTARTUP PIP_REQUIRE_VIRTUALENV PIP_TARGET PIP_PREFIX PIP_USER
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

packages=(build-essential fuse3 git iproute2 libfuse3-dev make openssl pkg-config procps rsync
          python3 python3-dev python3-venv util-linux)
stamp=.venv/wormfs-setup
say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# Run a command whose output matters only when it fails.
quietly() {
  local log; log=$(mktemp)
  if ! "$@" >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm -f "$log"
    fail "failed, its output is above: $*"
  fi
  rm -f "$log"
}

missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
  done
fi
if [ ${#missing[@]} -gt 0 ]; then
  sudo=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "these Debian packages are missing: ${missing[*]}; run as root, or install sudo"
    sudo=(sudo)
  fi
  say "installing Debian packages: ${missing[*]}"
  quietly "${sudo[@]}" apt-get update -q
  quietly "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

# The version of Debian's package etcd-server that apt would install, without Debian's part of it.
offered_etcd() {
  LC_ALL=C apt-cache policy etcd-server 2>/dev/null |
    sed -nE '/\(none\)/!s/^ *Candidate: ([0-9]+:)?([^-+~]+).*/\2/p' || true
}
download_etcd() {
  cd "$1" && apt-get download -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 etcd-server && dpkg -x ./*.deb .
}

# Unpack etcd's program alone into .venv: the package's service would start on this machine. Without
# it all works but clusters on etcd.
get_etcd() {
  local offered unpacked='' folder sudo=()
  offered=$(offered_etcd)
  if [ -z "$offered" ] && [ "${1:-}" = update ] && command -v apt-get >/dev/null; then
    [ "$(id -u)" = 0 ] || sudo=(sudo -n)
    "${sudo[@]}" apt-get update -q >/dev/null 2>&1 </dev/null || true
    offered=$(offered_etcd)
  fi
  [ ! -x .venv/bin/etcd ] || unpacked=$(.venv/bin/etcd --version | sed -n 's/^etcd Version: //p')
  if [ -n "$offered" ] && [ "$offered" != "$unpacked" ]; then
    folder=$(mktemp -d)
    if (download_etcd "$folder") >/dev/null 2>&1 </dev/null; then
      install -m 755 "$folder/usr/bin/etcd" .venv/bin/etcd.new
      mv -f .venv/bin/etcd.new .venv/bin/etcd
      unpacked=$offered
      say "unpacked the program etcd $unpacked"
    fi
    rm -rf "$folder"
  fi
  [ -n "$unpacked" ] || say "Debian's package etcd-server cannot be had: clusters on etcd cannot be tried here"
}

new_enough() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' 2>/dev/null; }
python=/usr/bin/python3
[ -x $python ] && new_enough $python || python=$(command -v python3 || true)
[ -n "$python" ] && new_enough "$python" || fail "Python 3.11 or newer is needed, and python3 is not"

# The stamp names all that the environment was made from, the folder too: a venv cannot be moved.
wanted=$( { pwd -P; "$python" -c 'import sys; print(sys.version)'; cat requirements.lock pyproject.toml "$0"; } | sha256sum)
if [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c 'import wormfs' 2>/dev/null; then
  [ -x .venv/bin/etcd ] || get_etcd
  exit 0
fi
# A venv of another Python or folder is of no use; one of ours is brought up to date instead.
if [ -d .venv ] && ! { [ "$(head -1 .venv/bin/pip 2>/dev/null)" = "#!$(pwd -P)/.venv/bin/python3" ] ||
                       [ "$(head -1 .venv/bin/pip 2>/dev/null)" = "#!$(pwd -P)/.venv/bin/python" ]; }; then
  rm -rf .venv
fi
if ! { [ -x .venv/bin/python ] && new_enough .venv/bin/python; }; then
  rm -rf .venv
  say "making the virtual environment .venv with $python"
  "$python" -m venv .venv
fi
say "installing the locked dependencies"
quietly .venv/bin/python -m pip install -r requirements.lock
quietly .venv/bin/python -m pip install --no-deps --no-build-isolation -e .
get_etcd update
printf '%s\n' "$wanted" >$stamp
say "done"
