"""The storage format, byte by byte, as docs/format.md describes it."""
