"""The console script ``fedexp``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fedexp
from fedexp.devices import commands as devices
from fedexp.devices import device_commands, run_command
from fedexp.extras import missing, need
from fedexp.files import reason
from fedexp.flags import add_partition_flags, add_simulate_flags, config_of
from fedexp.parser import Once, Parser, WholeNumber, fail, nearest
from fedexp.terminal import command, listed, show_every_letter

if TYPE_CHECKING:
    from fedexp.runs.command import Command


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fedexp COMMAND --flags``.

    Exits with code 1 if rounds or clients failed, 2 if the input is wrong, 130 if interrupted.
    """
    show_every_letter()
    with _manners(), _one_line():
        first, *rest = (sys.argv[1:] if argv is None else argv) or ["help"]
        if first in ("help", "--help", "-h"):
            _help(rest)
        elif first in ("--version", "-V"):
            print(f"fedexp {fedexp.__version__}")
        else:
            values = vars(parser_of(first).parse_args(rest))
            _find_modules_here()
            COMMANDS[first].run(values)


def _find_modules_here() -> None:
    """Let ``module:name`` be a file of the working directory, as with ``python -m fedexp``."""
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)


@contextmanager
def _manners() -> Iterator[None]:
    """No traceback when the user has had enough, or when who reads our output has."""
    try:
        yield
    except KeyboardInterrupt:
        fail("interrupted.", code=130)
    except BrokenPipeError:
        pass  # `fedexp list | head`: all that was asked for has been shown
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # nor at the interpreter's end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _one_line() -> Iterator[None]:
    """What is wrong with the input as one line and code 2; what fails beyond it, code 1."""
    try:
        yield
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        fail(str(missing("torch", "simulation") if error.name == "torch" else error))
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{reason(error)}.")
    except RuntimeError as error:
        fail(str(error), code=1)


def _help(words: Sequence[str]) -> None:
    """Of a command, or of all."""
    if words:
        parser_of(words[0]).print_help()
        return
    print(f"Federated learning with an adaptive server step size.\n\n{_EXAMPLES}\nCommands:")
    for name, entry in COMMANDS.items():
        print(f"  {name:<10} {entry.line}")
    print("\n`fedexp help COMMAND` shows its flags, `fedexp --version` the version.")


_EXAMPLES = """\
  fedexp simulate
  fedexp simulate --strategy 'fedavg, fedexp' --seeds 0,1,2
  fedexp simulate --data '*.csv' --target y --client-from file
"""


def parser_of(name: str) -> Parser:
    """The parser of a command; exits if there is none of that name."""
    if name in COMMANDS:
        return _made(name)
    if commands := _commands_by_flag().get(name.partition("=")[0]):
        fail(f"a command comes before the flags: fedexp {commands[0]} {name}. See `fedexp help`.")
    close = nearest(name, COMMANDS)
    hint = f"Did you mean {close[0]}?" if close else f"There are {listed(COMMANDS)}."
    fail(f"fedexp has no command {name!r}. {hint} See `fedexp help`.")


def _made(name: str) -> Parser:
    entry = COMMANDS[name]
    parser = Parser(
        _commands_by_flag,
        prog=f"fedexp {name}",
        usage=f"fedexp {name} {entry.usage}",
        description=entry.line[0].upper() + entry.line[1:] + ".",
    )
    entry.add(parser)
    return parser


def _commands_by_flag() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in COMMANDS:
        for flag in _made(name).flags():
            found.setdefault(flag, []).append(name)
    return found


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


def show_list(values: dict[str, Any]) -> None:
    """Print what can be chosen."""
    from fedexp import listing

    kind = values["KIND"]
    if kind and kind not in listing.LISTED:
        close = nearest(kind, listing.LISTED)
        hint = f"Did you mean {close[0]}?" if close else f"There are {listed(listing.LISTED)}."
        raise ValueError(f"fedexp has no list of {kind!r}. {hint}")
    print(listing.as_json(kind) if values["json"] else listing.text(kind))


def doctor(values: dict[str, Any]) -> None:
    """Print what is there; exit with code 1 if something that is always needed is not."""
    from fedexp.doctor import examine

    if not examine(values["data-dir"], bool(values["ray"])):
        fail("not all that fedexp needs is there, see above.", code=1)


def check_schedule(values: dict[str, Any]) -> None:
    """Print what a joint schedule of learning rate and noise leads to."""
    from fedexp.augmentation import schedule_report

    numbers = {}
    for name, text in values.items():
        if text is not None:
            try:
                numbers[name.lower()] = float(text)
            except ValueError:
                raise ValueError(f"check-schedule {name} {text!r}: must be a number.") from None
    print(schedule_report(**numbers))


def _run(run: Command) -> None:
    from fedexp.console import Progress, client_table, table
    from fedexp.logs import level
    from fedexp.runs.command import clients_of, early_ends, label_of, summaries_of
    from fedexp.runs.page import report
    from fedexp.verdict import problems

    config, folder = run.study.config, run.folder
    again = command("fedexp", "resume", folder)
    labels = list(map(label_of, run.study.units()))
    try:
        with level(WARNING), Progress(labels, config.num_server_rounds) as progress:
            outcomes = run.run(lambda unit, row: progress.advance(label_of(unit), row))
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
    if run.study.is_cut:
        print(f"--max-minutes {config.max_minutes:g} are over. Go on with: {again}")
    print(f"Run folder: {folder}\nReport: {page}")
    if found := problems(summaries_of(outcomes)):
        fail(*found, code=1)


