"""A run that is killed, starved and damaged at random ends with the bits of one left alone.

python -m benchmarks.soak [--minutes M | --quick] [--seed S]

One run is left alone. The same run is then started again and again, in this process's engine and
on Ray, until it is done: it is killed, interrupted, its workers are killed, its disk is full or
read-only, its newest checkpoint is damaged, and clients fail as ``--faults`` orders. The exit code
is 1 if a byte differs, if a recorded round is lost, or if a start ends otherwise than documented.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.harm import Disk, Start, damage, small_disk
from fedexp.logs import without_escape_codes
from fedexp.runs.checkpoint import NAMES, Checkpoint
from fedexp.runs.signals import sigterm_as_ctrl_c

FAULTS = "drop=0.1, slow=0.05, nan=0.08, garbage=0.08, scale=0.04, crash=0.08"
FLAGS = [
    *("simulate", "--strategy", "fedexp,scaffold", "--model", "linear", "--num-clients", "8"),
    *("--fraction-train", "0.75", "--fraction-evaluate", "0.5", "--local-steps", "3"),
    *("--robust", "--faults", FAULTS),
]
# How a start may end; a signal or a full disk may come too late to end it otherwise than well.
CODES = {
    "driver killed": {-signal.SIGKILL, 0},
    "Ctrl-C": {130, 0},
    "SIGTERM": {130, 0},
    "workers killed": {-signal.SIGKILL, 0},
    "disk full": {1, 0},
    "disk read-only": {2},
    "checkpoint damaged": {-signal.SIGKILL, 0},
    "left alone": {0},
}
_SIGNALS = {
    "workers killed": signal.SIGKILL,
    "driver killed": signal.SIGKILL,
    "checkpoint damaged": signal.SIGKILL,
    "Ctrl-C": signal.SIGINT,
    "SIGTERM": signal.SIGTERM,
}
_TIMES = ("round-seconds", "train-seconds", "move-seconds", "server-seconds", "seconds-a-round")


@dataclass
class Findings:
    """What a soak has come to.

    Attributes:
        harms: how often each befell a start that had not ended by itself.
        rounds: that were run in all, those that were run again included.
        bad: replies by kind, of the runs that were harmed.
        lost: bytes of recorded rounds that a later start did not have any more.
        wrong: a line for everything that should not have been.
        runs: how many ended, each compared with the one left alone.
    """

    harms: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    wrong: list[str] = field(default_factory=list)
    runs: int = 0

    def show(self) -> None:
        """Print the table."""
        kills = sum(n for harm, n in self.harms.items() if not harm.startswith("disk"))
        lines = {
            "kills survived": kills,
            **self.harms,
            "rounds run": self.rounds,
            **{f"bad replies, {kind}": n for kind, n in sorted(self.bad.items())},
            "bytes lost": self.lost,
            "runs": self.runs,
        }
        for name, number in lines.items():
            print(f"{name:28} {number:8,}")
        print(f"{'beside the run left alone':28} {'identical' if self.ok() else 'NOT IDENTICAL'}")
        for line in self.wrong:
            print(line)

    def ok(self) -> bool:
        """Whether all is as it should be."""
        return self.runs > 0 and not self.wrong and not self.lost


class Soaked:
    """One run that is started until it is done, whatever happens to it.

    Args:
        folder: of the run.
        flags: of the command.
        disk: that the folder is on, if there is one that may be filled.
        draw: decides what happens.
        findings: takes what does.
    """

    def __init__(
        self, folder: Path, flags: Sequence[str], disk: Disk | None, draw: Random, found: Findings
    ) -> None:
        self.folder = folder
        self.flags = [*flags, "--out", str(folder)]
        self.disk, self.draw, self.found = disk, draw, found
        self.log = (disk.folder if disk else folder).with_suffix(".log")

    def to_the_end(self, harms: Sequence[str], most: int) -> None:
        """Start it until it is done; after ``most`` harms, each as often, it is left alone."""
        order = [x for _ in range(0, most, len(harms)) for x in self.draw.sample(harms, len(harms))]
        for harm in [*order[:most], "left alone"]:
            if self._start(harm):
                return
        self.found.wrong.append(f"{self.folder}: is not done, see {self.log}")

    def _start(self, harm: str) -> bool:
        """One start, that ``harm`` befalls; whether the run is done."""
        there = (self.folder / "config.toml").exists()
        if harm == "disk read-only" and self.disk:
            if not there:
                return False
            self.disk.read_only(True)
            self.found.harms[harm] += 1
        known, before = self._recorded(), self._count()
        args = ["resume", str(self.folder)] if there else [*self.flags, "--overwrite"]
        start = Start(args, self.log)
        try:
            code = self._harmed(start, harm, before)
        except BaseException:
            start.signal(signal.SIGKILL)
            raise
        if self.disk:
            self.disk.read_only(False)
            self.disk.free()
        self._judge(harm, code, known)
        self.found.rounds += max(0, self._count() - sum(map(len, known.values())))
        if harm == "checkpoint damaged" and code:
            self._damage()
        return code == 0

    def _harmed(self, start: Start, harm: str, before: int) -> int:
        if harm in ("left alone", "disk read-only") or not self._gets_further(start, before):
            return start.wait()
        if harm == "disk full":
            assert self.disk is not None
            self.disk.fill(left=self.draw.randrange(0, 1 << 14))
            self.found.harms[harm] += 1
            return start.wait()
        if harm == "workers killed" and not self._kill_workers(start):
            return start.wait()
        self.found.harms["driver killed" if harm == "workers killed" else harm] += 1
        return start.signal(_SIGNALS[harm])

    def _gets_further(self, start: Start, before: int) -> bool:
        """Whether it has run a few more rounds than ``before``, and still runs."""
        wanted = before + self.draw.randint(1, 2)
        while start.ended() is None and self._count() < wanted:
            time.sleep(0.002)
        time.sleep(self.draw.uniform(0, 0.08))
        return start.ended() is None

    def _kill_workers(self, start: Start) -> bool:
        """Up to three of Ray's; a client whose worker ends again and again would be given up."""
        for _ in range(self.draw.randint(1, 3)):
            if workers := start.workers():
                os.kill(self.draw.choice(workers), signal.SIGKILL)
                self.found.harms["workers killed"] += 1
            if not self._gets_further(start, self._count()):
                return False
        return True

    def _judge(self, harm: str, code: int, known: Mapping[Path, list[bytes]]) -> None:
        text = self.log.read_text(errors="replace")
        if code not in CODES[harm] or "Traceback" in text:
            last = text.strip().splitlines()[-1:] or [""]
            self.found.wrong.append(f"{harm}: ended with code {code}: {last[0][:200]}")
        for path, lines in known.items():
            now = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            if now[: len(lines)] != lines:
                kept = sum(map(len, set(lines) & set(now)))
                self.found.lost += sum(map(len, lines)) - kept

    def _damage(self) -> None:
        """The newest checkpoint of a strategy that has an older one."""
        newest = [x / NAMES[0] for x in self._units() if all((x / n).exists() for n in NAMES)]
        if newest:
            damage(self.draw.choice(newest), self.draw)
        else:
            self.found.harms["checkpoint damaged"] -= 1
            self.found.harms["driver killed"] += 1

    def _recorded(self) -> dict[Path, list[bytes]]:
        """The lines that a good checkpoint counts on, by file; no later start may change them."""
        return {x / "metrics.jsonl": _lines(x)[: _good_round(x)] for x in self._units()}

    def _units(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob("*/metrics.jsonl"))

    def _count(self) -> int:
        return sum(len(_lines(unit)) for unit in self._units())

    def note_bad_replies(self) -> None:
        """Add up those of the run, which is done."""
        for unit in self._units():
            for line in _lines(unit):
                for key, number in json.loads(line).items():
                    if key.startswith("bad-replies-"):
                        self.found.bad[key.removeprefix("bad-replies-")] += number


