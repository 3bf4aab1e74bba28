"""What the terminal can show: letters, width, escape codes; and text made to fit it."""

from __future__ import annotations

import codecs
import io
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

_SPELLED = {"±": "+-", "×": "x", "·": "*", "←": "<-", "→": "->", "…": "...", "—": "-", "–": "-"}


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """An error handler for encodings: Greek letters by name, accents left out, else ``?``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letter, error.object[error.start : error.end])), error.end


def _letter(character: str) -> str:
    if character in _SPELLED:
        return _SPELLED[character]
    if unicodedata.combining(character):
        return ""
    name = unicodedata.name(character, "")
    if name.startswith("GREEK") and "LETTER" in name:
        word = name.split("LETTER ")[1].split(" WITH")[0].split()[-1]
        return word.lower() if "SMALL" in name else word.capitalize()
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"


codecs.register_error("fedexp.spelled", _spelled)


def show_every_letter() -> None:
    """Let standard output and error spell the letters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fedexp.spelled")


def is_live(stream: TextIO | None = None) -> bool:
    """Whether escape codes may be written: a terminal that knows them, and a user who wants them.

    See https://no-color.org for ``NO_COLOR``.

    Args:
        stream: standard output, if left out.
    """
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")
    return wanted and (stream or sys.stdout).isatty()


def is_fixed() -> bool:
    """Whether standard output has a width that lines are to be folded to."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


def filled(head: str, body: str, indent: int = 4) -> str:
    """``body`` behind ``head``, folded to the terminal; one line where there is no width."""
    width = shutil.get_terminal_size().columns if is_fixed() else sys.maxsize
    return textwrap.fill(
        head + " ".join(body.split()),
        max(width, indent + 20),
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )


def command(*words: str | Path) -> str:
    """A command line that the user's shell reads back as these words."""
    texts = list(map(str, words))
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)


def listed(names: Iterable[object]) -> str:
    """Names by comma."""
    return ", ".join(map(str, names))
