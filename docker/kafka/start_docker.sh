#!/bin/bash
# Start a Docker engine (as root, installed from Debian's own packages if need be), unless one answers already.
# Writes the id of the process it started, if any, to the file given. Use: start_docker.sh [PID_FILE]
set -euo pipefail
pid_file=${1:-/dev/null}
log=${DOCKERD_LOG:-/var/log/dockerd.log}

answers() { docker version >/dev/null 2>&1; }
give_up() {
  echo "start_docker.sh: $*" >&2
  exit 1
}

answers && exit
[[ $(id -u) == 0 ]] || give_up "no Docker engine answers, and only root can start one"
if ! type -P dockerd >/dev/null || ! type -P docker >/dev/null; then
  type -P apt-get >/dev/null || give_up "no Docker engine is installed, and there is no apt-get to install one"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends docker.io containerd runc iptables; } \
    </dev/null >"$log" 2>&1 || give_up "Debian's docker.io could not be installed; see $log"
  answers && exit # a machine with systemd has started it by now
fi
setsid dockerd >"$log" 2>&1 </dev/null &
pid=$!
for _ in {1..150}; do
  if answers; then
    echo "$pid" >"$pid_file"
    exit
  fi
  kill -0 "$pid" 2>/dev/null || break
  sleep 0.2
done
kill "$pid" 2>/dev/null || true
give_up "dockerd does not answer; the end of $log: $(tail -n 3 "$log" | tr '\n' ' ')"
