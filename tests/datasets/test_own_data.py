"""Arrays of a user's own: what they are taken for, and what is refused in one line."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedexp import app
from fedexp.config import Config
from fedexp.datasets import Dataset, from_arrays, from_torch, load
from fedexp.models import build, suited

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype(np.float32)
Y = np.arange(40) % 4
VALUES = X @ [1, 2, 3]


def halves(x, y, **options):
    """The first 30 rows train, the others test."""
    return from_arrays(x[:30], y[:30], x[30:], y[30:], **options)


def classes(y, **options):
    data = halves(X, y, **options)
    return torch.cat([data.train[1], data.test[1]]), data


SAME_CLASSES = {
    "column": Y[:, None],
    "column of columns": Y[:, None, None],
    "uint8": Y.astype(np.uint8),
    "big-endian": Y.astype(">i4"),
    "tensor": torch.from_numpy(Y),
    "list": Y.tolist(),
    "from 1": Y + 1,
    "from -1 in steps of two": 2 * Y - 1,
    "far apart": Y * 1_000_000,
    "text": np.array(["a", "b", "c", "d"])[Y],
    "bytes": np.array([b"a", b"b", b"c", b"d"])[Y],
    "objects": np.array(["a", "b", "c", "d"], object)[Y],
    "integers as objects": Y.astype(object),
    "one-hot floats": np.eye(4, dtype=np.float32)[Y],
    "one-hot integers": np.eye(4, dtype=int)[Y],
    "one-hot truth values": np.eye(4, dtype=bool)[Y],
}


@pytest.mark.parametrize("name", SAME_CLASSES)
def test_classes_in_any_form_are_the_same_classes(name):
    labels, data = classes(SAME_CLASSES[name])
    assert labels.dtype == torch.int64
    assert labels.tolist() == Y.tolist()
    assert data.num_classes == 4


def test_classes_keep_their_names_in_sorted_order(logged):
    names = np.array(["pear", "apple", "fig", "date"])
    _, data = classes(names[Y])
    assert data.class_names == ("apple", "date", "fig", "pear")
    assert [data.class_names[k] for k in data.train[1]] == names[Y[:30]].tolist()
    assert logged == ["Targets: 4 classes, in sorted order apple, date, fig, pear"]
    assert classes(2 * (Y % 2) - 1)[1].class_names == ("-1", "1")
    assert classes(Y)[1].class_names == ()


def test_truth_values_are_two_classes():
    labels, data = classes(Y % 2 == 1)
    assert labels.tolist() == (Y % 2).tolist()
    assert data.num_classes == 2


def test_a_class_that_no_row_has_keeps_its_number():
    labels, data = classes(np.where(Y == 2, 7, Y))
    assert labels.tolist() == np.where(Y == 2, 7, Y).tolist()
    assert data.num_classes == 8
    one_hot = np.eye(6)[Y]
    assert classes(one_hot)[1].num_classes == 6


def test_a_class_of_the_test_set_alone_counts():
    y = np.where(np.arange(40) == 39, 5, Y)
    assert classes(y)[1].num_classes == 6


@pytest.mark.parametrize("y", [VALUES, VALUES[:, None], VALUES.astype(np.float16)], ids=str)
def test_floats_are_values(y):
    values, data = classes(y)
    assert values.dtype == torch.float32
    assert np.allclose(values, y.ravel())
    assert data.num_classes == 0


def test_what_could_be_both_is_said_by_an_option():
    labels, data = classes(Y.astype(float), targets="classes")
    assert (labels.tolist(), data.num_classes) == (Y.tolist(), 4)
    for y in (Y.astype(float), Y, Y[:, None], Y == 1):
        values, data = classes(y, targets="values")
        assert values.dtype == torch.float32
        assert (values.tolist(), data.num_classes) == (y.ravel().tolist(), 0)


REFUSED_TARGETS = {
    "whole floats": (Y.astype(float), "y_train=float64.*4 different whole numbers.*--targets"),
    "one class": (np.zeros(40, int), "y_train.*all targets are 0: one class"),
    "two columns": (np.stack([VALUES, VALUES], 1), r"y_train=\(30, 2\).*one target per row"),
    "two ones in a row": (np.ones((40, 2), int), "one target per row"),
    "missing": (np.where(Y == 1, np.nan, VALUES), "y_train.*[78] of 30 targets are missing"),
    "infinite": (np.where(Y == 1, np.inf, VALUES), "y_train.*NaN or infinite"),
    "beyond float32": (VALUES.astype(float) * 1e300, "y_train=float64.*beyond 3.4e.38"),
    "beyond int64": (np.uint64(2**63) + Y.astype(np.uint64), "y_train=uint64.*beyond 64 bits"),
    "no text": (np.where(Y == 1, "", "a"), "y_train.*targets are missing"),
    "none": (np.where(Y == 1, None, "a"), "y_train=object.*without a missing one"),
    "complex": (VALUES.astype(complex), "y_train=complex128.*must be numbers or text"),
    "dates": (Y.astype("datetime64[D]"), "y_train=datetime64.*must be numbers or text"),
    "ids": (np.arange(40) * 17, "40 different targets in 40 rows do not look like classes"),
    "names": (np.arange(40).astype(str), "40 different targets in 40 rows"),
    "no array": (np.array(3), "y_train=int64.*must be an array"),
}


@pytest.mark.parametrize("name", REFUSED_TARGETS)
def test_targets_that_are_refused_are_named(name):
    y, message = REFUSED_TARGETS[name]
    with pytest.raises(ValueError, match=message) as error:
        halves(X, y) if y.ndim else from_arrays(X, y, X, y)
    assert "\n" not in str(error.value)


def test_options_that_do_not_fit_the_targets_are_refused():
    for y, kind, message in (
        (VALUES, "classes", "no whole numbers. Use targets='values'"),
        (np.array(["a", "b"])[Y % 2], "values", "y_train is text"),
        (np.eye(4)[Y], "values", "one target per row"),
        (Y, "labels", r"targets='labels'\): must be one of auto, classes, values"),
    ):
        with pytest.raises(ValueError, match=message):
            classes(y, targets=kind)
    with pytest.raises(ValueError, match=r"y_train is int64\. Save both alike"):
        from_arrays(X, Y, X, VALUES)
    with pytest.raises(ValueError, match="must have the 4 columns of y_train"):
        from_arrays(X, np.eye(4)[Y], X, np.eye(5)[Y])


def test_uint8_is_images_from_three_dimensions_on():
    grey = RNG.integers(0, 256, (40, 5, 6)).astype(np.uint8)
    data = halves(grey, Y)
    assert data.train[0].shape == (30, 1, 5, 6)
    assert torch.equal(data.train[0][:, 0] * 255, torch.from_numpy(grey[:30]).float())
    colour = RNG.integers(0, 256, (40, 3, 5, 6)).astype(np.uint8)
    for images in (colour, np.moveaxis(colour, 1, -1)):
        found = halves(images, Y).train[0]
        assert torch.equal(found, torch.from_numpy(colour[:30]).float().div(255))
    assert grey.max() > 1  # the caller's array is as it was


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_other_integers_stay_what_they_are(dtype):
    tokens = RNG.integers(0, 4, (40, 9)).astype(dtype)
    data = halves(tokens, Y)
    assert data.train[0].dtype == (torch.uint8 if dtype == np.uint8 else torch.int64)
    assert np.array_equal(data.train[0], tokens[:30])
    assert build("char-lstm", data)(data.train[0]).shape == (30, 4)


def with_embedding(shape, num_outputs):
    return torch.nn.Sequential(
        torch.nn.Embedding(9, 2), torch.nn.Flatten(), torch.nn.Linear(2 * shape[0], num_outputs)
    )


class OneHot(torch.nn.Module):
    takes_tokens = True

    def __init__(self, shape, num_outputs):
        super().__init__()
        self.head = torch.nn.Linear(9 * shape[0], num_outputs)

    def forward(self, tokens):
        return self.head(torch.nn.functional.one_hot(tokens, 9).flatten(1).float())


@pytest.mark.parametrize("model", ["test_own_data:with_embedding", "test_own_data:OneHot"])
def test_a_model_with_an_embedding_gets_tokens_and_others_numbers(model, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    tokens = halves(RNG.integers(0, 9, (40, 5)), Y)
    assert suited(model, tokens) is tokens
    assert build(model, tokens)(tokens.train[0]).shape == (30, 4)
    numbers = suited("mlp", tokens)
    assert suited("mlp", tokens) is numbers
    assert numbers.train[0].dtype == numbers.test[0].dtype == torch.float32
    assert torch.equal(numbers.train[0].long(), tokens.train[0])
    floats = halves(X, Y)
    assert suited(model, floats) is floats


def test_what_float32_would_round_is_refused():
    ids = np.stack([Y, Y + (1 << 24)], 1)
    with pytest.raises(ValueError, match=r"x_train\): column 1 holds integers beyond 16,777,216"):
        suited("mlp", halves(ids, Y))
    suited("mlp", halves(ids - 3, Y))


def test_bytes_of_text_are_no_numbers():
    tokens = halves(RNG.integers(0, 4, (40, 9)).astype(np.uint8), Y)
    with pytest.raises(ValueError, match="does not fit a dataset of characters"):
        build("mlp", suited("mlp", tokens))
    words = halves(RNG.integers(0, 50, (40, 9)), Y)
    with pytest.raises(ValueError, match="next of 4 characters, the inputs hold 0 to 49"):
        build("char-lstm", words)


def test_one_feature_may_be_a_vector():
    data = halves(X[:, 0], VALUES)
    assert data.train[0].shape == (30, 1)


def test_text_that_is_numbers_is_numbers():
    assert np.array_equal(halves(X.astype(str).astype(object), Y).train[0], X[:30])


def missing(dtype=np.float32):
    x = X.astype(dtype)
    x[[2, 5, 35], [0, 1, 1]] = np.nan
    return x


@pytest.mark.parametrize("how", ["mean", "median", "zero"])
@pytest.mark.parametrize("shape", [(40, 3), (40, 3, 1)])
def test_missing_inputs_are_filled_in_from_the_training_rows(how, shape):
    x = missing().reshape(shape)
    before = x.copy()
    data = halves(x, Y, impute=how)
    known = [column[np.isfinite(column)] for column in x[:30].reshape(30, 3).T]
    fill = [{"mean": np.mean, "median": np.median, "zero": lambda _: 0}[how](k) for k in known]
    found = torch.cat([data.train[0], data.test[0]]).reshape(40, 3)
    assert found[2, 0] == pytest.approx(fill[0], rel=1e-6)
    assert found[5, 1] == found[35, 1] == pytest.approx(fill[1], rel=1e-6)
    kept = np.isfinite(x.reshape(40, 3))
    assert np.array_equal(found.numpy()[kept], X[kept])
    assert np.array_equal(x, before, equal_nan=True)


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.sampled_from(["mean", "median", "zero"]))
def test_no_pattern_of_missing_inputs_is_left(pattern, how):
    x = np.where(np.array(pattern).reshape(3, 2), np.nan, np.arange(6.0).reshape(3, 2))
    y = [0, 1, 1]
    if how != "zero" and np.isnan(x).all(0).any():
        with pytest.raises(ValueError, match="has no value in the training rows"):
            from_arrays(x, y, x[::-1], y, impute=how)
        return
    data = from_arrays(x, y, x[::-1], y, impute=how)
    assert data.train[0].isfinite().all()
    assert torch.equal(data.test[0], data.train[0].flip(0))


REFUSED_INPUTS = {
    "missing": (missing(), {}, r"x_train\): column 0 holds NaN in 1 of 30 rows, as do 1 mor.*--im"),
    "named": (missing(), {"columns": ("age", "sex", "iq")}, "column 'age' holds NaN"),
    "whole column": (np.where([1, 0, 0], np.nan, X), {"impute": "median"}, "column 0 has no value"),
    "infinite": (np.where([0, 0, 1], np.inf, X), {"impute": "mean"}, "column 2 holds infinity"),
    "beyond float32": (X.astype(float) * 1e300, {}, "column 0 holds infinity"),
    "text": (np.where([0, 1, 0], "male", X.astype(str)), {}, "column 1 holds 'male', it must"),
    "pixel": (np.where(np.arange(75).reshape(5, 5, 3) == 7, np.nan, np.ones((40, 5, 5, 3))), {},
              r"entry \[0, 2, 1\] holds NaN"),
    "complex": (X.astype(complex), {}, "x_train=complex128.*must be numbers"),
    "no columns": (X[:, :0], {}, r"x_train=\(30, 0\).*has no columns"),
    "unknown way": (X, {"impute": "mode"}, r"impute='mode'\): must be one of mean, median, zero"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_INPUTS)
def test_inputs_that_are_refused_are_named(name):
    x, options, message = REFUSED_INPUTS[name]
    with pytest.raises(ValueError, match=message) as error:
        halves(x, Y, **options)
    assert "\n" not in str(error.value)


def test_train_and_test_that_do_not_belong_together_are_refused():
    images = np.zeros((40, 5, 5), np.uint8)
    for x_test, y_test, message in (
        (X[:, :2], Y, r"x_test=\[40, 2\].*shape of those of x_train, \[3\]"),
        (X[:0], Y[:0], r"y_test=\(0,\)\): has no rows"),
        (X[:0], Y, r"x_test=\(0, 3\)\): has no rows"),
        (X, Y[:9], r"y_test=\[9\]\): must be as long as x_test, 40"),
    ):
        with pytest.raises(ValueError, match=message):
            from_arrays(X, Y, x_test, y_test)
    with pytest.raises(ValueError, match="x_train is uint8, and uint8 images are scaled"):
        from_arrays(images, Y, images / 255, Y)
    with pytest.raises(ValueError, match=r"x_train\): no array: .*inhomogeneous.*one shape"):
        from_arrays([[1.0], [1.0, 2.0]], [0, 1], X, Y)
    mixed = from_arrays(np.arange(80).reshape(40, 2), Y, np.ones((40, 2)), Y)
    assert mixed.train[0].dtype == mixed.test[0].dtype == torch.float32


def test_keys_are_one_sortable_value_a_row():
    keys = np.array(list("abcdefghij") * 3)
    assert halves(X, Y, keys=keys[:, None]).names == tuple("abcdefghij")
    for wrong, message in (
        (keys[:7], r"keys=\[7\]"),
        (np.stack([keys, keys], 1), r"keys=\[30, 2\]"),
        (np.where(keys == "a", np.nan, 1.0), "3 of 30 keys are missing"),
        (np.array([None, *keys[1:]], object), "keys=object.*Make all keys text"),
    ):
        with pytest.raises(ValueError, match=message):
            halves(X, Y, keys=wrong)


def test_arrays_in_any_memory_give_the_same_dataset():
    plain = halves(X, Y)
    frozen = X.copy()
    frozen.flags.writeable = False
    masked = np.ma.masked_array(X, np.zeros(X.shape, bool))
    backwards = np.ascontiguousarray(X[::-1])[::-1]
    forms = [X.tolist(), X.astype(">f8"), torch.tensor(X, requires_grad=True), frozen, masked]
    for x in (*forms, backwards, np.asfortranarray(X)):
        assert torch.equal(halves(x, Y).train[0], plain.train[0])
    holes = np.ma.masked_array(X, X < 0)
    with pytest.raises(ValueError, match="holds NaN"):
        halves(holes, Y)
    assert halves(torch.tensor(X).bfloat16(), Y).train[0].dtype == torch.float32


def test_a_dataset_is_checked_however_it_is_made():
    x, y = torch.ones(4, 2), torch.tensor([0, 1, 2, 0])
    nan = x.clone()
    nan[3, 1] = float("nan")
    for train, test, num_classes, keys, message in (
        ((nan, y), (x, y), 3, None, r"Dataset\(x_train\): column 1 holds NaN in 1 of 4 rows"),
        ((x, y), (nan, y), 3, None, r"Dataset\(x_test\)"),
        ((x, y), (x, y), 2, None, r"Dataset\(y_train=0 to 2\): classes must be 0 to 1"),
        ((x, y - 1), (x, y), 3, None, r"Dataset\(y_train=-1 to 1\)"),
        ((x, y), (x, y), 0, None, "must be floats of a regression"),
        ((x, y.float()), (x, y.float()), 3, None, "must be 3 classes"),
        ((x, nan[:, 1]), (x, x[:, 1]), 0, None, r"Dataset\(y_train\): holds NaN"),
        ((x, y[:3]), (x, y), 3, None, r"y_train=\[3\]\): must be as long as x_train, 4"),
        ((x, y), (x[:0], y[:0]), 3, None, "have a row"),
        ((x, y), (x[:, :1], y), 3, None, r"x_test=\[4, 1\]"),
        ((x, y), (x, y), 3, np.arange(3), r"keys=\[3\]\): must be one per training row, 4"),
    ):
        with pytest.raises(ValueError, match=message):
            Dataset(train, test, num_classes, keys)


def test_torch_datasets_with_odd_rows():
    class Rows:
        def __init__(self, *rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            return self.rows[i]

    good = Rows((X[0], "yes"), (X[1].tolist(), "no"), (torch.tensor(X[2]), "yes"))
    data = from_torch(good, good)
    assert data.class_names == ("no", "yes")
    assert data.train[1].tolist() == [1, 0, 1]
    values = Rows(*((x, torch.tensor(v)) for x, v in zip(X, VALUES, strict=True)))
    assert from_torch(values, values).num_classes == 0
    for rows, message in (
        ((), r"from_torch\(train=\[0\]\): must have rows"),
        ((X[0], X[1]), r"from_torch\(train=\[2\]\)"),
        (((X[0], 1), (X[0, :2], 1)), "all input arrays must have the same shape"),
    ):
        with pytest.raises(ValueError, match=message):
            from_torch(Rows(*rows), good)


def test_options_reach_an_archive_and_no_known_dataset(tmp_path):
    path = str(tmp_path / "own.npz")
    x = missing()
    np.savez(path, x_train=x[:30], y_train=Y[:30] / 1, x_test=x[30:], y_test=Y[30:] / 1)
    with pytest.raises(ValueError, match="may be classes or values"):
        load(path)
    with pytest.raises(ValueError, match="--impute"):
        load(path, targets="classes")
    config = Config(dataset=path, impute="median", targets="classes", num_clients=3)
    assert app.dataset_of(config).num_classes == 4
    assert len(app.partition_of(config)) == 3
    app.check_model(config)
    with pytest.raises(ValueError, match=r"load\(impute='mean'\): digits needs no choice"):
        load("digits", impute="mean")
    with pytest.raises(ValueError, match=r"load\(targets='values'\)"):
        load("digits", targets="values")
