#!/usr/bin/env bash
# Runs a PostgreSQL server in the foreground: `postgres.sh DIR PORT [SETTING=VALUE]...`, or as a streaming standby of another one:
# `postgres.sh DIR PORT --standby-of PORT [SETTING=VALUE]...`. DIR is made anew unless it holds a cluster already, which is
# then started again as it was left. Superuser `stockade`, database `stockade`, no password, loopback only, durable.
set -euo pipefail
dir=$1 port=$2
shift 2
primary=
if [ "${1:-}" = --standby-of ]; then
    primary=$2
    shift 2
fi

PATH=$PATH:$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
command -v initdb >/dev/null || {
    echo "PostgreSQL's server is missing. As root: apt-get install -y postgresql" >&2
    exit 1
}
# The server refuses to run as root; its package brings a user for it.
as_server=()
mkdir -p "$dir"
if [ "$(id -u)" = 0 ]; then
    as_server=(setpriv --reuid=postgres --regid=postgres --clear-groups)
    chown postgres:postgres "$dir"
fi

data=$dir/data
if [ ! -e "$data/PG_VERSION" ]; then
    if [ -n "$primary" ]; then
        # A server listens before it takes connections. If it never does, the copy says why.
        for _ in $(seq 1500); do
            pg_isready --quiet --host=127.0.0.1 --port="$primary" && break
            sleep 0.02
        done
        "${as_server[@]}" pg_basebackup --host=127.0.0.1 --port="$primary" --username=stockade --pgdata="$data" \
            --write-recovery-conf --checkpoint=fast --wal-method=stream
    else
        "${as_server[@]}" initdb --pgdata="$data" --username=stockade --auth=trust --encoding=UTF8 --no-locale >/dev/null
        printf 'host replication all 127.0.0.1/32 trust\n' >>"$data/pg_hba.conf"
        # `createdb` without a running server: the single-user mode of the server itself.
        echo 'CREATE DATABASE stockade' | "${as_server[@]}" postgres --single -D "$data" postgres >/dev/null
    fi
fi
# `ssl=on`: with a certificate of its own for 127.0.0.1, in `DIR/data/server.crt`.
case " $* " in *" ssl=on "*)
    [ -s "$data/server.key" ] || "${as_server[@]}" openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
        -subj /CN=stockade-test -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -keyout "$data/server.key" -out "$data/server.crt" 2>/dev/null
    chmod 600 "$data/server.key"
    ;;
esac
settings=()
for setting in "$@"; do settings+=(-c "$setting"); done
exec "${as_server[@]}" postgres -D "$data" -c port="$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c wal_level=replica "${settings[@]}"
