"""Bytes from nowhere, for everything that reads bytes: `make fuzz`, or `python -m tests.fuzz --help`."""
