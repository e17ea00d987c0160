"""Payload stores: where the parts and artifacts of traces are kept. One module for each kind."""
