"""Flags of the command line, made from the fields of ``Config``."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from fedexp.config import Config


class Parser(argparse.ArgumentParser):
    """One line for a mistake, as everywhere else; no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Exit."""
        fail(f"{message}. See `{self.prog} --help`.")


class Once(argparse.Action):
    """A flag that is given at most once: of two values one would be lost."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the value, or the constant of a flag that takes none."""
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice")
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)


def fail(*lines: str, code: int = 2) -> NoReturn:
    """Print the lines and exit; code 2 says that the user's input was wrong, 1 that the run was."""
    for line in lines:
        print(f"fedexp: error: {line}", file=sys.stderr)
    raise SystemExit(code)


def add_simulate_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a run."""
    parser.add_argument(
        "--overwrite",
        action=Once,
        nargs=0,
        const=True,
        help="replace the run in the folder of --out",
    )
    parser.add_argument("--resume", action=Once, metavar="FOLDER", help="go on with a run")
    add_config_flags(parser)


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per configuration key."""
    parser.add_argument(
        "--config", action=Once, metavar="FILE", help="TOML file with the keys of these flags"
    )
    for key, field in Config.keys().items():
        default = "" if field.default == "" else f" (default: {field.default})"
        text = f"{field.description}{default}".replace("%", "%%")
        alone: dict[str, Any] = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
        parser.add_argument(f"--{key}", action=Once, dest=key, metavar="VALUE", help=text, **alone)


def config_of(values: dict[str, Any]) -> tuple[Config, set[str]]:
    """Defaults, overridden by the file, overridden by the flags; and the keys of those."""
    given = {key: value for key, value in values.items() if value is not None}
    path = given.pop("config", None)
    return Config.of({**(Config.read(path) if path else {}), **given}), set(given)
