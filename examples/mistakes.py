"""Mistakes of a new user, each with the exit code and the remedy that it is answered with.

Run ``python examples/mistakes.py`` to see the answers; it ends with code 1 if one is not as below.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from fedexp import cli


class Mistake(NamedTuple):
    """A command, words of its answer, and its exit code."""

    command: str
    remedy: str
    code: int = 2


MISTAKES = [
    # The words themselves
    Mistake("fedexp simulat", "Did you mean simulate?"),
    Mistake("fedexp --dataset digits", "fedexp simulate --dataset"),
    Mistake("fedexp simulate --stratgy fedexp", "Did you mean --strategy?"),
    Mistake("fedexp simulate --local_steps 5", "Did you mean --local-steps?"),
    Mistake("fedexp simulate --strategy fedavg, fedexp", "quote spaces and *"),
    Mistake("fedexp simulate --lr 0.1 --learning-rate 0.2", "given twice. Leave one out."),
    Mistake("fedexp simulate --lr", "needs a value. See `fedexp simulate --help`."),
    Mistake("fedexp partition --rounds 10", "`fedexp simulate` has --rounds"),
    Mistake("fedexp list strategy", "Did you mean strategies?"),
    Mistake("fedexp resume runs/typo", "Name a run's folder."),
    Mistake("fedexp report runs/typo", "Name a run folder."),
    Mistake("fedexp report runs/1 runs/2", "--out is missing"),
    # Names
    Mistake("fedexp simulate --strategy fedexpp", "Did you mean 'fedexp'?"),
    Mistake("fedexp simulate --strategy 'fedexp, fedexp'", "Leave one out."),
    Mistake("fedexp simulate --dataset mist", "Known: digits"),
    Mistake("fedexp simulate --dataset mnist", "--data-dir"),
    Mistake("fedexp simulate --dataset mine.npz", "there is no such file"),
    Mistake("fedexp simulate --model transformer", "`module:function` of your own"),
    Mistake("fedexp simulate --model my_models:net", "Is it on the Python path?"),
    Mistake("fedexp simulate --local-optimizer adamm", "Did you mean 'adam'?"),
    Mistake("fedexp simulate --partitioner dirichelt", "Known: iid, dirichlet"),
    Mistake("fedexp simulate --engine gpu", "'auto', 'ray' or 'serial'"),
    # Values
    Mistake("fedexp simulate --lr 0,1", "should be a valid number"),
    Mistake("fedexp simulate --rounds 0", "greater than or equal to 1"),
    Mistake("fedexp simulate --fraction-train 20", "less than or equal to 1"),
    Mistake("fedexp simulate --clients 5000", "Use fewer clients"),
    Mistake("fedexp simulate --average last", "for example last-2, ema-0.7 or poly-8"),
    Mistake("fedexp simulate --seed 1 --seed 2", "Leave one out."),
    Mistake("fedexp simulate --partitioner natural", "Use another partitioner"),
    Mistake("fedexp simulate --partitioner iid --alpha 1", "dirichlet-unequal"),
    Mistake("fedexp simulate --strategy fedavg --epsilon 0.1", "fedexp, fedexpm"),
    Mistake("fedexp simulate --strategy 'fedadam(eta=0.03'", "Close every one that is open."),
    Mistake("fedexp simulate --strategy 'fedadam(etta=0.03)'", "Did you mean 'eta'?"),
    Mistake("fedexp simulate --strategy 'fedadam(eta=high)'", "must be a number"),
    # Several runs
    Mistake("fedexp simulate --seeds a,b", "must be numbers by comma, or 0-9"),
    Mistake("fedexp simulate --seeds 0,1 --seed 3", "Leave one out."),
    Mistake("fedexp simulate --sweep learning-rat=0.1,0.2", "Did you mean 'learning-rate'?"),
    Mistake("fedexp simulate --sweep lr=0.1,0.2", "Did you mean 'learning-rate'?"),
    Mistake("fedexp simulate --sweep 0.1,0.2", "must be KEY=VALUE,VALUE"),
    Mistake("fedexp simulate --select best-accuracy", "Add --sweep."),
    Mistake("fedexp simulate --sweep learning-rate=0.1,0.2 --select accuracy", "best-accuracy"),
    # Own data
    Mistake("fedexp simulate --data 'clinics/*.csv'", "--target NAME"),
    Mistake("fedexp simulate --data 'clinics/*.csv' --target il", "Did you mean 'ill'?"),
    Mistake("fedexp simulate --data 'clinic/*.csv' --target ill", "Name files"),
    Mistake("fedexp simulate --data clinics/bern.csv clinics/oslo.csv", "quote spaces and *"),
    Mistake(
        "fedexp simulate --data 'clinics/*.csv' --target ill --client-from town",
        "Say column:town",
    ),
    Mistake(
        "fedexp simulate --data 'clinics/*.csv' --target ill --client-from file",
        "--impute median",
    ),
    Mistake("fedexp simulate --target ill", "CSV files and saved datasets do"),
    # What clients do
    Mistake("fedexp simulate --local-optimizer 'adam(wd=0.1)'", "Known: learning-rate"),
    Mistake("fedexp simulate --scheduler cosin", "Did you mean 'cosine'?"),
    Mistake("fedexp simulate --scheduler step", "as in step(step-size=...)"),
    Mistake("fedexp simulate --metrics f2", "Use one of f1"),
    # Files
    Mistake("fedexp simulate --config missing.toml", "Name a TOML file."),
    Mistake("fedexp simulate --config typo.toml", "Did you mean 'learning-rate'?"),
    Mistake("fedexp simulate --engine serial --out thesis", "Name another."),
    Mistake("fedexp resume thesis --rounds 100", "Name a run's folder."),
    Mistake("fedexp simulate --initial-model best.pt", "Name a .safetensors file."),
    Mistake("fedexp simulate --log tensorbord", "Known: tensorboard, mlflow"),
    # What only a run shows
    Mistake(
        "fedexp simulate --engine serial --rounds 1 --strategy fedavg --lr 1e30",
        "use a smaller learning rate",
        code=1,
    ),
]


@contextmanager
def desk() -> Iterator[None]:
    """A folder with the files that the commands name; the current one meanwhile."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("typo.toml").write_text("learning-rat = 0.1\n")
        Path("clinics").mkdir()
        for clinic in ("bern", "oslo"):
            rows = [f"{30 + i},{60 if i % 5 else ''},{i % 2}\n" for i in range(30)]
            Path(f"clinics/{clinic}.csv").write_text("age,pulse,ill\n" + "".join(rows))
        Path("thesis").mkdir()
        Path("thesis/chapter-1.txt").write_text("Do not lose me.\n")
        try:
            yield
        finally:
            os.chdir(before)


def answer(command: str) -> tuple[int, str]:
    """The exit code of a command, and what it writes to standard error."""
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        try:
            cli.main(shlex.split(command)[1:])
        except SystemExit as ended:
            return int(ended.code or 0), errors.getvalue()
    return 0, errors.getvalue()


def is_right(mistake: Mistake, code: int, said: str) -> bool:
    """One line, the exit code, and the remedy."""
    return code == mistake.code and mistake.remedy in said and said.count("\n") == 1


def main() -> None:
    """Make every mistake, print the answers."""
    wrong = 0
    with desk():
        for mistake in MISTAKES:
            code, said = answer(mistake.command)
            print(f"$ {mistake.command}\n{said}(code {code})\n")
            wrong += not is_right(mistake, code, said)
    if wrong:
        sys.exit(f"{wrong} answers are not as they should be.")


if __name__ == "__main__":
    main()
