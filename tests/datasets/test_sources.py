import gzip
import json
import pickle
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fedexp.datasets import (
    SOURCES,
    Dataset,
    from_arrays,
    from_torch,
    load,
    partition,
    synthetic,
    text,
)

REAL = [  # name, training rows, test rows, shape of a row, classes, natural clients
    # The last ones that tests above load come first: so many are kept.
    ("mnist", 60_000, 10_000, (1, 28, 28), 10, 539),
    ("adult", 32_561, 16_281, (108,), 2, 16),
    ("a9a", 32_561, 16_281, (123,), 2, 0),
    ("wisdm", 5_418, 0, (43,), 6, 36),
    ("fashion-mnist", 60_000, 10_000, (1, 28, 28), 10, 0),
    ("heart-disease", 740, 0, (15,), 2, 4),
    ("w8a", 49_749, 0, (300,), 2, 0),
    ("phishing", 11_055, 0, (68,), 2, 0),
    ("mushrooms", 8_124, 0, (112,), 2, 0),
]
EMBEDDED = [name for name, source in SOURCES.items() if not source.files]


def check(data: Dataset):
    for x, y in (data.train, data.test):
        assert len(x) == len(y) > 0
        assert x.dtype == (torch.uint8 if x.dtype == torch.uint8 else torch.float32)
        assert np.isfinite(x.numpy()).all()
        if data.num_classes:
            assert y.dtype == torch.int64
            assert 0 <= y.min() <= y.max() < data.num_classes
    if data.keys is not None:
        assert data.keys.shape == (len(data.train[1]),)
        assert np.array_equal(np.unique(data.keys), np.arange(data.keys.max() + 1))
        assert len(data.names) in (0, data.keys.max() + 1)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_dataset_is_whole_and_loaded_once(name):
    data = load(name, seed=3)
    check(data)
    assert load(name, data_dir=None, seed=3) is data


def test_digits_of_a_fifth_are_the_test_and_classes_are_balanced():
    data = load("digits")
    assert [len(y) for _, y in (data.train, data.test)] == [1_437, 360]
    assert np.ptp(np.bincount(data.test[1])) <= 2


