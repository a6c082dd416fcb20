"""Speed, side by side with others on the same tree: `make bench`. The documentation claims only what this shows."""
