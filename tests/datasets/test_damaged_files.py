"""Whatever stands in a file, a reader gives a dataset or one line that names the file."""

import gzip
import io
import json
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import Python2Pickler, idx

from fedexp.datasets import Dataset, formats, images, load, tables, text

RNG = np.random.default_rng(0)
LETTERS = "ab"
PLAY = (
    "<html><A NAME=speech1><b>KING</b></a>"
    + "".join(f"<A NAME=1.1.{i}>Who's <i>there</i> &amp; why?</A><br>" for i in range(9))
    + "<A NAME=speech2><b>FOOL</b></a><A NAME=1.1.9>I.</A></html>"
)


def pickled(batch):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(batch)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def leaf(x, y):
    users = {"users": ["a", "b"], "num_samples": [len(y)] * 2}
    return json.dumps({**users, "user_data": {u: {"x": x, "y": y} for u in "ab"}}).encode()


OWN = {"x_train": RNG.normal(size=(6, 2)), "y_train": np.arange(6) % 2}
OWN |= {"x_test": OWN["x_train"], "y_test": OWN["y_train"], "keys": np.array(list("aabbcc"))}
PIXELS = RNG.integers(0, 256, (4, 3072)).astype(np.uint8)
READERS = {  # name of a file, its content, and what reads it
    "idx": ("a", idx(RNG.integers(0, 9, (3, 4)).astype("i4")), lambda p: formats.read_idx(p, (4,))),
    "gzip": (
        "a.gz",
        gzip.compress(idx(RNG.integers(0, 9, (3, 4, 4)).astype("u1"))),
        lambda p: formats.read_idx(p, (4, 4)),
    ),
    "cifar": (
        "a",
        pickled({b"data": PIXELS, b"labels": [1, 2, 3, 4], b"batch_label": b"one"}),
        lambda p: formats.read_cifar(p, "labels"),
    ),
    "leaf images": (
        "femnist/train/a.json",
        leaf([[0.5] * 784] * 2, [61, 0]),
        lambda p: images.femnist(p.parents[2]),
    ),
    "leaf text": (
        "leaf-shakespeare/train/a.json",
        leaf(["a" * 80, "b" * 80], ["c", "d"]),
        lambda p: text.leaf_shakespeare(p.parents[2]),
    ),
    "play": ("a.html", PLAY.encode("latin-1"), text.read_play),
    "roles": ("a", b"KING:\nWho's there?\n\nFOOL:\nI.\n", text.read_roles),
    "table": (
        "a",
        b"@data\n1,?,a\n2,3,b\n",
        lambda p: tables._numbers(p, formats.read_table(p, num_columns=3)[:, :2]),
    ),
    "libsvm": ("a", b"+1 1:0.5 3:2\n-1 2:1\n", lambda p: formats.read_libsvm(p, num_features=3)),
    "npz": ("a.npz", npz(**OWN), lambda p: load_new(p)),
}


def load_new(path):
    load.__globals__["read_npz_once"].cache_clear()
    return load(str(path))


def placed(folder, kind, content):
    """The file of a reader with this content, and a sound test set where one is read too."""
    name, sound, read = READERS[kind]
    path = Path(folder, name)
    for part, data in (("train", content), ("test", sound)):
        file = Path(str(path).replace("/train/", f"/{part}/"))
        file.parent.mkdir(parents=True, exist_ok=True)
        if part == "train" or "/train/" in str(path):
            file.write_bytes(data)
    return lambda: read(path)


def survives(read):
    try:
        read()
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return False
    return True


@pytest.mark.parametrize("kind", READERS)
def test_a_sound_file_is_read(kind, tmp_path):
    assert survives(placed(tmp_path, kind, READERS[kind][1]))


