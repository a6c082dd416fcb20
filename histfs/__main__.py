"""`python -m histfs` is the command `histfs`."""

import sys

from histfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
