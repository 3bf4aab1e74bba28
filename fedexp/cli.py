"""The console script ``fedexp``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fedexp
from fedexp.commands import looks, runs
from fedexp.devices import commands as devices
from fedexp.devices import device_commands, run_command
from fedexp.extras import missing
from fedexp.files import reason
from fedexp.flags import add_partition_flags, add_simulate_flags
from fedexp.parser import Parser, fail, nearest
from fedexp.terminal import listed, show_every_letter


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
    width = max(map(len, COMMANDS))
    for name, entry in COMMANDS.items():
        print(f"  {name:<{width}} {entry.line}")
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


@dataclass(frozen=True)
class Subcommand:
    """A word behind ``fedexp``: what it does, what follows it, its flags, and its function."""

    line: str
    usage: str
    add: Callable[[Parser], None]
    run: Callable[[dict[str, Any]], None]


COMMANDS = {
    "simulate": Subcommand(
        "run strategies on virtual clients", "[--FLAG VALUE ...]", add_simulate_flags, runs.simulate
    ),
    "resume": Subcommand(
        "go on with a run, or add rounds to it",
        "FOLDER [--rounds N]",
        runs.add_resume_flags,
        runs.resume,
    ),
    "report": Subcommand(
        "write one page about runs", "FOLDER ... [--out FOLDER]", runs.add_report_flags, runs.report
    ),
    "partition": Subcommand(
        "see how a dataset is split", "[--FLAG VALUE ...]", add_partition_flags, looks.partition
    ),
    "list": Subcommand(
        "names of strategies, datasets, models, ...",
        "[KIND] [--json]",
        looks.add_list_flags,
        looks.show_list,
    ),
    "doctor": Subcommand(
        "see what is installed and what is missing",
        "[--data-dir FOLDER] [--ray]",
        looks.add_doctor_flags,
        looks.doctor,
    ),
    "check-schedule": Subcommand(
        "see where shrinking steps and noise lead",
        "X Y [--eta E] [--sigma S] [--offset O]",
        looks.add_schedule_flags,
        looks.check_schedule,
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
