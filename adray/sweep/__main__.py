"""`python -m adray.sweep FILE` is `python -m adray sweep FILE`."""

import sys

from adray.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
