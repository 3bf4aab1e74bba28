"""Folders of images and saved datasets of a user's own."""

import numpy as np
import pytest
import torch

from fedexp.datasets import data, from_files

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
CLASSES = ("cat", "dog")


def pictures(folder, *, clients=("",), number=4, mode="RGB", size=(6, 5), suffix="png", **options):
    """``number`` images per class and client; the mean of each tells its class and client."""
    for i, client in enumerate(clients):
        for k, name in enumerate(CLASSES):
            own = folder / client / name
            own.mkdir(parents=True, exist_ok=True)
            for j in range(number):
                value = 100 * k + 20 * i + j
                Image.new("RGB", size, (value,) * 3).convert(mode).save(
                    own / f"{j}.{suffix}", **options
                )
    return folder


def refused(source, **options):
    with pytest.raises(ValueError, match=r"\.") as caught:
        data(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith(".")
    return line


def values_and_labels(pair):
    x, y = pair
    return sorted(zip((x.flatten(1).mean(1) * 255).round().int().tolist(), y.tolist(), strict=True))


@pytest.mark.parametrize(
    ("mode", "suffix", "channels"),
    [("RGB", "png", 3), ("L", "png", 1), ("RGBA", "png", 3), ("P", "png", 3), ("1", "png", 1),
     ("RGB", "bmp", 3), ("L", "tif", 1), ("RGB", "webp", 3)],
)  # fmt: skip
def test_a_folder_per_class_is_a_dataset(mode, suffix, channels, tmp_path):
    options = {"lossless": True} if suffix == "webp" else {}
    found = data(pictures(tmp_path, mode=mode, suffix=suffix, **options))
    assert found.train[0].shape[1:] == (channels, 5, 6)
    assert found.class_names == CLASSES
    assert len(found.test[1]) == 2  # a fifth of 8
    if mode not in ("1", "P"):  # these have other shades
        both = values_and_labels(found.train) + values_and_labels(found.test)
        assert sorted(both) == [(100 * k + j, k) for k in range(2) for j in range(4)]


def test_one_image_in_colour_makes_all_three_channels(tmp_path):
    pictures(tmp_path, mode="L")
    Image.new("RGB", (6, 5), (9, 0, 0)).save(tmp_path / "cat" / "red.png")
    found = data(tmp_path)
    both = torch.cat([found.train[0], found.test[0]])
    assert both.shape == (9, 3, 5, 6)
    is_red = both[:, 0, 0, 0].mul(255).round() == 9
    assert both[is_red].sum((2, 3)).mul(255).round().tolist() == [[270, 0, 0]]
    assert (both[~is_red][:, 0] == both[~is_red][:, 2]).all()


def test_folders_of_clients_stand_above_those_of_the_classes(tmp_path):
    found = data(pictures(tmp_path, clients=("ann", "bob")), client="folder")
    assert found.names == ("ann", "bob")
    for (x, y), keys in ((found.train, found.keys), (found.test, found.test_keys)):
        value = x.flatten(1).mean(1).mul(255).round() - 100 * y
        assert ((value >= 20) == torch.from_numpy(keys == 1)).all()
    assert found.class_names == CLASSES


def test_train_and_test_folders_are_taken_as_they_are(tmp_path):
    pictures(tmp_path / "train", clients=("ann", "bob"))
    pictures(tmp_path / "test", clients=("bob", "eve"), number=1)
    found = from_files(str(tmp_path), client_from="folder")
    assert [len(found.train[1]), len(found.test[1])] == [16, 4]
    assert found.names == ("ann", "bob")
    assert found.test_keys.tolist() == [1, 1, -1, -1]
    assert "the source has a test set" in refused(tmp_path, client="folder", test=0.3)
    apart = data(tmp_path / "train", test=tmp_path / "test", client="folder")
    assert torch.equal(apart.test[0], found.test[0])


def test_a_class_of_the_test_folder_alone_gets_a_number_of_its_own(tmp_path):
    pictures(tmp_path / "train")
    pictures(tmp_path / "test")
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "ant")
    found = data(tmp_path)
    assert found.class_names == ("cat", "dog", "ant")
    assert sorted(set(found.test[1].tolist())) == [1, 2]


def test_what_a_computer_hides_is_no_class(tmp_path):
    pictures(tmp_path / "photos")
    pictures(tmp_path / "photos" / ".cache")
    pictures(tmp_path / "photos" / "cat" / ".ipynb_checkpoints")
    assert data(tmp_path / "photos").class_names == CLASSES


