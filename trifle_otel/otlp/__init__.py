"""OTLP: finished spans read from it and written as it, as protobuf and JSON, in requests and files."""
