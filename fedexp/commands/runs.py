"""The commands `fedexp simulate`, `fedexp resume` and `fedexp report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedexp.files import reason
from fedexp.flags import config_of
from fedexp.parser import Once, Parser, WholeNumber, fail
from fedexp.terminal import command

if TYPE_CHECKING:
    from fedexp.runs.command import Command
    from fedexp.runs.job import UnitOutcome


def add_resume_flags(parser: Parser) -> None:
    """Flags of `fedexp resume`."""
    parser.add_argument("FOLDER", help="of the run")
    names = ("--rounds", "--num-server-rounds")
    text = "in all, more than the run has"
    parser.add_argument(*names, action=WholeNumber, dest="rounds", metavar="N", help=text)


def add_report_flags(parser: Parser) -> None:
    """Flags of `fedexp report`."""
    parser.add_argument("FOLDER", nargs="+", help="of runs")
    text = "for the page, pictures and table; that of the run if it is one"
    parser.add_argument("--out", action=Once, metavar="FOLDER", help=text)


def simulate(values: dict[str, Any]) -> None:
    """Run, show progress, print the table and draw the picture.

    Exits with code 1 if a strategy failed, or a client never contributed.
    """
    from fedexp.runs.signals import sigterm_as_ctrl_c

    with sigterm_as_ctrl_c(), ExitStack() as held:
        try:
            run = _prepared(values, held)
        except SystemExit:  # nothing of ours raises it: else it would look like success
            fail("the model's own code ends the program. Call no sys.exit in it.")
        _run(run)


def resume(values: dict[str, Any]) -> None:
    """Go on with an interrupted run, or with one that has ended for more rounds."""
    folder, num_rounds = Path(values["FOLDER"]), values["rounds"]
    _check_run(folder)
    if num_rounds:
        from fedexp.runs.resuming import extend

        extend(folder, num_rounds)
    simulate({"resume": folder, "overwrite": None})


def report(values: dict[str, Any]) -> None:
    """Write one page over runs."""
    folders, out = values["FOLDER"], values["out"]
    if len(folders) > 1 and not out:
        raise ValueError("--out is missing: several runs have no folder of their own. Name one.")
    from fedexp.runs import page

    print(f"Report: {page.report(folders, out)}")


def _run(run: Command) -> None:
    from fedexp.console import Progress, client_table, table
    from fedexp.logs import level
    from fedexp.runs.command import clients_of, early_ends, label_of, summaries_of
    from fedexp.runs.page import report
    from fedexp.verdict import problems

    config, folder = run.study.config, run.folder
    again = command("fedexp", "resume", folder)
    labels = list(map(label_of, run.study.units()))
    took: list[Any] = []  # rounds

    def told(unit: Any, row: Any) -> None:
        took.append(row)
        progress.advance(label_of(unit), row)

    try:
        with level(WARNING), Progress(labels, config.num_server_rounds) as progress:
            outcomes = run.run(told)
        page = report([folder])
    except KeyboardInterrupt:
        print(f"Interrupted. Go on with: {again}", file=sys.stderr, flush=True)
        with suppress(Exception, KeyboardInterrupt):  # a second Ctrl-C does without the page
            report([folder])
        raise SystemExit(130) from None
    except OSError as error:
        fail(f"{reason(error)}. The rounds before are kept; go on with: {again}", code=1)
    except (Exception, SystemExit) as error:  # of the user's own model, or of the engine
        line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(".: ")
        fail(f"{line}. The rounds before are kept; go on with: {again}", code=1)
    if outcomes:
        table([outcome.summary for outcome in outcomes], config.target_accuracy)
    client_table(clients_of(run, outcomes))
    for line in early_ends(outcomes):
        print(line)
    if not took:
        print(_nothing_left(run, outcomes))
    if run.study.is_cut:
        print(f"--max-minutes {config.max_minutes:g} are over. Go on with: {again}")
    print(f"Run folder: {folder}\nReport: {page}")
    if found := problems(summaries_of(outcomes)):
        fail(*found, code=1)


def _nothing_left(run: Command, outcomes: Sequence[UnitOutcome]) -> str:
    """What a run says that had ended; early ends are refused more rounds."""
    rounds = run.study.config.num_server_rounds
    has_all = all(outcome.summary["num-rounds"] == rounds for outcome in outcomes)
    more = f" For more rounds: {command('fedexp', 'resume', run.folder, '--rounds', 'N')}"
    return f"No round was left to run: the run has ended.{more if has_all else ''}"


def _prepared(values: dict[str, Any], held: ExitStack) -> Command:
    """All that can be wrong with what the user asked for is found here, before a round is run.

    ``held`` takes what is to be given back when the run ends.
    """
    overwrite, resume = values.pop("overwrite"), values.pop("resume")
    flags = [f"--{key}" for key, value in values.items() if value is not None]
    if resume and (flags or overwrite):
        raise ValueError(
            f"--resume takes no other flag, {(*flags, '--overwrite')[0]} was given: the run's "
            "config.toml holds them. Start a new run to change them."
        )
    if resume:
        _check_run(Path(resume))
    config, given = (None, set[str]()) if resume else config_of(values)
    from fedexp.logs import without_escape_codes
    from fedexp.runs.command import Command  # PyTorch takes seconds; a wrong flag should not

    without_escape_codes()
    if config is None:
        return Command.resumed(Path(resume), held)
    return Command.prepared(config, held, given, overwrite=bool(overwrite))


def _check_run(folder: Path) -> None:
    if not (folder / "config.toml").is_file():
        raise ValueError(f"{folder}: holds no run, it has no config.toml. Name a run's folder.")
