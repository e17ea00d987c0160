"""What takes OTLP in, over HTTP and gRPC, and answers when it is on disk."""
