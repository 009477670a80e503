"""What is printed lasts, whoever reads it in whatever alphabet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PRINT = """
import sys
from pathlib import Path
from adray.cli.output import make_output_last
make_output_last()
for i in range(int(sys.argv[1])):
    print("볼트", i, flush=True)
print("done", file=sys.stderr)
sys.exit(7)
"""


def test_work_goes_on_and_keeps_its_exit_code_when_the_reader_has_gone():
    process = subprocess.Popen(
        [sys.executable, "-c", PRINT, "20000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 7
    assert said.decode().strip() == "done"


def test_letters_that_the_terminal_lacks_become_escapes():
    done = subprocess.run(
        [sys.executable, "-c", PRINT, "1"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.stdout == "볼트 0\n".encode("ascii", "backslashreplace")
    assert done.returncode == 7


def test_work_goes_on_and_keeps_its_exit_code_when_the_disk_of_its_log_is_full():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINT, "9"], stdout=full, stderr=full, check=False
        )
    assert done.returncode == 7


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_take_what_is_printed_and_no_file_gets_it(closed, tmp_path):
    file = tmp_path / "written"
    code = PRINT.replace("for i", "file = open(sys.argv[2], 'w')\nfor i")
    command = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", code, "9", str(file)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 7
    assert file.read_text() == ""
