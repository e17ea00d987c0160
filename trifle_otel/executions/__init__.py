"""Executions made of finished spans: put together, named, and archived as traces."""
