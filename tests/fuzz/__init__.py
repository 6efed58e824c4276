"""A fuzzer: damages a real store, and forges parts of it, in ways that a seed decides.

``python -m tests.fuzz --minutes 10`` looks for new inputs that break something. An input is a short list of
changes to the store in ``tests/fixtures/format-1``. The inputs in ``corpus/`` once broke something, or reach
code that few others reach. `make test` tries each of them.
"""
