"""What is stored, byte by byte, as docs/format.md describes it."""