def test_heart_disease_has_the_patients_of_four_hospitals(data_dir):
    data = load("heart-disease", data_dir=data_dir)
    complete = np.array([303, 261, 46, 130])
    sizes = np.bincount(data.keys)
    assert np.array_equal(sizes, complete - complete // 3)
    x = data.train[0]
    assert x.mean(0).abs().max() < 1e-5
    assert (x.std(0, unbiased=False) - 1).abs().max() < 1e-5


def test_wisdm_users_keep_the_windows_of_their_phone(data_dir):
    data = load("wisdm", data_dir=data_dir)
    assert data.names == tuple(map(str, range(1, 37)))
    total = np.bincount(torch.cat([data.train[1], data.test[1]]))
    assert sorted(total.tolist()) == [246, 306, 528, 632, 1_625, 2_081]


def test_a9a_is_adult(data_dir):
    sparse, census = load("a9a", data_dir=data_dir), load("adult", data_dir=data_dir)
    assert torch.equal(sparse.train[1], census.train[1])
    assert torch.equal(sparse.test[1], census.test[1])


def test_mnist_has_539_writers_with_19_to_131_digits(data_dir):
    data = load("mnist", data_dir=data_dir)
    parts = partition.partition_named("natural", data, num_clients=0, seed=0)
    assert (len(parts), parts.sizes.min(), parts.sizes.max()) == (539, 19, 131)
    assert np.median(parts.sizes) == 116
    writers = np.array(data.names, int)
    assert parts.sizes[writers < 289].sum() == 30_950  # employees; the others are pupils
    assert data.train[0].mean() == pytest.approx(0.1307, abs=1e-4)
    assert data.train[0].std() == pytest.approx(0.3081, abs=1e-4)


@pytest.mark.parametrize(("name", "rows", "rows_test", "shape", "classes", "clients"), REAL)
def test_a_published_dataset_has_its_published_counts(
    data_dir, name, rows, rows_test, shape, classes, clients
):
    data = load(name, data_dir=data_dir)
    check(data)
    sizes = [len(y) for _, y in (data.train, data.test)]
    assert (sizes == [rows, rows_test]) if rows_test else (sum(sizes) == rows)
    assert data.train[0].shape[1:] == shape
    assert data.num_classes == classes
    assert len(data.names) == clients
    assert load(name, data_dir=data_dir, seed=9) is data


def test_shakespeare_has_the_counted_speeches_lines_and_roles(data_dir):
    speeches = [
        (page.parent.name, role, lines)
        for page in Path(data_dir, "shakespeare").glob("*/full.html")
        for role, lines in text.read_play(page)
    ]
    lines_of: dict[tuple[str, str], int] = {}
    for play, role, lines in speeches:
        lines_of[play, role] = lines_of.get((play, role), 0) + len(lines)
    counts = np.array(list(lines_of.values()))
    assert len(speeches) == 30_967
    assert counts.sum() == 108_118
    assert [(counts >= n).sum() for n in (1, 2, 10)] == [1_347, 1_230, 902]
    assert max(lines_of, key=lines_of.get) == ("hamlet", "HAMLET")
    assert counts.max() == 1_495


def test_shakespeare_has_a_client_per_role_that_says_enough(data_dir):
    data = load("shakespeare", data_dir=data_dir)
    check(data)
    assert "hamlet: HAMLET" in data.names
    assert torch.cat([data.train[1], data.train[0].flatten()]).bincount().count_nonzero() == (
        data.num_classes
    )


def test_tiny_shakespeare_has_a_speech_for_every_heading_after_an_empty_line(data_dir):
    check(load("tinyshakespeare", data_dir=data_dir))
    path = Path(data_dir, "tinyshakespeare", "input.txt")
    lines = ["", *path.read_text().split("\n")]
    headings = [line[:-1] for before, line in pairwise(lines) if not before and line.endswith(":")]
    assert len(lines) == 40_002  # the empty one put in front, and one after the last newline
    assert [role for role, _ in text.read_roles(path)] == headings


def test_contexts_end_where_their_target_begins_and_tests_come_last():
    said = "".join(chr(33 + i % 90) for i in range(1_000))
    data = text.next_character({"one": said, "too short": said[:80]})
    assert data.names == ("one",)
    alphabet = np.array(sorted(set(said)))
    first = "".join(alphabet[data.train[0][2]]) + alphabet[data.train[1][2]]
    assert first == said[20:101]
    assert "".join(alphabet[data.test[0][0]]) == said[800:880]
    assert len(data.train[0]) == len(range(0, 800 - 80, 10))


def test_a_page_cut_short_is_an_error(tmp_path):
    play = tmp_path / "shakespeare" / "play"
    play.mkdir(parents=True)
    (play / "full.html").write_text("<A NAME=speech1><b>KING</b></a><A NAME=1.1.1>Who's there?</A>")
    with pytest.raises(ValueError, match="expected a whole page with speeches, found 1 of them"):
        text.read_play(play / "full.html")
    with pytest.raises(ValueError, match="expected 37 plays, found 1"):
        load("shakespeare", data_dir=str(tmp_path))


def test_a_text_without_headings_is_an_error(tmp_path):
    (tmp_path / "input.txt").write_text("no heading here\n\nnor here\n")
    with pytest.raises(ValueError, match=r"input\.txt: expected speeches under 'ROLE:'"):
        text.read_roles(tmp_path / "input.txt")


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.files])
def test_missing_files_are_listed_with_their_publisher(tmp_path, name):
    for folder in (None, str(tmp_path)):
        with pytest.raises(ValueError, match=r"lacks .*Published at http") as error:
            load(name, data_dir=folder)
        assert all(file in str(error.value) for file in SOURCES[name].files)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"load\(name='mnits'\): .*Known: digits, .*mnist"):
        load("mnits")


def test_a_truncated_table_is_an_error(tmp_path, data_dir):
    shutil.copytree(Path(data_dir, "heart-disease"), tmp_path / "heart-disease", dirs_exist_ok=True)
    path = tmp_path / "heart-disease" / "processed.va.data"
    lines = path.read_text().splitlines(keepends=True)
    path.chmod(0o644)
    path.write_text("".join(lines[:50]))
    with pytest.raises(ValueError, match=r"processed\.va\.data: expected 200 rows, found 50"):
        load("heart-disease", data_dir=str(tmp_path))
    path.write_text("".join(lines).replace("63,", "many,", 1))
    with pytest.raises(ValueError, match=r"heart-disease: expected numbers, .*many"):
        load("heart-disease", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("wisdm", "wisdm/WISDM_ar_v1.1_transformed.arff", ",Sitting", ",Flying", "Flying"),
        ("mushrooms", "libsvm/mushrooms", "\n2 ", "\n3 ", r"two classes, found \[1.0, 2.0, 3.0\]"),
    ],
)
def test_an_unknown_class_is_an_error(tmp_path, data_dir, name, file, old, new, message):
    (tmp_path / file).parent.mkdir()
    content = Path(data_dir, file).read_bytes().decode()
    (tmp_path / file).write_bytes(content.replace(old, new, 5).encode())
    with pytest.raises(ValueError, match=message):
        load(name, data_dir=str(tmp_path))