@st.composite
def damages(draw, content):
    """``content`` cut short, with bytes changed, put in or left out; or bytes of no kind."""
    how = draw(st.sampled_from(["cut", "flip", "insert", "remove", "noise", "repeat"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    some = draw(st.binary(min_size=1, max_size=12))
    return {
        "cut": content[:at],
        "flip": content[:at] + some + content[at + len(some) :],
        "insert": content[:at] + some + content[at:],
        "remove": content[:at] + content[at + len(some) :],
        "noise": some,
        "repeat": content + content[at:],
    }[how]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_is_one_line(kind, tmp_path, data):
    survives(placed(tmp_path, kind, data.draw(damages(READERS[kind][1]))))


ODD = [None, True, -1, 1.5, 1e999, float("nan"), 10**400, "", "1", "x" * 80, [], [1], {}, {"x": 1}]


def places(value, at=()):
    """Paths to everything in a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in items if isinstance(value, dict) else enumerate(value[:2]):
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))
        else:
            yield (*at, key)


def replaced(value, at, new):
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(copy[at[0]], at[1:], new)
    return copy


def is_sound(kind, at, new):
    """Whether a file is still sound with ``new`` at this place: a pixel, a class, a text."""
    if kind == "leaf text":
        return new == {"x": "x" * 80, "y": "1"}.get((*at, "", "", "")[2]) and len(at) == 4
    pixel = len(at) == 5 and isinstance(new, int | float) and abs(new) < 1e9
    return pixel or (at[2:3] == ("y",) and new is True)


@pytest.mark.parametrize("new", ODD, ids=lambda x: repr(x)[:12])
@pytest.mark.parametrize("kind", ["leaf images", "leaf text"])
def test_an_odd_value_anywhere_in_a_leaf_file_is_one_line(kind, new, tmp_path):
    content = json.loads(READERS[kind][1])
    for at in places(content):
        changed = replaced(content, at, new)
        read = placed(tmp_path, kind, json.dumps(changed).encode())
        assert not survives(read) or is_sound(kind, at, new), (at, new)
    for nested in (b"[" * 100_000, b'{"users":' * 100_000):
        assert not survives(placed(tmp_path, kind, nested))


def test_a_user_in_two_files_keeps_all_rows(tmp_path):
    folder = tmp_path / "femnist"
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        for name, shade, labels in (("a", 0.25, [1, 2]), ("b", 0.5, [3])):
            content = leaf([[shade] * 784] * len(labels), labels)
            (folder / part / f"{name}.json").write_bytes(content)
    data = images.femnist(tmp_path)
    assert data.names == ("a", "b")
    assert data.keys.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train[1].tolist() == [1, 2, 3] * 2
    assert data.train[0][:, 0, 0, 0].tolist() == [0.25, 0.25, 0.5] * 2
    twice = json.loads(leaf([[0.5] * 784], [1])) | {"users": ["a", "a"]}
    (folder / "train" / "a.json").write_text(json.dumps(twice))
    with pytest.raises(ValueError, match=r"a\.json: expected 1 num_samples, one per user, found 2"):
        images.femnist(tmp_path)


def reduced(function, args, state=None):
    """The opcodes of a call, ``function`` named as in a pickle, and of a state for its result."""
    ops = b"c" + function.replace(" ", "\n").encode() + b"\n" + args + b"R"
    return ops if state is None else ops + state + b"b"


DTYPE = reduced(
    "numpy dtype",
    b"U\x02u1K\x00K\x01\x87",
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xff" * 1 + b"J\xff\xff\xff\xffK\x00t",
)
ARRAY = b"cnumpy\nndarray\nK\x00\x85U\x01b\x87"


def batch(data, labels=b"](K\x01e"):
    return b"\x80\x02}(U\x04data" + data + b"U\x06labels" + labels + b"u."


def array(state, call="numpy.core.multiarray _reconstruct", args=ARRAY):
    return reduced(call, args, state)


PIXEL_STATE = b"(K\x01K\x01M\x00\x0c\x86" + DTYPE + b"\x89T\x00\x0c\x00\x00" + bytes(3072) + b"t"
DEEP = b"(" * 50_000 + b"t" * 50_000


def test_the_published_form_of_cifar_is_read(tmp_path):
    (tmp_path / "a").write_bytes(batch(array(PIXEL_STATE)))
    pixels, labels = formats.read_cifar(tmp_path / "a", "labels")
    assert pixels.shape == (1, 3, 32, 32)
    assert labels.tolist() == [1]


CRAFTED = {
    "dtype with a state of its own": array(PIXEL_STATE.replace(b"U\x01|NNN", b"U\x01|U\x01xNN")),
    "big-endian": array(PIXEL_STATE.replace(b"U\x01|", b"U\x01>")),
    "dtype of objects": array(PIXEL_STATE.replace(b"U\x02u1", b"U\x02O8")),
    "dtype with a huge size": array(
        PIXEL_STATE.replace(b"J\xff\xff\xff\xffJ", b"J\xff\xff\xff\x7fJ")
    ),
    "more rows than bytes": array(PIXEL_STATE.replace(b"K\x01K\x01M", b"K\x01K\x02M")),
    "negative rows": array(PIXEL_STATE.replace(b"K\x01K\x01M", b"K\x01J\xff\xff\xff\xffM")),
    "column order": array(PIXEL_STATE.replace(b"\x89T", b"\x88T")),
    "another subclass": array(PIXEL_STATE, args=b"cnumpy\nmatrix\nK\x00\x85U\x01b\x87"),
    "no state": reduced("numpy.core.multiarray _reconstruct", ARRAY),
    "a state twice": array(PIXEL_STATE) + PIXEL_STATE + b"b",
    "a state for the dict": b"}}b",
    "a call of a dict": b"}()R",
    "a system call": reduced("posix system", b"U\x02ls\x85"),
    "a builtin": reduced("__builtin__ eval", b"U\x011\x85"),
    "codecs of its own": reduced("_codecs encode", b"X\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86"),
    "deep tuples": DEEP,
    "deep tuples as a key": b"}" + DEEP + b"K\x01s",
    "deep lists": b"]" * 50_000 + b"a" * 49_999,
    "a list of itself": b"]q\x00h\x00a",
    "a dict as a key": b"}}K\x01s",
    "a huge memo": array(PIXEL_STATE) + b"r\xff\xff\xff\x7fj\xff\xff\xff\x6f",
    "a huge text": b"T\xff\xff\xff\x7f",
    "a persistent id": b"Pid\n",
    "an extension": b"\x82\x01",
    "an instance": b"(iposix\nsystem\n",
    "an object": b"(cposix\nsystem\no",
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_cifar_batch_is_one_line(name, tmp_path):
    (tmp_path / "batch").write_bytes(batch(CRAFTED[name]))
    with pytest.raises(ValueError, match=r"batch: expected .*Download the file again") as error:
        formats.read_cifar(tmp_path / "batch", "labels")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [b"](K\x01K\x02e", b"]U\x011a", b"](\x88e", b"K\x01", b"]N a"])
def test_labels_that_are_not_a_number_per_image_are_refused(labels, tmp_path):
    (tmp_path / "batch").write_bytes(batch(array(PIXEL_STATE), labels))
    with pytest.raises(ValueError, match="batch: expected "):
        formats.read_cifar(tmp_path / "batch", "labels")


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols_than_the_published_are_refused(protocol, tmp_path):
    content = pickle.dumps({b"data": PIXELS, b"labels": [1, 2, 3, 4]}, protocol=protocol)
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(ValueError, match="batch: expected a pickled dict"):
        formats.read_cifar(tmp_path / "batch", "labels")


def inflating(header, size):
    """Gzip of a header and zeros, never held as a whole."""
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(header)]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join([*parts, packer.flush()])


def test_gzip_is_inflated_no_further_than_its_header_says(tmp_path, monkeypatch):
    path = tmp_path / "images.gz"
    claimed = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 28, 28)
    path.write_bytes(inflating(claimed, 1 << 20))
    with pytest.raises(ValueError, match=r"images\.gz: would inflate to 3,367,254,359,280 bytes"):
        formats.read_idx(path, (28, 28))
    small = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 28, 28)
    path.write_bytes(inflating(small, 64 << 20))
    seen = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda self, size=-1: seen.append(size) or read(self, size)
    )
    with pytest.raises(ValueError, match="expected 1568 bytes of data, found 1569 or more"):
        formats.read_idx(path, (28, 28))
    assert -1 not in seen
    assert sum(seen) < 2000


def zipped(members, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(shape, data=b"", dtype="<f8"):
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def test_an_archive_is_inflated_no_further_than_it_may(tmp_path, monkeypatch):
    path = tmp_path / "own.npz"
    members = {f"{name}.npy": npy((2,), bytes(16)) for name in OWN}
    zipped(members | {"x_train.npy": npy((10**12,), bytes(16))}, path)
    with pytest.raises(ValueError, match=r"expected 8000000000000 bytes in x_train, found 16"):
        formats.read_npz(path)
    zipped(members | {"x_train.npy": npy((1 << 17,), bytes(1 << 20))}, path)
    monkeypatch.setattr(formats, "_INFLATED", 1 << 19)
    with pytest.raises(ValueError, match=r"own\.npz: would inflate to 1,048,640 bytes"):
        formats.read_npz(path)
    zipped(members | {"other.npy": npy((1 << 17,), bytes(1 << 20))}, path)
    assert formats.read_npz(path).keys() == OWN.keys()  # what nobody asked for stays packed


def test_an_uncompressed_archive_may_be_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_INFLATED", 1 << 10)
    np.savez(tmp_path / "own.npz", **OWN | {"x_train": np.zeros((6, 1000))})
    assert formats.read_npz(tmp_path / "own.npz")["x_train"].shape == (6, 1000)


OLD_TAGS = re.compile(  # what the tags of a play mean; quadratic on a page without ends
    r"<A NAME=speech\d+><b>(?P<role>.*?)</b></a>|<A NAME=[\d.]+>(?P<line>.*?)</A>",
    re.IGNORECASE | re.DOTALL,
)
TAGS = ["<A NAME=speech1><b>", "<a name=Speech22><B>", "</b></a>", "</B></A>", "<A NAME=1.2>"]
TAGS += ["</A>", "</a>", "<A NAME=speech1>", "<b>", "</b>", "<A NAME=", "x", "\n", "<A NAME=.>"]


@given(st.lists(st.sampled_from(TAGS), max_size=14))
def test_roles_and_lines_are_those_of_the_pattern(parts):
    page = "".join(parts)
    expected = [
        (m["line"] is None, m["role"] if m["line"] is None else m["line"])
        for m in OLD_TAGS.finditer(page)
    ]
    assert list(text._tagged(page)) == expected


@pytest.mark.parametrize("part", ["<A NAME=1>", "<A NAME=speech1><b>", "<A NAME=1.1", "<"])
def test_a_page_of_tags_without_ends_takes_linear_time(part):
    page = part * (400_000 // len(part))  # minutes, were it quadratic
    assert list(text._tagged(page)) == []
    assert text._plain(page) == re.sub("<[^<>]*>", "", page)


def test_texts_that_cannot_be_tokens_are_refused():
    with pytest.raises(ValueError, match="300 different characters, at most 256"):
        text.next_character({"a": "".join(map(chr, range(300)))})
    with pytest.raises(ValueError, match="no text is long enough"):
        text.next_character({"a": "too short"})


def test_odd_cells_of_tables_are_one_line(tmp_path):
    path = tmp_path / "table"
    for cell, found in (("inf", "inf"), ("nan", "nan"), ("1e999", "1e999"), ("many", "many")):
        with pytest.raises(ValueError, match=f"table: expected numbers, found .*{found}"):
            tables._numbers(path, np.array([["1", "?"], [cell, "2"]]))
    path.write_bytes(b"1:nan\n")
    path.write_bytes(b"+1 1:nan\n")
    with pytest.raises(ValueError, match="table: expected numbers, found NaN or infinity"):
        formats.read_libsvm(path, num_features=3)
    path.write_bytes(b"1,\xff\n")
    with pytest.raises(ValueError, match="table: expected comma-separated text"):
        formats.read_table(path, num_columns=2)


def test_a_label_that_no_class_is_meant_by_is_refused(tmp_path, data_dir):
    for folder, name, old, new, message in (
        ("adult", "adult.data", " <=50K", " about", "incomes <=50K and >50K, found about"),
        ("heart-disease", "processed.va.data", ",1\n", ",?\n", "a diagnosis in the last column"),
    ):
        for file in Path(data_dir, folder).glob("*"):
            content = file.read_bytes()
            if file.name == name:
                content = content.replace(old.encode(), new.encode(), 9)
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / file.name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(folder, data_dir=str(tmp_path))


def test_a_sound_npz_is_a_dataset(tmp_path):
    assert isinstance(placed(tmp_path, "npz", READERS["npz"][1])(), Dataset)
