#!/usr/bin/env bash
# Runs the whole distributed sale on this machine, in the foreground: `examples/flash_sale/system.sh DIR [WRITER-FLAG]...`, such as
# `examples/flash_sale/system.sh /tmp/sale --sku SNEAKER=10000`. PostgreSQL with a synchronous standby, Redis, Kafka, a writer and its
# standby, and two API nodes, on free ports. Each has its log in DIR, and its process in DIR/NAME.pid. Once all of them run, DIR/places
# says where, and so does the output. Ctrl-C ends them; run again with the same DIR, the sale goes on as it was left.
# Run by root, DIR is one that PostgreSQL's own user can reach. `FLASH_SALE=PROGRAM` takes a program that is built already.
#
# PostgreSQL, Redis, Java and Maven must be there: `tests/all.sh` says how to get them.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."

program=${FLASH_SALE:-}
if [ -z "$program" ]; then
    cargo build --quiet --release -p flash-sale --features kafka
    program=${CARGO_TARGET_DIR:-target}/release/flash-sale
fi
servers=tests/servers
"$servers/kafka.sh" --fetch

started=()
# The last that was started is the first to end. PostgreSQL ends at SIGINT without waiting for who is connected.
finish() {
    local at
    rm -f "$dir/places"
    for ((at = ${#started[@]} - 1; at >= 0; at--)); do
        local name=${started[at]} signal=TERM
        case $name in postgres*) signal=INT ;; esac
        kill -s "$signal" "$(<"$dir/$name.pid")" 2>/dev/null || continue
        wait "$(<"$dir/$name.pid")" 2>/dev/null || true
    done
}

# run NAME COMMAND...
run() {
    local name=$1
    shift
    # Of its own session: a Ctrl-C reaches this script, which ends them one after the other.
    setsid "$@" >"$dir/$name.log" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
    started+=("$name")
}

# until_it NAME COMMAND...: waits until the command succeeds, while NAME runs.
until_it() {
    local name=$1
    shift
    for _ in $(seq 3000); do
        "$@" 2>/dev/null && return
        kill -0 "$(<"$dir/$name.pid")" 2>/dev/null || break
        # Another program tells nobody when it is ready.
        sleep 0.02
    done
    echo "$name doesn't run: see $dir/$name.log" >&2
    tail -n 5 "$dir/$name.log" >&2
    exit 1
}

listens() { (: <"/dev/tcp/127.0.0.1/$1"); }
# PostgreSQL listens before it takes connections.
is_ready() { pg_isready --quiet --host=127.0.0.1 --port="$1"; }

# Below those that an operating system gives by itself.
taken=()
free_port() {
    while :; do
        port=$((20000 + RANDOM % 12000))
        case " ${taken[*]} " in *" $port "*) continue ;; esac
        listens "$port" 2>/dev/null || break
    done
    taken+=("$port")
}

# Servers find each other where they were when the sale began.
if [ ! -e "$dir/ports" ]; then
    for name in postgres replica redis kafka; do
        free_port
        echo "$name=$port"
    done >"$dir/ports.new"
    mv "$dir/ports.new" "$dir/ports"
fi
. "$dir/ports"
for port in "$postgres" "$replica" "$redis" "$kafka"; do
    if listens "$port" 2>/dev/null; then
        echo "Port $port of $dir/ports is taken: this sale runs already; or end what listens there, or give another DIR" >&2
        exit 1
    fi
done
# Also what a killed one has left.
rm -f "$dir/places"
trap finish EXIT
trap 'exit 130' INT TERM

# What servers with such a load are given: memory, and disks that are written to steadily.
run kafka "$servers/kafka.sh" "$dir/kafka" "$kafka" -Xms1g -Xmx1g log.flush.scheduler.interval.ms=1000
run redis "$servers/redis.sh" "$dir/redis" "$redis"
database=(max_wal_size=4GB shared_buffers=512MB backend_flush_after=2MB)
run postgres "$servers/postgres.sh" "$dir/postgres" "$postgres" "${database[@]}"
until_it postgres is_ready "$postgres"
run postgres-standby "$servers/postgres.sh" "$dir/postgres-standby" "$replica" --standby-of "$postgres" "${database[@]}"
until_it postgres-standby is_ready "$replica"
sql() { psql -qAtc "$1" "postgres://stockade@127.0.0.1:$postgres/stockade"; }
# From here on a commit is one on both.
sql "ALTER SYSTEM SET synchronous_standby_names = '*'"
sql "SELECT pg_reload_conf()" >/dev/null
until_it redis listens "$redis"
until_it kafka listens "$kafka"

store=postgres://stockade@127.0.0.1:$postgres,127.0.0.1:$replica/stockade
cache=redis://127.0.0.1:$redis
ingest=kafka://127.0.0.1:$kafka
where=(--store "$store" --cache "$cache" --ingest "$ingest")
"$program" init --store "$store" --ingest "$ingest" >"$dir/init.log"
serve() { run "$1" "$program" serve --listen 127.0.0.1:0 --insecure-dev "${where[@]}" "${@:2}"; }
says_where() { grep -q '^listening on ' "$dir/$1.log"; }
address() { sed -n 's/^listening on //p' "$dir/$1.log"; }

serve writer --role writer "$@"
until_it writer says_where writer
serve standby --role writer "$@"
for node in 0 1; do
    serve "node-$node" --role api --node "$node"
    until_it "node-$node" says_where "node-$node"
done
{
    echo "store=$store"
    echo "cache=$cache"
    echo "ingest=$ingest"
    echo "writer=$(address writer)"
    echo "node_0=$(address node-0)"
    echo "node_1=$(address node-1)"
} >"$dir/places.new"
mv "$dir/places.new" "$dir/places"
cat "$dir/places"
wait
