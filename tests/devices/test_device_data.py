"""A device's data fit what the server describes, or the device says what to do."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedexp.config import Config
from fedexp.datasets import data
from fedexp.devices.data_description import DataDescription, description_of
from fedexp.devices.device_data import read_device_data
from fedexp.devices.server_app import description
from fedexp.devices.told import own_context
from fedexp.factories import dataset_of

NUMBERS = DataDescription((2,), num_classes=2)
TABLE = DataDescription(
    (3,), num_classes=2, class_names=("no", "yes"), columns=("age", "sex=f", "sex=m"), target="sick"
)


def npz(path: Path, **arrays: object) -> Path:
    np.savez(path / "mine.npz", **arrays)  # type: ignore[arg-type]
    return path / "mine.npz"


def test_arrays_are_read_in_the_order_in_which_they_are_stored(tmp_path):
    x, y = np.arange(8.0).reshape(4, 2), np.array([0, 1, 1, 0])
    read = read_device_data(npz(tmp_path, x=x, y=y), NUMBERS)
    assert read.train[0].tolist() == x.tolist()
    assert read.train[1].dtype == np.int64
    assert read.test is read.train


def test_a_device_has_test_rows_of_its_own(tmp_path):
    x, y = np.zeros((4, 2)), np.array([0, 1, 1, 0])
    file = npz(tmp_path, x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
    read = read_device_data(file, NUMBERS)
    assert read.has_test
    assert len(read.test[1]) == 1


def test_numbers_are_standardised_as_the_server_says(tmp_path):
    described = DataDescription((2,), num_classes=2, mean=(1.0, 0.0), std=(2.0, 4.0))
    read = read_device_data(npz(tmp_path, x=[[3.0, 8.0]], y=[1]), described)
    assert read.train[0].tolist() == [[1.0, 2.0]]


def test_bytes_of_images_are_scaled_and_their_channels_come_first(tmp_path):
    x = np.full((2, 4, 5, 3), 255, np.uint8)
    read = read_device_data(npz(tmp_path, x=x, y=[0, 1]), DataDescription((3, 4, 5), num_classes=2))
    assert read.train[0].shape == (2, 3, 4, 5)
    assert read.train[0].max() == 1.0


@pytest.mark.parametrize(
    ("arrays", "described", "reason"),
    [
        ({"x": np.zeros((2, 3)), "y": [0, 1]}, NUMBERS, r"shape \[3\], the model takes \[2\]"),
        ({"x": np.zeros((2, 2)), "y": [0, 2]}, NUMBERS, "knows classes 0 to 1"),
        ({"x": np.zeros((2, 2)), "y": [0.5, 1]}, NUMBERS, "knows classes 0 to 1"),
        ({"x": np.zeros((2, 2)), "y": ["a", "b"]}, NUMBERS, "classes are text such as 'a'"),
        ({"x": np.zeros((3, 2)), "y": [0, 1]}, NUMBERS, "3 inputs and 2 targets"),
        ({"x": np.full((2, 2), np.nan), "y": [0, 1]}, NUMBERS, "NaN or infinity"),
        ({"x": np.zeros((2, 2)), "y": np.zeros((2, 2))}, NUMBERS, "one per row"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, NUMBERS, "no rows to train on"),
        ({"x": np.array([["a", "b"]]), "y": [0]}, NUMBERS, "inputs are <U1"),
        ({"x": np.zeros((1, 2)), "y": [np.inf]}, DataDescription((2,)), "targets hold NaN"),
        ({"x": np.zeros((1, 2)), "y": ["a"]}, DataDescription((2,)), "the model learns values"),
        ({"a": np.zeros(3)}, NUMBERS, "has no array 'x'"),
        (
            {"x": np.zeros((1, 2)), "y": [0]},
            DataDescription((2,), "int64", 2),
            "inputs are float64, the model takes int64",
        ),
        (
            {"x": np.zeros((1, 2)), "y": ["maybe"]},
            DataDescription((2,), num_classes=2, class_names=("no", "yes")),
            "'maybe' is none of the classes that the model knows: no, yes",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, described, reason):
    with pytest.raises(ValueError, match=reason):
        read_device_data(npz(tmp_path, **arrays), described)


def test_a_table_becomes_the_features_that_the_model_was_made_for(tmp_path):
    (tmp_path / "a.csv").write_text("sex,sick,age,id\nf,yes,41,x\nm,no,7,y\n")
    (tmp_path / "b.csv").write_text("age;sick;sex\n9;no;other\n")
    read = read_device_data(tmp_path, TABLE)
    assert read.train[0].tolist() == [[41, 1, 0], [7, 0, 1], [9, 0, 0]]
    assert read.train[1].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sex,sick\nf,yes\n", "has no column 'age', which the model takes"),
        ("sex,age\nf,3\n", "has no column 'sick', which is to be learned"),
        ("sex,age,sick\nf,,yes\n", "column 'age' has no value in line 2"),
        ("sex,age,sick\nf,old,yes\n", "could not convert string to float: 'old'"),
        ("sex,age,sick\nf,3\n", "line 2 has not 3 cells"),
        ("sex,age,sick\nf,3,maybe\n", "'maybe' is none of the classes"),
        ("sex,age,sick\n", "no rows to train on"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, text, reason):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_device_data(tmp_path / "a.csv", TABLE)


def test_a_table_for_a_model_without_names_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b,y\n1,2,0\n")
    with pytest.raises(ValueError, match=r"Save x and y with numpy.savez"):
        read_device_data(tmp_path / "a.csv", NUMBERS)


def test_a_description_made_of_a_dataset_reads_the_same_table_alike(tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "train.csv").write_text(
        "sex,sick,age\n" + "\n".join(f"{'fm'[i % 2]},{'yn'[i % 3 == 0]},{i}" for i in range(20))
    )
    theirs = data(str(tmp_path / "train.csv"), target="sick", test=0.2)
    described = description_of(theirs, target="sick")
    assert DataDescription.of_text(described.text()) == described
    ours = read_device_data(tmp_path / "train.csv", described)
    both = np.concatenate([theirs.train[0].numpy(), theirs.test[0].numpy()])
    age = described.columns.index("age")
    assert sorted(map(tuple, ours.train[0].tolist())) == sorted(map(tuple, both.tolist()))
    assert set(ours.train[0][:, age]) == set(range(20))


def test_images_lie_in_a_folder_per_class(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, level in (("cat", 0), ("dog", 255)):
        (tmp_path / name).mkdir()
        image.fromarray(np.full((8, 8), level, np.uint8)).save(tmp_path / name / "1.png")
    described = DataDescription((1, 4, 4), num_classes=2, class_names=("cat", "dog"))
    read = read_device_data(tmp_path, described)
    assert read.train[0].shape == (2, 1, 4, 4)
    assert read.train[0][:, 0, 0, 0].tolist() == read.train[1].tolist()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", '{"shape": [0]}', '{"shape": [2], "columns": ["a"]}'),
        *('{"shape": [2], "x": 1}', '{"shape": [2], "std": [0, 1]}', '{"shape": 3}'),
        *('{"shape": [99999999, 99999999]}', '{"shape": [2], "dtype": "O"}'),
        '{"shape": [2], "num_classes": 2, "class_names": ["a"]}',
    ],
)
def test_a_description_that_contradicts_itself_is_refused(text):
    with pytest.raises(ValueError, match=r"data-description|DataDescription"):
        DataDescription.of_text(text)


def test_a_server_that_says_nothing_is_told_so():
    with pytest.raises(ValueError, match="does not describe the data"):
        DataDescription.of_settings({})


@pytest.mark.parametrize("key", ["model", "local-optimizer", "metrics"])
def test_a_server_may_not_choose_code_of_the_device(key):
    content = RecordDict({"config": ConfigRecord({key: "os:system"})})
    context = Context(1, 7, {}, RecordDict(), {})
    with pytest.raises(ValueError, match="a server may not choose which code"):
        own_context(Message(content, 7, "train"), context)


def test_devices_standardise_as_the_server_standardises_its_own_rows(tmp_path):
    file = tmp_path / "rows.csv"
    ages = np.random.default_rng(1).normal(50.0, 20.0, 30).tolist()
    rows = [f"{age},{'mf'[i % 2]},7,{'yn'[i % 3 == 0]}" for i, age in enumerate(ages)]
    file.write_text("\n".join(["age,sex,always,sick", *rows]))
    keys = {"data": str(file), "target": "sick", "standardize": True, "model": "linear"}
    config = Config.of(keys)
    described = DataDescription.of_text(description(config))
    inputs = dataset_of(config).train[0].numpy(), dataset_of(config).test[0].numpy()
    theirs, mine = np.concatenate(inputs), read_device_data(file, described).train[0]
    assert abs(theirs[:, 0]).max() < 5.0
    assert np.sort(mine, axis=0) == pytest.approx(np.sort(theirs, axis=0), abs=1e-6)
