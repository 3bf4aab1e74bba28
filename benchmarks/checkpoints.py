"""Bytes that a round writes of what clients keep: those that changed, beside all of them.

python -m benchmarks.checkpoints [--quick]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from fedexp import cli
from fedexp.runs.checkpoint import Checkpoint

RESULTS = Path(__file__).parent / "results"
CLIENTS, ROUNDS, QUICK_ROUNDS = 500, 20, 6


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    rounds = QUICK_ROUNDS if parser.parse_args(argv).quick else ROUNDS
    rows = [_row(share, rounds) for share in (0.02, 0.2, 1.0)]
    for row in rows:
        line = (
            "{share:5} of {clients} clients a round: {written:8.3f} MB written, {all:8.3f} before"
        )
        print(line.format(**row))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "checkpoints.json").write_text(json.dumps(rows, indent=1) + "\n")


def _row(share: float, rounds: int) -> dict[str, float]:
    """SCAFFOLD: means over the second half of the rounds, in MB; also what is then on the disk."""
    written, whole, save = [], [], Checkpoint.save

    def measured(checkpoint: Checkpoint, path: Path, *states: object) -> None:
        before = _files(path.parent)
        save(checkpoint, path, *states)  # type: ignore[arg-type]
        after = _files(path.parent)
        written.append(
            sum(size for file, (_, size) in after.items() if after[file] != before.get(file))
        )
        with TemporaryDirectory() as other:  # all states, as every checkpoint had them before
            save(checkpoint, Path(other) / path.name)
            whole.append(sum(size for _, size in _files(Path(other)).values()))

    with TemporaryDirectory() as folder, patch.object(Checkpoint, "save", measured):
        keys = {"strategy": "scaffold", "num-clients": CLIENTS, "partitioner": "iid"}
        keys |= {
            "fraction-train": share,
            "local-steps": 1,
            "num-server-rounds": rounds,
            "checkpoint-every": 1,
        }
        flags = [x for key, value in keys.items() for x in (f"--{key}", str(value))]
        cli.main(["simulate", "--engine", "serial", *flags, "--out", f"{folder}/run"])
        disk = sum(size for _, size in _files(Path(folder) / "run" / "scaffold").values())
    half = rounds // 2
    means = [sum(x[half:]) / len(x[half:]) / 1e6 for x in (written, whole)]
    return {
        "share": share,
        "clients": CLIENTS,
        "written": means[0],
        "all": means[1],
        "disk": disk / 1e6,
    }


def _files(folder: Path) -> dict[int, tuple[int, int]]:
    """Time and size by inode, so that a file that only moves is none that is written."""
    stats = [path.stat() for path in folder.rglob("*.safetensors")]
    return {x.st_ino: (x.st_mtime_ns, x.st_size) for x in stats}


if __name__ == "__main__":
    main()
