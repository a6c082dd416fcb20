"""Faults at every call that changes something: see docs/reliability.md for what is promised and what was found.

python -m tests.faults --help
"""
