#!/usr/bin/env bash
# Builds what the tests of the bridge send spans to, from Go modules: an OpenTelemetry Collector with the components that
# collector-config.yaml names, by the collector's builder, and Jaeger v2 (its APIs are whole, its UI has a placeholder for
# a page). What is there already stays.
#
# Needs Go 1.26 or later and a proxy for Go modules. Cold it takes ten minutes of CPU and 6 GB of disk,
# nearly all of it in Go's own caches.
#
#   TRIFLE_TOOLS=/some/folder tests/build_collector.sh     where to put programs (~/.cache/trifle_otel/bin)
set -euo pipefail

collector=v0.155.0 # of the modules of the collector and of contrib; a newer one when a proxy has all of its modules
stable=v1.61.0     # of the collector's modules that are stable, in the same release
jaeger=v1.76.0     # the module's version of Jaeger v2.13.0
tools=${TRIFLE_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/trifle_otel/bin}
collector_program=$tools/otelcol-$collector
jaeger_program=$tools/jaeger-v2.13.0

[ ! -x "$collector_program" ] || [ ! -x "$jaeger_program" ] || exit 0
command -v go >/dev/null || { echo "Go 1.26 or later is needed to build a collector and Jaeger" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/trifle-collector.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$tools"
export CGO_ENABLED=0 GOBIN=$work/bin

# What a command prints is shown where it fails.
quietly() {
    "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; return 1; }
}

if [ ! -x "$collector_program" ]; then
    echo "building $collector_program"
    core=go.opentelemetry.io/collector
    contrib=github.com/open-telemetry/opentelemetry-collector-contrib
    mkdir "$work/collector"
    cd "$work/collector"
    cat >builder.yaml <<YAML
dist:
  name: otelcol
  description: the components of collector-config.yaml
  output_path: $work/collector
  version: ${collector#v}
receivers:
  - gomod: $core/receiver/otlpreceiver $collector
exporters:
  - gomod: $core/exporter/debugexporter $collector
  - gomod: $core/exporter/otlpexporter $collector
  - gomod: $core/exporter/otlphttpexporter $collector
  - gomod: $contrib/exporter/fileexporter $collector
  - gomod: $contrib/exporter/prometheusexporter $collector
processors:
  - gomod: $core/processor/memorylimiterprocessor $collector
  - gomod: $contrib/processor/redactionprocessor $collector
  - gomod: $contrib/processor/tailsamplingprocessor $collector
  - gomod: $contrib/processor/transformprocessor $collector
extensions:
  - gomod: $contrib/extension/bearertokenauthextension $collector
  - gomod: $contrib/extension/healthcheckextension $collector
  - gomod: $contrib/extension/storage/filestorage $collector
providers:
  - gomod: $core/confmap/provider/envprovider $stable
  - gomod: $core/confmap/provider/fileprovider $stable
  - gomod: $core/confmap/provider/yamlprovider $stable
YAML
    # The builder makes the sources, `go build` the rest: the builder would also ask for what the components' tests need.
    quietly go install "$core/cmd/builder@$collector"
    quietly "$GOBIN/builder" --config builder.yaml --skip-get-modules --skip-compilation
    quietly go mod init trifle.invalid/otelcol
    quietly go get $(sed -n 's/^  - gomod: \(.*\) \(v.*\)$/\1@\2/p' builder.yaml) \
        "$core/otelcol@$collector" "$core/service@$collector"
    quietly go build -mod=mod -trimpath -ldflags="-s -w" -o "$work/otelcol" .
    mv "$work/otelcol" "$collector_program"
fi

if [ ! -x "$jaeger_program" ]; then
    echo "building $jaeger_program"
    mkdir "$work/jaeger"
    cd "$work/jaeger"
    quietly go mod init trifle.invalid/jaeger
    # As a dependency: Jaeger's own module replaces another, so that `go install` of it is refused.
    quietly go get -tool "github.com/jaegertracing/jaeger/cmd/jaeger@$jaeger"
    quietly go build -trimpath -ldflags="-s -w" -o "$work/jaeger-program" github.com/jaegertracing/jaeger/cmd/jaeger
    mv "$work/jaeger-program" "$jaeger_program"
fi