def test_folders_that_say_too_little_or_too_much_are_refused(tmp_path):
    for part in ("train", "val", "test"):
        pictures(tmp_path / "three" / part)
    line = refused(tmp_path / "three", client="folder")
    assert "holds test, train, val. Leave train and test alone there" in line
    assert "Leave out client='folder'" in refused(pictures(tmp_path / "two"), client="folder")


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    pictures(tmp_path)
    (tmp_path / "cat").rename(tmp_path / "10")
    (tmp_path / "dog").rename(tmp_path / "9")
    assert data(tmp_path).class_names == ("9", "10")


def test_images_of_any_size_are_scaled(tmp_path):
    pictures(tmp_path / "a", size=(6, 5))
    big = pictures(tmp_path / "b", size=(60, 40), suffix="jpg", quality=95)
    (big / "cat").rename(tmp_path / "a" / "big")
    found = from_files(str(tmp_path / "a"), image_size=8)
    assert found.train[0].shape[1:] == (3, 8, 8)
    line = refused(tmp_path / "a")
    assert "a/cat/0.png: is 6 x 5 pixels, " in line
    assert "a/big/0.jpg is 60 x 40. Scale all with image_size=32 (--image-size 32)." in line


def test_a_pattern_names_images_too(tmp_path):
    pictures(tmp_path)
    (tmp_path / "dog" / "extra.jpg").write_bytes(b"no image")
    assert data(f"{tmp_path}/*/*.png").class_names == CLASSES


