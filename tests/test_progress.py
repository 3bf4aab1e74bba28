"""Bars in a real terminal, plain lines anywhere else; what is logged meanwhile stays whole."""

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import pytest

from fedexp import progress
from fedexp.progress import Progress, score

ROUNDS = 3
RUN = f"""
import logging, sys, time, warnings
import flwr.common.logger
from fedexp.logs import without_escape_codes
from fedexp.progress import Progress
without_escape_codes()
with Progress(["fedavg", "nesterovexp+hypersgd seed 12"], {ROUNDS}) as shown:
    for key in ("fedavg", "nesterovexp+hypersgd seed 12"):
        for number in range(1, {ROUNDS} + 1):
            shown.advance(key, {{"round": number, "failed": False, "test-accuracy": number / 4}})
            time.sleep(0.25)  # until the bar is on the screen
            logging.getLogger("flwr").warning("a line of Flower's")
            warnings.warn(f"one of {{key}} {{number}}")
            print("a line of the model's")
"""


def in_terminal(columns, **env):
    """All that the program wrote to a pseudo-terminal of that width."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "TERM")}
    with subprocess.Popen(
        [sys.executable, "-c", RUN],
        **{"stdin": theirs, "stdout": theirs, "stderr": theirs},
        env={**kept, "TERM": "xterm-256color", **env},
    ):
        os.close(theirs)
        data = b""
        while chunk := _read(ours):
            data += chunk
    os.close(ours)
    return data.decode()


def _read(descriptor):
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # Linux: the other end is closed
        return b""


def screen(text):
    """What a terminal shows in the end, by the few codes that Rich writes."""
    lines, row = [""], 0
    for code, plain in re.findall(r"(\x1b\[[\d;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", text):
        if code.endswith("A"):
            row -= int(code[2:-1] or 1)
        elif code == "\x1b[2K":
            lines[row] = ""
        elif code == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        lines[row] += plain
    return lines


@pytest.mark.parametrize("columns", [60, 100])
def test_a_terminal_gets_a_bar_that_fits_and_that_no_line_tears(columns):
    text = in_terminal(columns)
    assert "\x1b[" in text
    lines = [line.rstrip() for line in screen(text)]
    assert max(map(len, lines)) <= columns
    bars = [line for line in lines if re.search(r" 3/3 ", line)]
    assert [bar.split()[0] for bar in bars] == ["fedavg", "nesterovexp+hypersgd"]
    assert all("75.0%" in bar for bar in bars)
    assert sum("a line of Flower's" in line for line in lines) == 2 * ROUNDS
    assert lines.count("a line of the model's") == 2 * ROUNDS
    assert not [line for line in lines if "━" in line and line not in bars]


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_user_who_wants_no_escape_codes_gets_none(env):
    text = in_terminal(60, **env)
    assert "\x1b" not in text
    assert "fedavg: round 3 of 3, 75.0%\r\n" in text


def test_an_ascii_terminal_gets_a_bar_of_its_letters():
    text = in_terminal(60, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert text.isascii()
    assert re.search(r"fedavg +\S*-+", text)


def test_redirected_output_has_no_escape_codes():
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert "fedavg: round 3 of 3, 75.0%\n" in done.stdout


def test_a_pipe_gets_a_line_every_few_seconds_with_the_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(["fedavg"], 40) as shown:
        for number in range(1, 41):
            now[0] += 2.0
            shown.advance("fedavg", {"round": number, "test-accuracy": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fedavg: round 3 of 40, 50.0%, 0:01:14 left"  # 37 rounds of 2 s
    assert lines[-1] == "fedavg: round 40 of 40, 50.0%"
    assert len(lines) == 14  # every 6 s, and the last


def test_a_run_that_goes_on_counts_only_the_rounds_that_it_saw(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(["fedavg"], 40) as shown:
        for number in (31, 32):
            now[0] += 10.0
            shown.advance("fedavg", {"round": number, "test-accuracy": 0.5})
    assert capsys.readouterr().out.splitlines()[-1].endswith("0:01:20 left")


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"test-accuracy": 0.853, "test-loss": 0.1}, "85.3%"),
        ({"test-accuracy": None, "test-loss": 0.123456}, "loss 0.1235"),
        ({"test-loss": 12.5}, "loss 12.5"),
        ({"failed": True, "test-accuracy": None, "test-loss": None}, "failed"),
        ({}, "-"),
    ],
)
def test_a_round_shows_its_accuracy_or_its_loss(row, shown):
    assert score(row) == shown


def test_many_bars_make_room_for_those_that_go_on(monkeypatch):
    monkeypatch.setattr(progress, "is_live", lambda *_: True)
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("COLUMNS", "80")
    keys = [f"fedavg seed {i}" for i in range(30)]
    shown = Progress(keys, 1)
    tasks = shown._bars._rich.tasks

    def visible():
        return [task.description for task in tasks if task.visible]

    assert visible() == keys[:1]  # from the start: the first round may take long
    shown.advance(keys[0], {"round": 1})
    assert visible() == keys[:2]
    shown.advance(keys[2], {"round": 1})  # runs in parallel
    assert visible() == keys[:3]
    for key in keys:
        shown.advance(key, {"round": 1})
    assert visible() == keys[-6:]
