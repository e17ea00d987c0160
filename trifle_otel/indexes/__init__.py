"""Indexes: the small, hot records that traces are found by. One module for each kind."""
