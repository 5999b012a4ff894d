#!/bin/sh
# Starts a throwaway PostgreSQL for the tests of the store. Either source it, which sets RLHF_LOOP_TEST_POSTGRES and
# stops the server when the shell ends, or run `.ci/postgres.sh start` (prints the URL) and `.ci/postgres.sh stop URL`.
# Where it cannot start one it says why and succeeds: the tests then skip, saying so.

postgres_binaries() {
    for folder in /usr/lib/postgresql/*/bin; do
        [ -x "$folder/initdb" ] && echo "$folder"
    done | sort -V | tail -n 1
}

postgres_start() {
    binaries=$(postgres_binaries)
    if [ -z "$binaries" ]; then
        if [ "$(id -u)" != 0 ]; then
            echo "no PostgreSQL: not installed, and only root can install it (apt-get install postgresql)" >&2
            return 1
        fi
        if ! command -v apt-get >/dev/null; then
            echo "no PostgreSQL: not installed, and there is no apt-get to install it with" >&2
            return 1
        fi
        if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql; } \
            >/tmp/postgres-install.log 2>&1; then
            echo "no PostgreSQL: apt-get failed; its last lines:" >&2
            tail -n 3 /tmp/postgres-install.log >&2
            return 1
        fi
        binaries=$(postgres_binaries)
        if [ -z "$binaries" ]; then
            echo "no PostgreSQL: Debian's package put no initdb into /usr/lib/postgresql" >&2
            return 1
        fi
    fi
    postgres_folder=$(mktemp -d /tmp/rlhf-loop-postgres.XXXXXX)
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    if [ "$(id -u)" = 0 ]; then # the server refuses to run as root
        chown postgres "$postgres_folder"
    fi
    as_postgres "$binaries/initdb" -D "$postgres_folder/data" -U postgres -A trust -E UTF8 --no-sync \
        >"$postgres_folder.log" 2>&1 &&
        as_postgres "$binaries/pg_ctl" -D "$postgres_folder/data" -w -t 60 -l "$postgres_folder/server.log" -o \
            "-p $port -k $postgres_folder -c listen_addresses=127.0.0.1 -c fsync=off" start >>"$postgres_folder.log" 2>&1
    started=$?
    if [ "$started" != 0 ]; then
        echo "no PostgreSQL: the server does not start; the last lines:" >&2
        tail -n 3 "$postgres_folder.log" >&2
        rm -rf "$postgres_folder" "$postgres_folder.log"
        return 1
    fi
    postgres_url="postgresql://postgres@127.0.0.1:$port/postgres?application_name=$postgres_folder"
}

postgres_stop() { # URL
    folder=${1##*application_name=}
    case $folder in
    /tmp/rlhf-loop-postgres.*) ;;
    *)
        echo "$1 was not started by this script" >&2
        return 1
        ;;
    esac
    as_postgres "$(postgres_binaries)/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1
    rm -rf "$folder" "$folder.log"
}

as_postgres() {
    if [ "$(id -u)" = 0 ]; then
        (cd / && setpriv --reuid=postgres --regid=postgres --init-groups "$@")
    else
        "$@"
    fi
}

case ${0##*/}:${1:-} in
postgres.sh:start) postgres_start && echo "$postgres_url" || exit 0 ;;
postgres.sh:stop) postgres_stop "$2" ;;
postgres.sh:*) sed -n '2,4s/^# //p' "$0" ;;
*)
    if [ -z "${RLHF_LOOP_TEST_POSTGRES:-}" ] && postgres_start; then
        RLHF_LOOP_TEST_POSTGRES=$postgres_url
        export RLHF_LOOP_TEST_POSTGRES
        trap 'postgres_stop "$RLHF_LOOP_TEST_POSTGRES"' EXIT
        echo "PostgreSQL for the tests: $RLHF_LOOP_TEST_POSTGRES" >&2
    fi
    ;;
esac
