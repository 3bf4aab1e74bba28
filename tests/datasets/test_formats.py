import gzip
import json
import os
import pickle
import struct

import numpy as np
import pytest

from fedexp.datasets import formats


def packed(content):
    """As gzip, without the time of day: it becomes part of a test's name."""
    return gzip.compress(content, mtime=0)


def idx(values):
    """IDX bytes of an array, from the format's description."""
    code = {"u1": 0x08, "i4": 0x0C}[values.dtype.str[1:]]
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return (
        bytes([0, 0, code, values.ndim])
        + sizes
        + values.astype(values.dtype.newbyteorder(">")).tobytes()
    )


@pytest.mark.parametrize("dtype", ["u1", "i4"])
@pytest.mark.parametrize("shape", [(5,), (5, 8), (2, 28, 28)])
def test_idx_is_read_back(tmp_path, dtype, shape):
    values = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    (tmp_path / "plain").write_bytes(idx(values))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(values)))
    for name in ("plain", "packed.gz"):
        found = formats.read_idx(tmp_path / name, shape=shape[1:])
        assert found.dtype == dtype
        assert np.array_equal(found, values)


IMAGES = idx(np.zeros((3, 4, 4), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed(IMAGES)[:20], "expected a whole gzip file"),
        (b"not gzip at all", "expected a whole gzip file"),
        (packed(IMAGES[:-5]), "expected 48 bytes of data, found 43"),
        (packed(IMAGES + b"x"), "expected 48 bytes of data, found 49"),
        (packed(IMAGES[:6]), "expected an IDX header"),
        (packed(b"\x89PNG...."), "expected an IDX header .*, found 89504e47"),
        (packed(b""), "expected an IDX header"),
        (
            packed(idx(np.zeros((3, 5, 4), np.uint8))),
            r"expected rows of shape \(4, 4\), found \(5",
        ),
    ],
)
def test_a_damaged_idx_file_says_what_was_found(tmp_path, content, message):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"images.gz: {message}"):
        formats.read_idx(path, shape=(4, 4))


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as in the published CIFAR batches."""

    def save_python2_string(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_python2_string}


def write_cifar(path, batch):
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(batch)


@pytest.mark.parametrize("core", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_a_cifar_batch_is_read_back(tmp_path, core):
    data = np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8)
    write_cifar(tmp_path / "batch", {b"data": data, b"labels": [3, 1, 4, 1]})
    content = (tmp_path / "batch").read_bytes().replace(b"numpy._core.multiarray", core.encode())
    (tmp_path / "batch").write_bytes(content)
    images, labels = formats.read_cifar(tmp_path / "batch", "labels")
    assert labels.tolist() == [3, 1, 4, 1]
    assert np.array_equal(images[2, 1].ravel(), data[2, 1024:2048])  # the green plane


class Dangerous:
    def __reduce__(self):
        return os.system, ("echo pwned > pwned",)


def test_a_cifar_batch_that_would_run_a_command_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({b"data": Dangerous(), b"labels": [1]}, protocol=2)
    (tmp_path / "batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"it wants to import posix\.system"):
        formats.read_cifar(tmp_path / "batch", "labels")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
            r"shape \(1, 3072\), found \(2, 3072\)",
        ),
        ({b"data": np.zeros((1, 3072)), b"labels": [1]}, "a call that no array of bytes needs"),
        ({b"data": [1, 2], b"labels": [1]}, "found list"),
        ({b"data": np.zeros((1, 3072), np.uint8)}, "pickled dict with data and labels"),
        ([1, 2], "pickled dict with data and labels"),
    ],
)
def test_a_foreign_cifar_batch_says_what_was_found(tmp_path, batch, message):
    write_cifar(tmp_path / "batch", batch)
    with pytest.raises(ValueError, match=message):
        formats.read_cifar(tmp_path / "batch", "labels")


def test_a_truncated_cifar_batch_is_an_error(tmp_path):
    write_cifar(tmp_path / "batch", {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]})
    (tmp_path / "batch").write_bytes((tmp_path / "batch").read_bytes()[:1000])
    with pytest.raises(ValueError, match="batch: expected a pickled dict"):
        formats.read_cifar(tmp_path / "batch", "labels")


def leaf(**clients):
    return {
        "users": list(clients),
        "num_samples": [len(y) for _, y in clients.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in clients.items()},
    }


def test_leaf_files_of_a_folder_are_joined(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(leaf(carol=([[3]], [3]))))
    (tmp_path / "a.json").write_text(json.dumps(leaf(bob=([[1]], [1]), alice=([[2], [4]], [2, 4]))))
    clients = formats.read_leaf(tmp_path.glob("*.json"))
    assert list(clients) == ["bob", "alice", "carol"]
    assert clients["alice"] == ([[2], [4]], [2, 4])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"users": ["a"', "expected JSON with users"),
        ('{"users": ["a"], "num_samples": [1]}', "found KeyError"),
        ('{"users": ["a"], "num_samples": [1], "user_data": {}}', "found KeyError"),
        (json.dumps({**leaf(a=([[1]], [1])), "num_samples": [2]}), "expected 2 examples of a"),
        (
            json.dumps({**leaf(a=([[1]], [1])), "num_samples": []}),
            "expected 1 num_samples, one per user, found 0",
        ),
        ("[1]", "found TypeError"),
    ],
)
def test_a_damaged_leaf_file_says_what_was_found(tmp_path, content, message):
    (tmp_path / "all_data.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        formats.read_leaf(tmp_path.glob("*.json"))


def test_a_table_skips_headers_and_verifies_its_size(tmp_path):
    path = tmp_path / "table.arff"
    path.write_bytes(b"@relation r\r\n\r\n@data\r\n1, ?,a\r\n2,3,b\r\n\r\n")
    table = formats.read_table(path, num_columns=3, num_rows=2)
    assert table.tolist() == [["1", "?", "a"], ["2", "3", "b"]]
    with pytest.raises(ValueError, match=r"table\.arff: expected 5 rows, found 2"):
        formats.read_table(path, num_columns=3, num_rows=5)
    with pytest.raises(ValueError, match=r"expected 4 columns, found 3 in '1,\?,a'"):
        formats.read_table(path, num_columns=4)


def test_an_empty_table_is_an_error(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="expected some rows, found 0"):
        formats.read_table(tmp_path / "empty", num_columns=4)


def test_libsvm_rows_become_dense(tmp_path):
    path = tmp_path / "rows"
    path.write_text("+1 1:0.5 3:2\n-1\n")
    x, y = formats.read_libsvm(path, num_features=3, num_rows=2)
    assert x.dtype == np.float32
    assert x.tolist() == [[0.5, 0, 2], [0, 0, 0]]
    assert y.tolist() == [1, -1]
    with pytest.raises(ValueError, match="rows: expected 3 rows, found 2"):
        formats.read_libsvm(path, num_features=3, num_rows=3)
    with pytest.raises(ValueError, match="index to 2"):
        formats.read_libsvm(path, num_features=2)


def test_a_table_is_no_libsvm(tmp_path):
    (tmp_path / "rows").write_text("age,sex\n1,2\n")
    with pytest.raises(ValueError, match="rows: expected rows 'label index:value"):
        formats.read_libsvm(tmp_path / "rows", num_features=3)


def test_an_archive_without_an_array_or_no_archive_is_an_error(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, x_train=np.zeros(3))
    with pytest.raises(ValueError, match="no y_train, x_test, y_test"):
        formats.read_npz(path)
    for content in (b"no archive", b"", path.read_bytes()[:40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"own\.npz: expected a NumPy"):
            formats.read_npz(path)
    rows = {name: np.zeros(3) for name in ("y_train", "x_test", "y_test")}
    np.savez(path, x_train=np.array([Dangerous()], dtype=object), **rows)
    with pytest.raises(ValueError, match=r"numbers or text in x_train, found objects. Save it as"):
        formats.read_npz(path)
