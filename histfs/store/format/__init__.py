"""The on-disk format, pure: bytes to values and back (docs/format.md)."""
