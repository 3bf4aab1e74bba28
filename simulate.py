"""Run strategies on virtual clients: the same as ``fedexp simulate``."""

import sys

from fedexp.cli import main

if __name__ == "__main__":
    main(["simulate", *sys.argv[1:]])
