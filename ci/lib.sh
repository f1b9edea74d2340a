# Shared by ci/up, ci/down and ci/test: where things are, and how a fresh Debian machine gets what they need.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
PYTHON=$ROOT/.venv/bin/python
export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# packages NAME...: installs the Debian packages that are missing; their services are not started.
packages() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  [ "$(id -u)" = 0 ] || die "needs root to install: ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  local policy=
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
  fi
  local rc=0
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null || rc=$?
  [ -n "$policy" ] && rm -f "$policy"
  [ $rc = 0 ] || die "apt-get could not install: ${missing[*]}"
}

# virtualenv [EXTRA]: fastkube, built in place, in .venv; done again only when what it is made of has changed.
virtualenv() {
  local extra=${1:-} stamp=.venv/.fastkube want
  want=$(cat pyproject.toml setup.py ci/constraints.txt fastkube/_ext/*.p[yx][xd] 2>/dev/null | sha256sum | cut -d' ' -f1)
  if [ -x "$PYTHON" ] && grep -qsx "$want $extra" "$stamp"; then return 0; fi
  [ -n "$extra" ] || { [ -x "$PYTHON" ] && grep -qs "^$want" "$stamp" && return 0; }
  local base=python3
  for base in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
    "$base" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info)' 2>/dev/null && break
  done
  say "building fastkube into .venv with $("$base" --version)"
  [ -x "$PYTHON" ] || "$base" -m venv .venv
  "$PYTHON" -m pip install -q -c ci/constraints.txt -e ".${extra:+[$extra]}"
  echo "$want $extra" >"$stamp"
}
