"""Next-character prediction with one client per speaking role.

An example is ``CONTEXT`` characters as uint8 tokens; its target is the character that follows.
"""

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedexp.datasets.dataset import Dataset
from fedexp.datasets.dealing import Array
from fedexp.datasets.formats import damaged, parsing, read_leaf

CONTEXT = 80
STRIDE = 10  # characters between the beginnings of two training examples of a role
NUM_PLAYS = 37
_LEAF_LETTERS = (  # LEAF's alphabet, in its order
    "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
)
_BEGIN = re.compile(r"<A NAME=(?:(?P<role>speech\d+><b>)|[\d.]+>)", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_END_OF_ROLE, _END_OF_LINE = (re.compile(tag, re.IGNORECASE) for tag in ("</b></a>", "</a>"))

Speech = tuple[str, list[str]]  # role, lines


def read_play(path: Path) -> list[Speech]:
    """Read the speeches of a play from its page in the MIT edition of Shakespeare.

    On such a page ``<A NAME=speech1><b>ROLE</b></a>`` begins a speech, and
    ``<A NAME=1.1.1>line</A>`` is a line of it.
    """
    page = path.read_text(encoding="iso-8859-1")
    speeches: list[Speech] = []
    with parsing(path, "a whole page with speeches"):
        for is_role, markup in _tagged(page):
            if is_role:
                speeches.append((_plain(markup), []))
            elif speeches:
                speeches[-1][1].append(_plain(markup))
    if not speeches or "</html>" not in page[-200:].lower():
        raise damaged(path, "a whole page with speeches", f"{len(speeches)} of them")
    return speeches


def _tagged(page: str) -> Iterator[tuple[bool, str]]:
    """Find each role and line of a page: whether it is a role, and its markup.

    The time is linear in the length of any page: if a closing tag was not found once, the function
    does not search for it again.
    """
    done = 0
    absent = set()
    for begin in _BEGIN.finditer(page):
        is_role = begin["role"] is not None
        if begin.start() < done or is_role in absent:
            continue
        end = (_END_OF_ROLE if is_role else _END_OF_LINE).search(page, begin.end())
        if end is None:
            absent.add(is_role)
            continue
        yield is_role, page[begin.end() : end.start()]
        done = end.end()


def read_roles(path: Path) -> list[Speech]:
    """Read the speeches of a plain text: ``ROLE:`` on its own line, lines, an empty line."""
    with path.open(encoding="utf-8") as file, parsing(path, "text in UTF-8"):
        page = file.read()
    speeches = []
    for block in re.split(r"\n\s*\n", page):
        heading, *lines = block.strip("\n").split("\n")
        if heading.endswith(":"):
            speeches.append((heading[:-1], lines))
    if not speeches:
        raise damaged(path, "speeches under 'ROLE:' headings", "none")
    return speeches


def shakespeare(data_dir: Path) -> Dataset:
    """The plays of Shakespeare, with one client per role of a play."""
    pages = sorted((data_dir / "shakespeare").glob("*/full.html"))
    if len(pages) != NUM_PLAYS:
        raise damaged(data_dir / "shakespeare", f"{NUM_PLAYS} plays", len(pages))
    roles: dict[str, list[str]] = {}
    for page in pages:
        for role, lines in read_play(page):
            roles.setdefault(f"{page.parent.name}: {role}", []).extend(lines)
    return next_character({role: "\n".join(lines) for role, lines in roles.items()})


def tiny_shakespeare(data_dir: Path) -> Dataset:
    """Karpathy's excerpt of the plays, with one client per role."""
    roles: dict[str, list[str]] = {}
    for role, lines in read_roles(data_dir / "tinyshakespeare" / "input.txt"):
        roles.setdefault(role, []).extend(lines)
    return next_character({role: "\n".join(lines) for role, lines in roles.items()})


def leaf_shakespeare(data_dir: Path) -> Dataset:
    """LEAF's Shakespeare, with LEAF's contexts. Caldas et al. 2018, arXiv:1812.01097."""
    folder = data_dir / "leaf-shakespeare"
    train = read_leaf((folder / "train").glob("*.json"))
    test = read_leaf((folder / "test").glob("*.json"))
    keys = np.repeat(np.arange(len(train)), [len(targets) for _, targets in train.values()])
    pairs = [
        _encoded(
            part,
            [x for inputs, _ in clients.values() for x in inputs],
            [y for _, targets in clients.values() for y in targets],
        )
        for part, clients in ((folder / "train", train), (folder / "test", test))
    ]
    return Dataset(pairs[0], pairs[1], len(_LEAF_LETTERS), keys, tuple(train))


def next_character(texts: Mapping[str, str], *, test_fraction: float = 0.2) -> Dataset:
    """Cut each client's text into examples; the end of each text is the test set.

    Args:
        texts: text by client. Clients whose text is too short for one training example are dropped.
        test_fraction: of the characters of each text. Contexts of the test set do not overlap.

    Returns:
        Inputs ``[num_examples, CONTEXT]``; the classes are the characters that occur, sorted.
    """
    alphabet = "".join(sorted(set().union(*texts.values())))
    if len(alphabet) > 256:
        raise ValueError(
            f"next_character(texts): {len(alphabet)} different characters, at most 256 go. "
            "Replace the rare ones."
        )
    train, test, names = [], [], []
    for name, text in texts.items():
        tokens = _tokens(text, alphabet)
        cut = len(tokens) - int(test_fraction * len(tokens))
        # The end of the text, not a random part of it: windows that overlap would share characters
        # between training and test.
        windows = _windows(tokens[:cut], STRIDE)
        if len(windows):
            names.append(name)
            train.append(windows)
            test.append(_windows(tokens[cut:], CONTEXT))
    if not any(map(len, test)):
        raise ValueError(
            f"next_character(texts): no text is long enough for {CONTEXT} characters and the next "
            "in its training and test part. Use longer texts."
        )
    keys = np.repeat(np.arange(len(names)), [len(windows) for windows in train])
    return Dataset(_last_apart(train), _last_apart(test), len(alphabet), keys, tuple(names))


def _windows(tokens: Array, stride: int) -> Array:
    if len(tokens) <= CONTEXT:
        return np.empty((0, CONTEXT + 1), np.uint8)
    return np.lib.stride_tricks.sliding_window_view(tokens, CONTEXT + 1)[::stride]


def _last_apart(windows: list[Array]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.concatenate(windows)
    x = torch.from_numpy(np.ascontiguousarray(rows[:, :-1]))
    return x, torch.from_numpy(rows[:, -1].astype(np.int64))


def _encoded(
    folder: Path, inputs: list[Any], targets: list[Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    letters = set(_LEAF_LETTERS)
    for values, length in ((inputs, CONTEXT), (targets, 1)):
        for x in values:
            if not isinstance(x, str) or len(x) != length or set(x) - letters:
                expected = f"{CONTEXT} letters of LEAF's alphabet and one to predict"
                raise damaged(folder, expected, repr(x)[:100])
    x = _tokens("".join(inputs), _LEAF_LETTERS).reshape(-1, CONTEXT)
    y = _tokens("".join(targets), _LEAF_LETTERS).astype(np.int64)
    return torch.from_numpy(x), torch.from_numpy(y)


def _tokens(text: str, alphabet: str) -> Array:
    number = {ord(letter): i for i, letter in enumerate(alphabet)}
    return np.frombuffer(bytearray(text.translate(number), "latin-1"), np.uint8)


def _plain(markup: str) -> str:
    return html.unescape(_TAG.sub("", markup) if "<" in markup else markup).strip()
