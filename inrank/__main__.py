"""`python -m inrank`, for torchrun."""

import sys

from inrank.cli import main

if __name__ == "__main__":
    sys.exit(main())