def test_an_image_lies_as_its_camera_was_held(tmp_path):
    pictures(tmp_path, size=(5, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (6, 5)).save(tmp_path / "cat" / "turned.png", exif=exif)
    assert data(tmp_path).train[0].shape[1:] == (3, 6, 5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("damaged", "dog/x.png: expected an image of 8 bits"),
        ("deep", "dog/x.png: expected an image of 8 bits, found ValueError('an image of mode I;16"),
        ("loose", "loose.png: must lie in"),
        ("one class", "all rows are of one class, 'cat'"),
    ],
)
def test_images_that_are_refused_are_named(name, said, tmp_path):
    pictures(tmp_path)
    if name == "damaged":
        (tmp_path / "dog" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    elif name == "deep":
        Image.fromarray(np.ones((5, 6), np.uint16)).save(tmp_path / "dog" / "x.png")
    elif name == "loose":
        Image.new("RGB", (6, 5)).save(tmp_path / "loose.png")
    else:
        for file in (tmp_path / "dog").iterdir():
            file.unlink()
    assert said in refused(tmp_path)


def test_clients_that_are_not_said_are_asked_for(tmp_path):
    pictures(tmp_path, clients=("ann", "bob"))
    assert "Say client='folder' (--client-from folder)" in refused(tmp_path)
    assert "of images it must be 'folder'" in refused(tmp_path, client="file")
    assert "data(target='x'): images has no use for it" in refused(
        tmp_path, client="folder", target="x"
    )
    assert "must lie in" in refused(tmp_path / "ann", client="folder")


# --- Hugging Face datasets, in memory and saved.


@pytest.fixture
def hf():
    return pytest.importorskip("datasets")


@pytest.fixture
def people(hf):
    features = hf.Features(
        {
            "age": hf.Value("float64"),
            "sex": hf.ClassLabel(names=["m", "f"]),
            "town": hf.Value("string"),
            "sick": hf.ClassLabel(names=["yes", "no", "perhaps"]),
        }
    )
    columns = {
        "age": RNG.normal(50, 9, 40),
        "sex": RNG.integers(0, 2, 40),
        "town": np.array(["x", "y"])[np.arange(40) % 2],
        "sick": np.arange(40) // 2 % 2,
    }
    return hf.Dataset.from_dict(columns, features=features)


def test_a_table_in_memory_and_saved_is_the_same_dataset(hf, people, tmp_path):
    people.save_to_disk(str(tmp_path / "one"))
    hf.DatasetDict({"train": people}).save_to_disk(str(tmp_path / "split"))
    expected = data(people, target="sick", client="town", standardize=True)
    assert expected.class_names == ("yes", "no", "perhaps")
    assert expected.num_classes == 3
    assert expected.columns == ("age", "sex=f", "sex=m")
    assert expected.names == ("x", "y")
    ages = dict(zip(people["age"], people["sick"], strict=True))
    plain = data(people, target="sick", client="town")
    for x, y in zip(plain.train[0][:, 0], plain.train[1], strict=True):
        assert ages[min(ages, key=lambda age, x=x: abs(age - float(x)))] == y
    for path in ("one", "split"):
        found = from_files(
            str(tmp_path / path), target="sick", client_from="column:town", standardize=True
        )
        assert torch.equal(found.train[0], expected.train[0])
        assert torch.equal(found.test[1], expected.test[1])
        assert found.class_names == expected.class_names


def test_a_test_split_is_taken_as_it_is(hf, people, tmp_path):
    splits = hf.DatasetDict(
        {"train": people.select(range(30)), "test": people.select(range(30, 40))}
    )
    splits.save_to_disk(str(tmp_path / "both"))
    for source in (splits, tmp_path / "both", (splits["train"], splits["test"])):
        found = data(source, target="sick", client="town")
        assert [len(found.train[1]), len(found.test[1])] == [30, 10]
        assert found.test[1].tolist() == people["sick"][30:]
    assert "the source has a test set" in refused(splits, target="sick", test=0.5)


@pytest.mark.parametrize("extra", [False, True])
def test_saved_images_are_scaled_and_have_clients(hf, extra, tmp_path):
    features = {"image": hf.Image(), "label": hf.ClassLabel(names=list(CLASSES))}
    sizes = [(6, 5) if i % 2 else (7, 5) for i in range(20)]
    columns = {
        "image": [Image.new("RGB", size, (10 * i, 0, 0)) for i, size in enumerate(sizes)],
        "label": np.arange(20) // 10,
        "writer": [f"w{i % 4}" for i in range(20)],
    }
    features["writer"] = hf.Value("string")
    if extra:
        columns["id"], features["id"] = list(range(20)), hf.Value("int64")
    table = hf.Dataset.from_dict(columns, features=hf.Features(features))
    table.save_to_disk(str(tmp_path / "saved"))
    drop = "id" if extra else ""
    found = from_files(
        str(tmp_path / "saved"), client_from="column:writer", image_size=4, drop=drop
    )
    assert found.train[0].shape[1:] == (3, 4, 4)
    assert found.names == ("w0", "w1", "w2", "w3")
    assert found.class_names == CLASSES
    red = found.train[0][:, 0].mean((1, 2)).mul(25.5).round()
    assert ((red >= 10) == found.train[1].bool()).all()
    options = {"client": "writer", "drop": ["id"] * extra}
    assert "row 1: is 6 x 5 pixels, row 0 is 7 x 5" in refused(table, **options)
    columns["image"][2] = None
    table = hf.Dataset.from_dict(columns, features=hf.Features(features))
    assert "row 2: has no image. Leave such rows out" in refused(table, **options)


def test_a_saved_dataset_that_is_damaged_is_named(hf, people, tmp_path):
    people.save_to_disk(str(tmp_path / "one"))
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"no arrow")
    hf.DatasetDict({"train": people}).save_to_disk(str(tmp_path / "split"))
    (tmp_path / "split" / "dataset_dict.json").write_text("{")
    for name in ("one", "split"):
        line = refused(tmp_path / name, target="sick")
        assert f"{name}: expected a dataset that save_to_disk wrote" in line


def test_columns_of_a_saved_dataset_that_are_not_there_are_named(hf, people, tmp_path):
    people.save_to_disk(str(tmp_path / "saved"))
    line = refused(tmp_path / "saved", target="sik")
    assert "Did you mean 'sick'? Columns: 'age', 'sex', 'town', 'sick'" in line
    assert "2 columns hold classes. Name one of" in refused(people)
    for none in (-1, None):
        sick = [none] * 3 + people["sick"][3:]
        columns = {**people.to_dict(), "sick": sick}
        unknown = hf.Dataset.from_dict(columns, features=people.features)
        assert "target='sick'): 3 of 40 rows have no value there" in refused(unknown, target="sick")
    lists = people.add_column("words", [[1, 2]] * 40)
    assert "(drop, remove_columns)" in refused(lists, target="sick")
    tokens = data(lists, target="sick", drop=["age", "sex", "town"])
    assert tokens.train[0].dtype == torch.int64
    assert tokens.train[0][0].tolist() == [1, 2]
