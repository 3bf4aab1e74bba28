"""The soak: a run that is killed, starved and damaged ends with the bits of one left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import soak

ROOT = Path(__file__).parents[2]


def test_a_run_that_is_killed_starved_and_damaged_ends_with_the_bits_of_one_left_alone():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--quick"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines())
    assert told["beside the run left alone"] == "identical"
    assert told["bytes lost"] == "0"
    assert int(told["rounds run"]) >= 20  # two strategies of five rounds, twice
    assert {"bad replies, crash", "bad replies, lost", "bad replies, malformed"} <= told.keys()


@pytest.mark.parametrize(
    ("content", "lost", "code"),
    [({"a": 1}, 0, None), ({"a": 2}, 0, 1), ({}, 0, 1), ({"a": 1}, 9, 1)],
)
def test_the_soak_fails_if_a_file_differs_or_a_byte_is_lost(
    content, lost, code, monkeypatch, capsys
):
    def soaked(place, flags, most, draw, found, on_ray):
        found.lost += lost
        return content

    monkeypatch.setattr(soak.Soaked, "to_the_end", lambda self, harms, most: None)
    monkeypatch.setattr(soak, "content_of", lambda folder: {"a": 1})
    monkeypatch.setattr(soak, "_soaked", soaked)
    monkeypatch.setattr(soak.torch, "set_num_threads", lambda count: None)
    try:
        soak.main(["--minutes", "0"])
        ended = None
    except SystemExit as error:
        ended = error.code
    assert ended == code
    assert ("NOT IDENTICAL" in capsys.readouterr().out) == bool(code)
