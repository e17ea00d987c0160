"""Fuzzing of everything that reads bytes from outside: `python -m tests.fuzzing TARGET --seconds 600`.

`targets` says what is fuzzed and what must hold, `seeds` what the fuzzer begins with, `engine` runs it. What was ever
found is kept in `cases`, and replayed by `test_fuzzing`.
"""
