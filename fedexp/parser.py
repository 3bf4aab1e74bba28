"""A command's flags, read so that every mistake is one line with its remedy."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn


def fail(*lines: str, code: int = 2) -> NoReturn:
    """Print the lines and exit; code 2 says that the user's input was wrong, 1 that the run was."""
    for line in lines:
        shown = "".join(
            c if c.isprintable() else repr(c)[1:-1] for c in line
        )  # a name may hold any
        print(f"fedexp: error: {shown}", file=sys.stderr)
    raise SystemExit(code)


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
            names = " and ".join(self.option_strings)
            said = f"{names} are one flag, and it" if len(self.option_strings) > 1 else names
            parser.error(f"{said} is given twice. Leave one out.")
        setattr(namespace, self.dest, self.const if self.nargs == 0 else values)


class Joined(Once):
    """A flag whose values join, with a semicolon between them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the value behind those before."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, f"{before}; {values}" if before else values)


class Switch(Once):
    """``--key``, ``--key false`` or ``--no-key``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the value; True or False where none is written."""
        if (option_string or "").startswith("--no-"):
            if values is not True:
                parser.error(f"{option_string} takes no value. Leave {values!r} out")
            values = False
        super().__call__(parser, namespace, values, option_string)


class WholeNumber(Once):
    """A flag whose value is a count."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the number."""
        if not values.isdecimal() or not int(values):
            parser.error(f"{option_string} {values}: it should be a whole number from 1")
        super().__call__(parser, namespace, int(values), option_string)


class Named(Once):
    """A flag whose value is one of some names, or of the user's own.

    Args:
        names: looks up those that the help shows.
        **kwargs: those of ``Action``.
    """

    def __init__(self, names: Callable[[], Sequence[str]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = names


class Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal; names are looked up when it is printed, not before."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        return f"{text}. Known: {', '.join(action.names())}" if isinstance(action, Named) else text

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Both names, then the value once."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        value = self._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
        return f"{', '.join(action.option_strings)} {value}".rstrip()


class Parser(argparse.ArgumentParser):
    """One line for a mistake, as everywhere else; no abbreviations.

    Args:
        commands: of all, by flag; asked for when a flag is none of this one's.
        **kwargs: those of ``ArgumentParser``.
    """

    def __init__(self, commands: Callable[[], Mapping[str, Sequence[str]]], **kwargs: Any) -> None:
        super().__init__(formatter_class=Formatter, allow_abbrev=False, **kwargs)
        self._commands = commands

    def flags(self) -> list[str]:
        """All names of flags."""
        return [name for action in self._actions for name in action.option_strings]

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read all of ``args``; what is left over is the mistake to name."""
        values, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(self._unknown(str(rest[0]).partition("=")[0]))
        return values

    def error(self, message: str) -> NoReturn:
        """Exit."""
        for pattern, plain in _PLAIN.items():
            message = re.sub(pattern, plain, message)
        end = "" if message.endswith(("?", ".")) else "."
        fail(f"{message}{end} See `{self.prog} --help`.")

    def _unknown(self, word: str) -> str:
        """What the user may have meant by a word that no flag takes."""
        if not word.startswith("-"):
            return f"{word!r} belongs to no flag. Write --FLAG VALUE; quote spaces and *"
        name = word.lstrip("-").replace("_", "-")
        here = {flag.lstrip("-"): flag for flag in self.flags()}
        there = {flag.lstrip("-"): flag for flag in self._commands()}
        if name in here or (name not in there and nearest(name, here)):
            hint = f". Did you mean {here[nearest(name, here)[0]]}?"
        elif close := nearest(name, there):
            flag = there[close[0]]
            hint = f"; `fedexp {self._commands()[flag][0]}` has {flag}"
        else:
            hint = ""
        return f"{self.prog} has no {word}{hint}"


_PLAIN = {  # how argparse says it, and how we do
    r"^argument (--[\w-]+)\S*: expected one argument$": r"\1 needs a value",
    r"^argument (--[\w-]+)\S*: ignored explicit argument (.*)$": r"\1 takes no value, \2 was given",
    r"^argument (\w+): (.*)$": r"\1: \2",
    r"^the following arguments are required: (.*)$": r"\1 is missing",
}


def nearest(word: str, known: Any) -> list[str]:
    """The one of ``known`` that ``word`` was most likely to be, if any."""
    return difflib.get_close_matches(word, list(known), 1)
