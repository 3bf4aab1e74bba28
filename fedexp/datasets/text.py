"""Next-character prediction with one client per speaking role.

An example is ``CONTEXT`` characters as uint8 tokens; its target is the character that follows.
"""

import html
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from fedexp.datasets.dataset import Dataset
from fedexp.datasets.formats import damaged, read_leaf
from fedexp.datasets.parts import Array

CONTEXT = 80
STRIDE = 10  # characters from one training example of a role to its next
NUM_PLAYS = 37
_LEAF_LETTERS = (  # LEAF's alphabet, in its order
    "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
)
_SPEECH_OR_LINE = re.compile(
    r"<A NAME=speech\d+><b>(?P<role>.*?)</b></a>|<A NAME=[\d.]+>(?P<line>.*?)</A>",
    re.IGNORECASE | re.DOTALL,
)

Speech = tuple[str, list[str]]  # role, lines


def read_play(path: Path) -> list[Speech]:
    """Speeches of a play, from its page in the MIT edition of Shakespeare."""
    page = path.read_text(encoding="iso-8859-1")
    speeches: list[Speech] = []
    for match in _SPEECH_OR_LINE.finditer(page):
        if match["line"] is None:
            speeches.append((_plain(match["role"]), []))
        elif speeches:
            speeches[-1][1].append(_plain(match["line"]))
    if not speeches or "</html>" not in page[-200:].lower():
        raise damaged(path, "a whole page with speeches", f"{len(speeches)} of them")
    return speeches


def read_roles(path: Path) -> list[Speech]:
    """Speeches of a plain text: ``ROLE:`` on a line of its own, lines, an empty line."""
    speeches = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        heading, *lines = block.strip("\n").split("\n")
        if heading.endswith(":"):
            speeches.append((heading[:-1], lines))
    if not speeches:
        raise damaged(path, "speeches under 'ROLE:' headings", "none")
    return speeches


def shakespeare(data_dir: Path) -> Dataset:
    """The plays of Shakespeare, one client per role of a play."""
    pages = sorted((data_dir / "shakespeare").glob("*/full.html"))
    if len(pages) != NUM_PLAYS:
        raise damaged(data_dir / "shakespeare", f"{NUM_PLAYS} plays", len(pages))
    roles: dict[str, list[str]] = {}
    for page in pages:
        for role, lines in read_play(page):
            roles.setdefault(f"{page.parent.name}: {role}", []).extend(lines)
    return next_character({role: "\n".join(lines) for role, lines in roles.items()})


def tiny_shakespeare(data_dir: Path) -> Dataset:
    """Karpathy's excerpt of the plays, one client per heading."""
    roles: dict[str, list[str]] = {}
    for role, lines in read_roles(data_dir / "tinyshakespeare" / "input.txt"):
        roles.setdefault(role, []).extend(lines)
    return next_character({role: "\n".join(lines) for role, lines in roles.items()})


def leaf_shakespeare(data_dir: Path) -> Dataset:
    """LEAF's Shakespeare: contexts as LEAF cut them. Caldas et al. 2018, arXiv:1812.01097."""
    folder = data_dir / "leaf-shakespeare"
    train = read_leaf((folder / "train").glob("*.json"))
    test = read_leaf((folder / "test").glob("*.json"))
    keys = np.repeat(np.arange(len(train)), [len(targets) for _, targets in train.values()])
    pairs = [
        _encoded(
            part,
            "".join(x for inputs, _ in clients.values() for x in inputs),
            "".join(y for _, targets in clients.values() for y in targets),
        )
        for part, clients in ((folder / "train", train), (folder / "test", test))
    ]
    return Dataset(pairs[0], pairs[1], len(_LEAF_LETTERS), keys, tuple(train))


def next_character(texts: Mapping[str, str], *, test_fraction: float = 0.2) -> Dataset:
    """Cut each client's text into examples; the end of each text is the test set.

    Args:
        texts: text by client. A client too short for one training example is left out.
        test_fraction: of the characters of each text; test contexts overlap nothing.

    Returns:
        Inputs ``[num_examples, CONTEXT]``; the classes are the characters that occur, sorted.
    """
    alphabet = "".join(sorted(set().union(*texts.values())))
    train, test, names = [], [], []
    for name, text in texts.items():
        tokens = _tokens(text, alphabet)
        cut = len(tokens) - int(test_fraction * len(tokens))
        windows = _windows(tokens[:cut], STRIDE)
        if len(windows):
            names.append(name)
            train.append(windows)
            test.append(_windows(tokens[cut:], CONTEXT))
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


def _encoded(folder: Path, inputs: str, targets: str) -> tuple[torch.Tensor, torch.Tensor]:
    if len(inputs) != CONTEXT * len(targets) or set(inputs + targets) - set(_LEAF_LETTERS):
        expected = f"{CONTEXT} letters of LEAF's alphabet and one to predict"
        raise damaged(folder, expected, f"{len(inputs)} letters for {len(targets)} examples")
    x = _tokens(inputs, _LEAF_LETTERS).reshape(-1, CONTEXT)
    y = _tokens(targets, _LEAF_LETTERS).astype(np.int64)
    return torch.from_numpy(x), torch.from_numpy(y)


def _tokens(text: str, alphabet: str) -> Array:
    number = {ord(letter): i for i, letter in enumerate(alphabet)}
    return np.frombuffer(bytearray(text.translate(number), "latin-1"), np.uint8)


def _plain(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup)).strip()
