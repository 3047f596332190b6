#!/usr/bin/env bash
# Runs an Apache Kafka in the foreground, broker and controller in one process: `kafka.sh DIR PORT [-JVM-FLAG|SETTING=VALUE]...`. DIR
# is made anew unless it holds a server's data already, which is then started again as it was left. Plain text, loopback only, no topics
# but those that are made. The server's jars are fetched once, into ${XDG_CACHE_HOME:-~/.cache}/stockade. `kafka.sh --fetch` does
# that alone.
set -euo pipefail
version=4.1.1 log4j=2.25.2

command -v java >/dev/null || {
    echo "Java 17 or later is missing. As root: apt-get install -y openjdk-17-jre-headless" >&2
    exit 1
}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/stockade
lib=$cache/kafka-$version
if [ ! -d "$lib" ]; then
    command -v mvn >/dev/null || {
        echo "Maven is missing, to fetch Kafka's jars into $lib. As root: apt-get install -y maven" >&2
        exit 1
    }
    mkdir -p "$cache"
    # Tests that start at once fetch it once; a fetch that is cut short leaves no folder of that name.
    exec 9>"$lib.lock"
    flock 9
    if [ ! -d "$lib" ]; then
        fetched=$(mktemp -d "$cache/fetch-XXXXXX")
        trap 'rm -rf "$fetched"' EXIT
        dependency() { printf '<dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>' "$@"; }
        cat >"$fetched/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
    <modelVersion>4.0.0</modelVersion>
    <groupId>stockade</groupId><artifactId>kafka-server</artifactId><version>1</version><packaging>pom</packaging>
    <dependencies>
        $(dependency org.apache.kafka kafka_2.13 $version)
        $(dependency org.apache.kafka kafka-tools $version)
        $(dependency org.apache.logging.log4j log4j-core $log4j)
        $(dependency org.apache.logging.log4j log4j-slf4j-impl $log4j)
    </dependencies>
</project>
POM
        mvn -B -q -f "$fetched/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$fetched/lib" >&2 || {
            echo "Kafka's jars could not be fetched: give Maven a way to a repository" >&2
            exit 1
        }
        mv "$fetched/lib" "$lib"
        rm -rf "$fetched"
        trap - EXIT
    fi
    exec 9>&-
fi
[ "${1:-}" != --fetch ] || exit 0

dir=$1 port=$2
shift 2
# By itself it starts fast and stays small: the tests' own work is what runs for long.
java=(java -Xms256m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1)
for given in "$@"; do case $given in -*) java+=("$given") ;; esac; done
java+=(-cp "$lib/*")
properties=$dir/server.properties
mkdir -p "$dir"
# The controller's own port stays the same as long as the data does. Below those that an operating system gives by itself.
if [ ! -s "$dir/controller.port" ]; then
    for _ in $(seq 100); do
        controller=$((20000 + RANDOM % 12000))
        # A subshell, so that a refused connection ends nothing else.
        (: </dev/tcp/127.0.0.1/$controller) 2>/dev/null || break
    done
    echo "$controller" >"$dir/controller.port"
fi
controller=$(<"$dir/controller.port")
{
    cat <<PROPERTIES
process.roles=broker,controller
node.id=1
listeners=BROKER://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
advertised.listeners=BROKER://127.0.0.1:$port
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:$controller
log.dirs=$dir/data
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
PROPERTIES
    for given in "$@"; do case $given in -*) ;; *) echo "$given" ;; esac; done
} >"$properties"
if [ ! -e "$dir/data/meta.properties" ]; then
    "${java[@]}" kafka.tools.StorageTool format --standalone -t stockade-tests-kafka-A -c "$properties" >/dev/null || {
        echo "Kafka's folder $dir/data can't be formatted" >&2
        exit 1
    }
fi
exec "${java[@]}" kafka.Kafka "$properties"
