"""Archived traces as spans again, sent to an OTLP endpoint."""
