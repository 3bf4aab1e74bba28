"""The console script ``fedexp``."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedexp.extras import need
from fedexp.files import reason
from fedexp.flags import Parser, add_config_flags, add_simulate_flags, config_of, fail

if TYPE_CHECKING:
    from fedexp.runs.command import Command


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fedexp COMMAND --flags``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters is no error
    parser = Parser(prog="fedexp", description="Federated learning with an adaptive server step.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add_simulate_flags(commands.add_parser("simulate", help="run strategies on virtual clients"))
    add_config_flags(commands.add_parser("partition", help="see how a dataset is split"))
    values = vars(parser.parse_args(argv))
    {"simulate": simulate, "partition": partition}[values.pop("command")](values)


def simulate(values: dict[str, Any]) -> None:
    """Run, show progress, print the table and draw the picture.

    Exits with code 1 if a strategy failed, or a client never contributed.
    """
    with ExitStack() as held:
        try:
            command = _prepared(values, held)
        except (ValueError, ModuleNotFoundError) as error:
            fail(str(error))
        except OSError as error:
            fail(f"{reason(error)}.")
        except RuntimeError as error:
            fail(str(error), code=1)
        except SystemExit:  # nothing of ours raises it: else it would look like success
            fail("the model's own code ends the program. Call no sys.exit in it.")
        _run(command)


def _run(command: Command) -> None:
    from fedexp.console import Progress, table
    from fedexp.logs import level
    from fedexp.runs.command import label_of, summaries_of
    from fedexp.runs.page import report
    from fedexp.verdict import problems

    config, folder = command.study.config, command.folder
    again = f"fedexp simulate --resume {folder}"
    labels = list(map(label_of, command.study.units()))
    try:
        with level(WARNING), Progress(labels, config.num_server_rounds) as progress:
            outcomes = command.run(lambda unit, row: progress.advance(label_of(unit), row))
        summaries = summaries_of(outcomes)
        page = report([folder])
    except KeyboardInterrupt:
        print(f"Interrupted. Go on with: {again}", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        fail(f"{reason(error)}. The rounds before are kept; go on with: {again}", code=1)
    except (Exception, SystemExit) as error:  # of the user's own model, or of the engine
        line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(".: ")
        fail(f"{line}. The rounds before are kept; go on with: {again}", code=1)
    table(summaries, config.target_accuracy)
    print(f"Run folder: {folder}\nReport: {page}")
    if found := problems(summaries):
        fail(*found, code=1)


def partition(values: dict[str, Any]) -> None:
    """Print the sizes and label counts of the clients, and draw them."""
    try:
        config, given = config_of(values)
        from fedexp import app

        app.check_read_by_partition(config, given)
        data, parts = app.dataset_of(config), app.partition_of(config)
        if not data.num_classes:
            raise ValueError(f"Config(dataset={config.dataset!r}): it has no classes to show.")
        need("matplotlib", "simulation")
        folder = Path(config.out or ".")
        folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, ModuleNotFoundError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{reason(error)}.")
    from fedexp.console import partition_table
    from fedexp.datasets import heterogeneity, label_counts, plot

    labels = data.train[1].numpy()
    partition_table(label_counts(labels, parts))
    print(
        f"{len(parts):,} clients, {parts.sizes.min()} to {parts.sizes.max()} examples, "
        f"heterogeneity {heterogeneity(labels, parts):.3f} (mean total-variation distance to all)"
    )
    try:
        plot(labels, parts, folder / "partition.png")
    except OSError as error:
        fail(f"{reason(error)}.", code=1)
    print(f"Picture: {folder / 'partition.png'}")


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
    config, given = (None, set[str]()) if resume else config_of(values)
    from fedexp.runs.command import (
        Command,  # torch and Flower take seconds; a wrong flag should not
    )

    if config is None:
        return Command.resumed(Path(resume), held)
    return Command.prepared(config, held, given, overwrite=bool(overwrite))