def write_idx(path, values):
    head = bytes([0, 0, {1: 0x08, 4: 0x0C}[values.itemsize], values.ndim])
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        gzip.compress(head + sizes + values.astype(values.dtype.newbyteorder(">")).tobytes())
    )


def write_images(folder, prefix, test, images, labels):
    for part in ("train", test):
        write_idx(folder / f"{prefix}{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}{part}-labels-idx1-ubyte.gz", labels)


def test_emnist_letters_are_turned_upright_and_count_from_zero(tmp_path):
    images = np.zeros((3, 28, 28), np.uint8)
    images[1, 2, 5] = 255  # column 2, row 5 in EMNIST's order
    write_images(tmp_path / "emnist", "emnist-letters-", "test", images, np.uint8([1, 26, 3]))
    data = load("emnist-letters", data_dir=str(tmp_path))
    check(data)
    assert data.train[1].tolist() == [0, 25, 2]
    assert data.train[0][1, 0].nonzero().tolist() == [[5, 2]]
    assert data.train[0].max() == 1


def test_mnist_files_that_do_not_belong_together_are_an_error(tmp_path):
    folder, images = tmp_path / "mnist", np.zeros((3, 28, 28), np.uint8)
    write_images(folder, "", "t10k", images, np.uint8([1, 2, 3]))
    data = load("mnist", data_dir=str(tmp_path))
    assert data.keys is None
    with pytest.raises(ValueError, match=r"no natural clients.*MNIST needs qmnist/"):
        partition.partition_named("natural", data, num_clients=0, seed=0)
    cases = [([1, 2], "expected 3 labels, one per image, found 2"), ([1, 2, 26], "10 classes")]
    for i, (labels, message) in enumerate(cases):
        other = tmp_path / str(i)
        write_images(other / "mnist", "", "t10k", images, np.uint8(labels))
        with pytest.raises(ValueError, match=message):
            load("mnist", data_dir=str(other))
    other = tmp_path / "foreign"
    write_images(other / "mnist", "", "t10k", images, np.uint8([1, 2, 3]))
    writers = np.zeros((3, 8), np.int32)
    write_idx(other / "qmnist" / "qmnist-train-labels-idx2-int.gz", writers)
    with pytest.raises(ValueError, match=r"qmnist-train.*expected the labels of MNIST"):
        load("mnist", data_dir=str(other))


@pytest.mark.parametrize("num_classes", [10, 100])
def test_cifar_folders_are_read_as_their_archive_leaves_them(tmp_path, num_classes):
    rng = np.random.default_rng(0)
    if num_classes == 10:
        folder, key = tmp_path / "cifar10" / "cifar-10-batches-py", b"labels"
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    else:
        folder, key = tmp_path / "cifar100" / "cifar-100-python", b"fine_labels"
        names = ["train", "test"]
    folder.mkdir(parents=True)
    pixels = rng.integers(0, 256, (len(names), 4, 3072)).astype(np.uint8)
    for i, name in enumerate(names):
        batch = {b"data": pixels[i], key: [i % num_classes] * 4}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    data = load(f"cifar{num_classes}", data_dir=str(tmp_path))
    check(data)
    x = data.train[0]
    assert x.shape == (4 * (len(names) - 1), 3, 32, 32)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3)), torch.ones(3), atol=1e-5)
    red = torch.from_numpy(pixels[0, 0, :1024].reshape(32, 32).astype(np.float32))
    assert torch.corrcoef(torch.stack([x[0, 0].ravel(), red.ravel()]))[0, 1] > 0.9999


def test_cifar_batches_of_several_sizes_are_an_error(tmp_path):
    folder = tmp_path / "cifar10" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        size = 2 if i == 3 else 4
        batch = {b"data": np.zeros((size, 3072), np.uint8), b"labels": [0] * size}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=r"batches of one size, found \[2, 4\]"):
        load("cifar10", data_dir=str(tmp_path))


def write_leaf(folder, **clients):
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True)
        content = {
            "users": list(clients),
            "num_samples": [len(y) for _, y in clients.values()],
            "user_data": {user: {"x": x, "y": y} for user, (x, y) in clients.items()},
        }
        (folder / part / "all_data_0_keep_0.json").write_text(json.dumps(content))


def test_femnist_writers_are_clients(tmp_path):
    writers = {"f0001_41": ([[0.5] * 784] * 2, [61, 0]), "f0002_10": ([[1.0] * 784], [3])}
    write_leaf(tmp_path / "femnist", **writers)
    data = load("femnist", data_dir=str(tmp_path))
    check(data)
    assert data.names == tuple(writers)
    assert data.keys.tolist() == [0, 0, 1]
    assert data.train[0].shape == (3, 1, 28, 28)
    assert data.train[1].tolist() == [61, 0, 3]
    other = tmp_path / "other"
    write_leaf(other / "femnist", writer=([[0.5] * 783], [61]))
    with pytest.raises(ValueError, match="expected images of 784 numbers"):
        load("femnist", data_dir=str(other))