def partition(values: dict[str, Any]) -> None:
    """Print the sizes and label counts of the clients, and draw them."""
    config, given = config_of(values)
    from fedexp import checks
    from fedexp.logs import without_escape_codes
    from fedexp.runs.federation import Federation

    without_escape_codes()
    checks.check_read_by_partition(config, given)
    federation = Federation(config)
    data, parts, names = federation.dataset, federation.parts, federation.names
    need("matplotlib", "simulation")
    folder = Path(config.out or ".")
    folder.mkdir(parents=True, exist_ok=True)
    from fedexp.console import partition_table
    from fedexp.datasets import heterogeneity, label_counts, plot

    labels = data.train[1].numpy()
    counts = label_counts(labels, parts) if data.num_classes else None
    partition_table(parts.sizes, counts, names, data.class_names)
    line = f"{len(parts):,} clients, {parts.sizes.min()} to {parts.sizes.max()} examples"
    if data.num_classes:
        apart = heterogeneity(labels, parts)
        line += f", heterogeneity {apart:.3f} (mean total-variation distance to all)"
    print(line)
    try:
        picture = folder / "partition.png"
        plot(labels, parts, picture, names=names, class_names=data.class_names)
    except OSError as error:
        fail(f"{reason(error)}.", code=1)
    print(f"Picture: {picture}")


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


def _add_resume_flags(parser: Parser) -> None:
    parser.add_argument("FOLDER", help="of the run")
    names = ("--rounds", "--num-server-rounds")
    text = "in all, more than the run has"
    parser.add_argument(*names, action=WholeNumber, dest="rounds", metavar="N", help=text)


def _add_report_flags(parser: Parser) -> None:
    parser.add_argument("FOLDER", nargs="+", help="of runs")
    text = "for the page, pictures and table; that of the run if it is one"
    parser.add_argument("--out", action=Once, metavar="FOLDER", help=text)


def _add_list_flags(parser: Parser) -> None:
    parser.add_argument(
        "KIND", nargs="?", help="strategies, datasets, models, ...; all if left out"
    )
    parser.add_argument("--json", action=Once, nargs=0, const=True, help="for programs")


def _add_doctor_flags(parser: Parser) -> None:
    text = "look for datasets in it"
    parser.add_argument("--data-dir", action=Once, dest="data-dir", metavar="FOLDER", help=text)
    text = "see whether Ray starts; takes seconds"
    parser.add_argument("--ray", action=Once, nargs=0, const=True, help=text)


def _add_schedule_flags(parser: Parser) -> None:
    parser.add_argument("X", help="exponent of the learning rate, eta (t + offset)^-X")
    parser.add_argument("Y", help="exponent of the noise's variance, sigma^2 (t + offset)^-Y")
    for name, text in (("eta", "learning rate"), ("sigma", "spread of the noise")):
        own = f"{text} where t + offset is 1 (default: 1)"
        parser.add_argument(f"--{name}", action=Once, metavar="NUMBER", help=own)
    parser.add_argument("--offset", action=Once, metavar="NUMBER", help="above 0 (default: 1)")


@dataclass(frozen=True)
class Subcommand:
    """A word behind ``fedexp``: what it does, what follows it, its flags, and its function."""

    line: str
    usage: str
    add: Callable[[Parser], None]
    run: Callable[[dict[str, Any]], None]


COMMANDS = {
    "simulate": Subcommand(
        "run strategies on virtual clients", "[--FLAG VALUE ...]", add_simulate_flags, simulate
    ),
    "resume": Subcommand(
        "go on with a run, or add rounds to it", "FOLDER [--rounds N]", _add_resume_flags, resume
    ),
    "report": Subcommand(
        "write one page about runs", "FOLDER ... [--out FOLDER]", _add_report_flags, report
    ),
    "partition": Subcommand(
        "see how a dataset is split", "[--FLAG VALUE ...]", add_partition_flags, partition
    ),
    "list": Subcommand(
        "names of strategies, datasets, models, ...", "[KIND] [--json]", _add_list_flags, show_list
    ),
    "doctor": Subcommand(
        "see what is installed and what is missing",
        "[--data-dir FOLDER] [--ray]",
        _add_doctor_flags,
        doctor,
    ),
    "check-schedule": Subcommand(
        "see where shrinking steps and noise lead",
        "X Y [--eta E] [--sigma S] [--offset O]",
        _add_schedule_flags,
        check_schedule,
    ),
    "provision": Subcommand(
        "make keys for a server and its devices",
        "SITE --host NAME --nodes NAME[,NAME]",
        devices.add_provision_flags,
        devices.provision,
    ),
    "serve": Subcommand(
        "serve devices",
        "SITE [--listen ADDRESS | --no-gate]",
        devices.add_serve_flags,
        devices.serve,
    ),
    "run": Subcommand(
        run_command.LINE, run_command.USAGE, run_command.add_device_run_flags, run_command.run
    ),
    "device": Subcommand(
        device_commands.LINE,
        device_commands.USAGE,
        device_commands.add_device_flags,
        device_commands.device,
    ),
}
