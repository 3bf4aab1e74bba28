"""The console script ``fedexp``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from logging import WARNING
from typing import Any, NoReturn

from fedexp.config import Config


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}. See `{self.prog} --help`.")


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2: the user's input was wrong."""
    print(f"fedexp: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fedexp COMMAND --flags``."""
    parser = _Parser(prog="fedexp", description="Federated learning with an adaptive server step.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    _add_flags(commands.add_parser("simulate", help="run strategies on virtual clients"))
    args = parser.parse_args(argv)
    values = vars(args)
    {"simulate": simulate}[values.pop("command")](values)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per configuration key."""
    parser.allow_abbrev = False
    parser.add_argument("--config", help="TOML file with the same keys as these flags")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of --out")
    for key, field in Config.keys().items():
        default = "" if field.default == "" else f" (default: {field.default})"
        text = f"{field.description}{default}".replace("%", "%%")
        parser.add_argument(f"--{key}", dest=key, metavar="VALUE", help=text)


def config_of(values: dict[str, Any]) -> Config:
    """Defaults, overridden by the file, overridden by the flags."""
    given = {key: value for key, value in values.items() if value is not None}
    path = given.pop("config", None)
    return Config.of({**(Config.read(path) if path else {}), **given})


def simulate(values: dict[str, Any]) -> None:
    """Run, show progress, print the table and draw the picture."""
    overwrite = values.pop("overwrite")
    try:
        config = config_of(values)
        from fedexp import app  # torch and Flower take seconds; a wrong flag should not
        from fedexp.simulation import run

        keys = app.strategy_keys(config)
        app.partition_of(config)
        app.model_of(config)
        for key in keys:
            app.strategy_of(config, key, 1)
        folder = run.run_folder(config, overwrite)
    except (ValueError, ModuleNotFoundError) as error:
        fail(str(error))
    from fedexp.console import Progress, table
    from fedexp.logs import level
    from fedexp.report import plot_curves

    with level(WARNING), Progress(keys, config.num_server_rounds) as progress:
        summaries = run.simulate(config, folder, progress.advance)
    picture = plot_curves(folder, keys, config.target_accuracy)
    table(summaries, config.target_accuracy)
    print(f"Run folder: {folder}\nPicture: {picture}")
