"""Keeps credentials out of messages, logs, `repr` and tracebacks."""
