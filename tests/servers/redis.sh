#!/usr/bin/env bash
# Runs a Redis server in the foreground: `redis.sh DIR PORT [ARGUMENT]...`, each argument as `redis-server` takes it, say
# `--replicaof 127.0.0.1 PORT` or `--cluster-enabled yes`. Loopback only, no password; it keeps nothing across a restart but a
# cluster's configuration, which lies in DIR.
set -euo pipefail
dir=$1 port=$2
shift 2
command -v redis-server >/dev/null || {
    echo "Redis' server is missing. As root: apt-get install -y redis-server" >&2
    exit 1
}
mkdir -p "$dir"
exec redis-server --port "$port" --bind 127.0.0.1 --dir "$dir" --save '' --appendonly no --daemonize no "$@"
