#!/usr/bin/env bash
# Gets the servers that tests need and that no Python package brings: PostgreSQL, Redis, RabbitMQ and
# Chromium (Debian's packages), axe-core (from npm), and FerretDB, which speaks MongoDB's protocol over SQLite (built
# from Go modules). What is there already stays.
#
# Needs apt-get and root for the ones (or their programs in place), npm, and Go 1.22 or later for the other.
#
#   TRIFLE_TOOLS=/some/folder tests/build_servers.sh     where to put programs (~/.cache/trifle_otel/bin)
set -euo pipefail

version=v1.24.2
tools=${TRIFLE_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/trifle_otel/bin}
program=$tools/ferretdb-$version

if ! command -v initdb >/dev/null && ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    echo "installing PostgreSQL"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends postgresql >/dev/null
fi

if ! command -v redis-server >/dev/null; then
    echo "installing Redis"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends redis-server >/dev/null
fi

if ! compgen -G '/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server' >/dev/null; then
    echo "installing RabbitMQ"
    apt-get update -q >/dev/null
    # its package would start it, which nobody needs here
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends rabbitmq-server >/dev/null
fi

if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
    echo "installing Chromium"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium fonts-dejavu-core >/dev/null
fi

axe=4.14.1
if [ ! -f "$tools/axe-core-$axe.js" ]; then
    echo "fetching axe-core $axe"
    work=$(mktemp -d "${TMPDIR:-/tmp}/trifle-axe.XXXXXX")
    (cd "$work" && npm pack --silent "axe-core@$axe" >/dev/null && tar -xzf "axe-core-$axe.tgz" package/axe.min.js)
    mkdir -p "$tools"
    mv "$work/package/axe.min.js" "$tools/axe-core-$axe.js"
    rm -rf "$work"
fi

if [ ! -x "$program" ]; then
    echo "building $program"
    work=$(mktemp -d "${TMPDIR:-/tmp}/trifle-servers.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    # FerretDB's own command does not run unless it is built in its own repository; it can be embedded, though.
    cat >main.go <<'GO'
package main

import (
	"context"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

// Arguments: the address to listen on, and the URI of the folder for the databases.
func main() {
	server, err := ferretdb.New(&ferretdb.Config{
		Listener:  ferretdb.ListenerConfig{TCP: os.Args[1]},
		Logger:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
		Handler:   "sqlite",
		SQLiteURL: os.Args[2],
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := server.Run(ctx); err != nil {
		log.Fatal(err)
	}
}
GO
    go mod init trifle.invalid/servers 2>/dev/null
    go get "github.com/FerretDB/FerretDB@$version" >get.log 2>&1 || { cat get.log >&2; exit 1; }
    go mod tidy >tidy.log 2>&1 || { cat tidy.log >&2; exit 1; }
    mkdir -p "$tools"
    CGO_ENABLED=0 go build -tags ferretdb_no_postgresql -o "$work/ferretdb" .
    mv "$work/ferretdb" "$program"
fi