def test_leaf_shakespeare_uses_leafs_alphabet(tmp_path):
    roles = {"PLAY_KING": ["a" * 80, "b" * 80], "PLAY_FOOL": ["c" * 79 + "}"]}
    write_leaf(
        tmp_path / "leaf-shakespeare",
        **{role: (x, ["z"] * len(x)) for role, x in roles.items()},
    )
    data = load("leaf-shakespeare", data_dir=str(tmp_path))
    check(data)
    assert data.num_classes == 80
    assert data.names == tuple(roles)
    assert data.keys.tolist() == [0, 0, 1]
    assert (data.train[0][1] - data.train[0][0]).unique().tolist() == [1]
    assert data.train[0][2, -1] == 79
    other = tmp_path / "other"
    write_leaf(other / "leaf-shakespeare", PLAY_KING=(["short"], ["z"]))
    with pytest.raises(ValueError, match="80 letters of LEAF's alphabet"):
        load("leaf-shakespeare", data_dir=str(other))


def test_own_arrays_become_a_dataset(tmp_path):
    images = np.full((4, 5, 5), 255, np.uint8)
    arrays = {"x_train": images, "y_train": np.arange(4), "x_test": images, "y_test": np.arange(4)}
    np.savez(tmp_path / "own.npz", keys=np.array(["b", "a", "b", "c"]), **arrays)
    data = load(str(tmp_path / "own.npz"))
    check(data)
    assert data.train[0].shape == (4, 1, 5, 5)
    assert data.train[0].max() == 1
    assert data.names == ("a", "b", "c")
    assert data.keys.tolist() == [1, 0, 1, 2]
    with pytest.raises(ValueError, match="no such file"):
        load(str(tmp_path / "other.npz"))
    with pytest.raises(ValueError, match=r"y_train=\[3\]\): must be as long as x_train, 4"):
        from_arrays(images, np.arange(3), images, np.arange(4))
    with pytest.raises(ValueError, match=r"keys=\[2\]"):
        from_arrays(images, np.arange(4), images, np.arange(4), keys=[1, 2])


def test_float_targets_are_a_regression():
    x, y = np.zeros((4, 2)), np.linspace(0, 1, 4)
    data = from_arrays(x, y, x, y)
    assert data.num_classes == 0
    assert data.train[1].dtype == torch.float32


def test_torch_datasets_become_a_dataset():
    pairs = torch.utils.data.TensorDataset(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]))
    data = from_torch(pairs, pairs, keys=[1, 1, 2, 2, 3, 3])
    check(data)
    assert torch.equal(data.train[0], pairs.tensors[0])
    assert data.num_classes == 3


def test_synthetic_regression_can_be_fitted_exactly_by_one_model():
    x, y = load("synthetic-regression").train
    assert x.shape == (600, 1_000)
    assert torch.allclose(x.norm(dim=1), torch.ones(600), atol=1e-5)
    assert torch.allclose(y.view(20, 30).norm(dim=1), torch.ones(20), atol=1e-5)
    w = torch.linalg.lstsq(x.double(), y.double()).solution
    assert (x.double() @ w - y).norm() < 1e-8


def test_synthetic_classification_has_at_least_fifty_examples_per_client():
    data = load("synthetic-lr", seed=1)
    total = np.bincount(data.keys)
    assert len(total) == 30
    assert total.min() >= 45  # a tenth of fifty is in the test set
    assert not torch.equal(data.train[0][:9], load("synthetic-lr", seed=2).train[0][:9])


def test_on_synthetic_regression_the_authors_losses_after_50_rounds_come_back():
    data = synthetic.regression(dtype=torch.float64)
    x, y = data.train[0].numpy().reshape(20, 30, -1), data.train[1].numpy().reshape(20, 30)
    # 20 local gradient steps of 0.1 are one linear map of the residuals
    gram = np.eye(30) - 0.1 * x @ x.mT
    summed = 0.1 * sum(np.linalg.matrix_power(gram, k) for k in range(20))

    def loss_at_50(step_size):
        w = np.zeros(1_000)
        for _ in range(50):
            updates = (x.mT @ (summed @ (x @ w - y)[..., None]))[..., 0]
            w = w - step_size(updates) * updates.mean(0)
        return np.square(x @ w - y).sum() / 20

    def extrapolated(updates):
        return 0.5 * np.square(updates).sum(1).mean() / np.square(updates.mean(0)).sum()

    assert loss_at_50(lambda _: 10) == pytest.approx(3e-3, rel=0.5)
    assert loss_at_50(extrapolated) == pytest.approx(1e-5, rel=0.5)
