"""`python -m adray.sweep FILE` is `python -m adray sweep FILE`."""

import sys

from adray.__main__ import command_line

if __name__ == "__main__":
    sys.exit(command_line("sweep"))
