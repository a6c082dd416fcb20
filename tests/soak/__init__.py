"""A repository in use: sessions, kills, removals, mounts and readers at random, against a model.

`python -m tests.soak --help` runs it; docs/reliability.md tells what it found.
"""