def _lines(unit: Path) -> list[bytes]:
    try:
        found = (unit / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    except OSError:
        return []
    return [line for line in found if line.endswith(b"\n")]


def _good_round(unit: Path) -> int:
    for path in (unit / name for name in NAMES):
        try:
            return Checkpoint.load(path).server_round
        except ValueError:
            continue
    return 0


def content_of(folder: Path) -> dict[str, Any]:
    """All of a run that may not depend on what befell it, by file."""
    found: dict[str, Any] = {}
    for unit in sorted(path.parent for path in folder.glob("*/metrics.jsonl")):
        rows = [_timeless(json.loads(line)) for line in _lines(unit)]
        found[f"{unit.name}/metrics.jsonl"] = rows
        for name in ("model.safetensors", "model-mean.safetensors", "clients.csv"):
            found[f"{unit.name}/{name}"] = (unit / name).read_bytes()
        summary = _timeless(json.loads((unit / "summary.json").read_text()))
        found[f"{unit.name}/summary.json"] = summary
    return found


def _timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in _TIMES}


def soak(folder: Path, *, seconds: float, rounds: int, most: int, ray: bool, seed: int) -> Findings:
    """Soak runs in ``folder`` until ``seconds`` are over, one at least.

    Args:
        folder: for all of it.
        seconds: after which no run begins.
        rounds: of each strategy.
        most: harms that befall a run.
        ray: whether every second run is on Ray.
        seed: of all that is drawn; when a harm comes depends on the machine as well.
    """
    end, draw, found = time.monotonic() + seconds, Random(seed), Findings()
    flags = [*FLAGS, "--rounds", str(rounds)]
    alone = Soaked(folder / "alone", [*flags, "--engine", "serial"], None, draw, found)
    alone.to_the_end(["left alone"], most=0)
    wanted = {} if found.wrong else content_of(alone.folder)
    while wanted and not found.wrong and (time.monotonic() < end or not found.runs):
        on_ray = ray and found.runs % 2 == 1
        own = most // 3 if on_ray else most  # Ray takes seconds to start
        got = _soaked(folder / str(found.runs), flags, own, draw, found, on_ray)
        differing = [name for name in wanted if got.get(name) != wanted[name]]
        found.wrong += [f"run {found.runs}: {name} differs" for name in differing]
        found.runs += 1
        print(f"run {found.runs} is done, {sum(found.harms.values())} harms so far", flush=True)
    return found


def _soaked(
    place: Path, flags: Sequence[str], most: int, draw: Random, found: Findings, on_ray: bool
) -> dict[str, Any]:
    """The content of one run, once all has befallen it."""
    engine = ["--engine", "ray", "--num-workers", "2"] if on_ray else ["--engine", "serial"]
    with small_disk(place) as disk:
        odd = {"left alone", *([] if on_ray else ["workers killed"])}
        if not disk:
            print("Only root may mount a small disk: none is filled or made read-only.")
            odd |= {"disk full", "disk read-only"}
        run = Soaked(place / "run", [*flags, *engine], disk, draw, found)
        run.to_the_end([harm for harm in CODES if harm not in odd], most)
        run.note_bad_replies()
        return {} if found.wrong else content_of(run.folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Soak, and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no run begins")
    parser.add_argument("--quick", action="store_true", help="one short run, without Ray")
    parser.add_argument("--seed", type=int, default=0, help="of what befalls the runs")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    without_escape_codes()
    size = {"seconds": 60 * given.minutes, "rounds": 16, "most": 24, "ray": True}
    if given.quick:
        size = {"seconds": 0.0, "rounds": 5, "most": 6, "ray": False}
        Figure.savefig = lambda self, path, **_: Path(path).touch()  # drawing takes most of it
    with sigterm_as_ctrl_c(), tempfile.TemporaryDirectory(prefix="soak-") as folder:
        found = soak(Path(folder), seed=given.seed, **size)
        found.show()
        if found.wrong:
            print_logs(Path(folder))
    if not found.ok():
        sys.exit(1)


def print_logs(folder: Path) -> None:
    """The end of what the last starts printed."""
    for log in sorted(folder.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}")


if __name__ == "__main__":
    main()
