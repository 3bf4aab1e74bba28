"""A user's own data in whatever form: the right dataset, or one line that says what to do."""

import gzip

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedexp.datasets import Dataset, by_key, data, from_files, load
from fedexp.datasets.holdout import own_test_rows, stratified
from fedexp.datasets.partition import names_of

pd = pytest.importorskip("pandas")
RNG = np.random.default_rng(0)
N = 60
FRAME = pd.DataFrame(
    {
        "age": RNG.integers(20, 80, N),
        "weight": RNG.normal(70, 10, N),
        "sex": np.array(["m", "f"])[RNG.integers(0, 2, N)],
        "smokes": RNG.integers(0, 2, N).astype(bool),
        "hospital": np.repeat(["b", "a", "c"], [30, 20, 10]),
        "sick": np.array(["no", "yes"])[RNG.integers(0, 2, N)],
    }
)


def refused(source, **options):
    with pytest.raises(ValueError, match=r"\.") as caught:
        data(source, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith(".")
    return line


def all_rows(dataset):
    """Rows of both sets as tuples, in any order."""
    pairs = dataset.train, dataset.test
    return sorted(
        (*x.flatten().tolist(), float(y)) for a, b in pairs for x, y in zip(a, b, strict=True)
    )


def same(one, other):
    for (x, y), (a, b) in ((one.train, other.train), (one.test, other.test)):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    assert one.class_names == other.class_names
    assert one.names == other.names


# --- The held-out rows.

groups = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=60)


@given(groups, st.floats(0.05, 0.95), st.integers(0, 9))
def test_the_share_held_out_is_that_of_each_client_and_class(rows, fraction, seed):
    keys, labels = np.array(rows).T
    keys = np.unique(keys, return_inverse=True)[1]
    mask = stratified(keys, labels, fraction, seed)
    assert np.array_equal(mask, stratified(keys, labels, fraction, seed))
    for client in range(keys.max() + 1):
        own = keys == client
        assert own.sum() - mask[own].sum() > 0
        assert mask[own].any() or own.sum() == 1
        forced = mask[own].sum() in (1, own.sum() - 1)
        assert abs(mask[own].sum() - fraction * own.sum()) < 1 or forced
        for label in set(labels[own]):
            block = own & (labels == label)
            assert abs(mask[block].sum() - fraction * block.sum()) < 1 or forced


def test_small_clients_hold_out_every_class_alike():
    keys, labels = np.arange(4_000) // 4, np.arange(4_000) % 4
    held = np.bincount(labels[stratified(keys, labels, 0.25, 0)])
    assert held.sum() == 1_000
    assert held.min() > 200  # a fixed phase would take the same class of every client


def test_the_seed_moves_the_held_out_rows_and_nothing_else():
    one, other = (data(FRAME, target="sick", client="hospital", seed=s) for s in (0, 1))
    assert not torch.equal(one.test[0], other.test[0])
    assert all_rows(one) == all_rows(other)
    same(one, data(FRAME, target="sick", client="hospital"))


def test_a_fraction_of_nothing_is_refused():
    for share in (0, 1, 1.5, -0.1):
        assert "must be a fraction in (0, 1)" in refused(FRAME, target="sick", test=share)
    alone = FRAME.assign(hospital=np.arange(N))
    assert "no client has two rows" in refused(alone, target="sick", client="hospital")


# --- Tables.


def test_a_table_becomes_numbers_with_readable_names():
    found = data(FRAME, target="sick", client="hospital", test=0.25)
    assert found.columns == ("age", "weight", "sex=f", "sex=m", "smokes")
    assert found.class_names == ("no", "yes")
    assert found.names == ("a", "b", "c")
    assert np.abs(np.bincount(found.test_keys) - [5, 7.5, 2.5]).max() < 1  # a quarter of each
    assert len(found.keys) == len(found.train[0]) == 45
    expected = pd.get_dummies(
        FRAME[["age", "weight", "sex", "smokes"]], prefix_sep="=", dtype=float
    )
    expected = expected[list(found.columns)].astype(np.float32).assign(y=FRAME["sick"] == "yes")
    assert all_rows(found) == sorted(map(tuple, expected.astype(float).to_numpy().tolist()))


def test_rows_stay_together_with_their_client():
    table = FRAME.assign(weight=FRAME["hospital"].map({"a": 1.0, "b": 2.0, "c": 3.0}))
    found = data(table, target="sick", client="hospital")
    for (x, _), keys in ((found.train, found.keys), (found.test, found.test_keys)):
        assert (x[:, 1] == torch.from_numpy(keys) + 1).all()


def test_the_same_table_in_any_form_is_the_same_dataset(tmp_path):
    expected = data(FRAME, target="sick", client="hospital")
    shuffled = FRAME.set_index(np.arange(N) % 7)  # an index that repeats
    nullable = FRAME.convert_dtypes()
    objects = FRAME.astype(object)
    categories = FRAME.astype({"sex": "category", "sick": "category", "hospital": "category"})
    forms = [dict(FRAME), {k: v.tolist() for k, v in FRAME.items()}, shuffled, nullable]
    for form in (*forms, objects, categories, FRAME.astype(str)):
        same(data(form, target="sick", client="hospital"), expected)
    arrow = pytest.importorskip("pyarrow")
    same(data(arrow.Table.from_pandas(FRAME), target="sick", client="hospital"), expected)
    same(data(FRAME.drop(columns="hospital"), target="sick", client=FRAME["hospital"]), expected)


CSVS = {
    "plain": {},
    "semicolons": {"sep": ";"},
    "tabs": {"sep": "\t"},
    "bars": {"sep": "|"},
    "byte order mark": {"encoding": "utf-8-sig"},
    "quotes": {"quoting": 1},
    "decimal commas": {"sep": ";", "decimal": ","},
    "semicolons and points": {"sep": ";"},
    "with its index": {"index": True},
    "windows": {"lineterminator": "\r\n"},
}


@pytest.mark.parametrize("name", CSVS)
def test_csv_files_of_every_dialect_hold_the_same_table(name, tmp_path):
    table = FRAME.rename(columns={"weight": "weight, kg"}) if name == "quotes" else FRAME
    table.to_csv(tmp_path / "all.csv", **({"index": False} | CSVS[name]))
    found = from_files(str(tmp_path / "all.csv"), target="sick", client_from="column:hospital")
    same(found, data(FRAME, target="sick", client="hospital"))


def hospitals(folder, table=FRAME, suffix=".csv"):
    folder.mkdir(exist_ok=True)
    for name, part in table.groupby("hospital"):
        part.drop(columns="hospital").to_csv(folder / f"{name}{suffix}", index=False)
    return folder


def test_each_file_is_a_client_by_its_name(tmp_path):
    expected = data(FRAME.sort_values("hospital", kind="stable"), target="sick", client="hospital")
    hospitals(tmp_path / "plain")
    hospitals(tmp_path / "packed", suffix=".csv.gz")
    for path in ("plain", "plain/*.csv", "*/*.csv.gz"):
        same(data(tmp_path / path, target="sick", client="file"), expected)
    for name in "abc":
        (tmp_path / "nested" / name).mkdir(parents=True)
        (tmp_path / "plain" / f"{name}.csv").rename(tmp_path / "nested" / name / "patients.csv")
    same(data(tmp_path / "nested", target="sick", client="folder"), expected)
    found = data(tmp_path / "nested", target="sick", client="file")
    assert found.names == ("a/patients", "b/patients", "c/patients")
    assert data(tmp_path / "nested", target="sick").names == ()


def test_columns_mean_the_same_in_all_files(tmp_path):
    """One file's numbers are text if another file has text there, as they are written."""
    (tmp_path / "a.csv").write_text("code,x,y\n01,1,0\n02,2,1\n" * 1)
    (tmp_path / "b.csv").write_text("y,x,code\n0,3,01\n1,4,X\n")
    found = data(tmp_path, target="y", test={"code": ["01"], "x": [1], "y": [0]})
    assert found.columns == ("code=01", "code=02", "code=X", "x")
    assert found.train[0].tolist() == [[1, 0, 0, 1], [0, 1, 0, 2], [1, 0, 0, 3], [0, 0, 1, 4]]


def test_one_hot_impute_and_standardize_are_those_of_scikit_learn():
    pytest.importorskip("sklearn")
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    table = FRAME.assign(constant=0.1)
    table.loc[::7, "weight"] = np.nan
    table.loc[::9, "sex"] = None
    train, test = table[:40], table[40:].assign(sex="unheard of")
    numbers = ["age", "weight", "constant"]
    for how, strategy in (("median", "median"), ("mean", "mean"), ("zero", "constant")):
        found = data(
            train, target="sick", client="hospital", test=test, impute=how, standardize=True
        )
        fill = SimpleImputer(strategy=strategy, fill_value=0)
        scale, levels = StandardScaler(), OneHotEncoder(handle_unknown="ignore")
        scale.fit(fill.fit_transform(train[numbers]))
        levels.fit(train[["sex"]].fillna("missing"))
        at = [found.columns.index(name) for name in numbers]
        sexes = [found.columns.index(f"sex={name}") for name in levels.categories_[0]]
        assert found.columns[min(sexes) : max(sexes) + 1] == ("sex=f", "sex=m", "sex=missing")
        for (x, _), part in ((found.train, train), (found.test, test)):
            expected = scale.transform(fill.transform(part[numbers]))
            assert np.allclose(x[:, at], expected, atol=1e-6)
            expected = levels.transform(part[["sex"]].fillna("missing")).toarray()
            assert np.array_equal(x[:, sexes], expected)


@pytest.mark.parametrize("missing", [None, np.nan, "?", "", " NA ", "null", pd.NA])
def test_a_missing_value_in_any_form_is_found_and_filled_in(missing):
    table = FRAME.astype(object)
    table.loc[3, "age"] = table.loc[5, "age"] = table.loc[7, "sex"] = missing
    line = refused(table, target="sick", client="hospital")
    assert "column 'age' has no value in 2 of 60 rows, and so have 'sex' (1)" in line
    assert "--impute median" in line
    assert "--drop age,sex" in line
    found = data(table, target="sick", client="hospital", impute="median")
    assert found.train[0].isfinite().all()
    assert set(found.columns) - {"sex=missing"} == {"age", "weight", "sex=f", "sex=m", "smokes"}
    dropped = data(table, target="sick", client="hospital", drop=["age", "sex"])
    assert dropped.columns == ("weight", "smokes")


def test_constant_columns_and_one_training_row_are_harmless():
    table = pd.DataFrame({"x": [0.1] * 9, "z": [5] * 9, "y": [0, 1, 2] * 3})
    found = data(table, target="y", standardize=True)
    assert found.train[0].abs().max() < 1e-6
    assert found.test[0].isfinite().all()


def test_what_standardizing_costs_no_digits():
    """Seconds since 1970 differ by less than float32 holds."""
    x = 1.6e9 + np.arange(40.0)
    found = data((x[:, None], np.arange(40) % 2), standardize=True)
    assert len(torch.unique(torch.cat([found.train[0], found.test[0]]))) == 40


def test_numbers_as_text_and_truth_values_are_numbers():
    table = pd.DataFrame({"a": ["1", " 2.5", "1e3"] * 4, "b": ["TRUE", "false", "True"] * 4})
    found = data(table.assign(y=[0, 1] * 6), target="y")
    assert found.columns == ("a", "b")
    assert set(map(tuple, found.train[0].tolist())) == {(1, 1), (2.5, 0), (1000, 1)}


@pytest.mark.parametrize(
    ("y", "num_classes", "names"),
    [
        (FRAME["sick"], 2, ("no", "yes")),
        (FRAME["sick"] == "yes", 2, ()),
        (np.arange(N) % 3 + 1, 3, ("1", "2", "3")),
        (FRAME["weight"], 0, ()),
    ],
)
def test_a_target_is_a_class_or_a_value_as_everywhere(y, num_classes, names):
    found = data(FRAME.assign(sick=y), target="sick", client="hospital")
    assert (found.num_classes, found.class_names) == (num_classes, names)


REFUSED_TABLES = {
    "no target": ({}, {"target": None}, "must name the column to learn. Columns: 'age', 'weight'"),
    "misspelt": ({}, {"target": "Sik"}, "target='Sik'): there is no such column. Did you mean 'si"),
    "client": ({}, {"client": "hospitl"}, "client='hospitl'): there is no such column. Did you m"),
    "drop": ({}, {"drop": ["agee"]}, "drop='agee'): there is no such column. Did you mean 'age'"),
    "no target there": ({"sick": [None, "no"] * 30}, {}, "target='sick'): 30 of 60 rows have no v"),
    "no client there": ({"hospital": [None, "a"] * 30}, {}, "client='hospital'): 30 of 60 rows"),
    "dates": ({"age": pd.date_range("2020", periods=N)}, {}, "column 'age' holds dates (2020-01"),
    "text dates": ({"age": ["1.2.2020", "03.12.2021"] * 30}, {}, "column 'age' holds dates (03.1"),
    "ids": ({"age": [f"p{i}" for i in range(N)]}, {}, "'age' holds 60 different texts in 60 rows"),
    "typo": ({"age": [*range(59), "6O"]}, {}, "column 'age' holds '6O', in 1 of 60 rows it is no"),
    "a word": ({"age": [*range(12), *range(47), "-"]}, {}, "column 'age' holds '-', in 1 of 6"),
    "spaces": ({"age": ["\u22121\u00a0234", "7"] * 30}, {}, "looks like a number but is none"),
    "case": ({"sick": ["yes", "no", "Yes"] * 20}, {}, "'Yes', 'yes' differ in case alone. Write"),
    "separators": ({"age": ["1.5", "1,234.5"] * 30}, {}, "holds '1,234.5', which looks like a nu"),
    "percent": ({"age": ["7%", "20 %"] * 30}, {}, "holds '20 %', which looks like a number"),
    "large ids": ({"age": 1 << 25}, {}, "column 'age' holds integers beyond 16,777,216, which fl"),
    "categories": ({"age": pd.Categorical(range(N))}, {}, "'age' holds 60 different texts in 60"),
    "lists": ({"age": [[1]] * N}, {}, "column 'age' holds list, must hold numbers or text"),
    "whole floats": ({"sick": [0.0, 1.0] * 30}, {}, "Say targets='classes'"),
    "one class": ({"sick": "no"}, {}, "all targets are no: one class"),
    "impute": ({}, {"impute": "mode"}, "impute='mode'): must be one of"),
    "targets": ({}, {"targets": "labels"}, "targets='labels'): must be one of"),
    "image size": ({}, {"image_size": 8}, "data(image_size=8): a table has no use for it"),
    "whole column": ({"age": np.nan}, {"impute": "mean"}, "column 'age' has no value in the trai"),
    "infinite": ({"weight": np.inf}, {"standardize": True}, "column 'weight' holds infinity"),
    "nothing left": ({}, {"drop": ["age", "weight", "sex", "smokes"]}, "no column is left"),
    "keys": ({}, {"client": np.arange(3)}, "client=[3]): must be one key per row, 60"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_TABLES)
def test_tables_that_are_refused_are_named(name):
    columns, options, said = REFUSED_TABLES[name]
    options = {"target": "sick", "client": "hospital"} | options
    assert said in refused(FRAME.assign(**columns), **options)


def test_categories_of_numbers_are_categories():
    table = FRAME.assign(age=pd.Categorical(np.arange(N) % 11))
    found = data(table, target="sick", client="hospital", drop=["weight", "sex", "smokes"])
    assert set(found.columns) == {f"age={i}" for i in range(11)}
    assert (found.train[0].sum(1) == 1).all()


def test_large_integers_are_scaled_before_they_are_rounded():
    table = FRAME.assign(age=(1 << 40) + np.arange(N))
    found = data(table, target="sick", client="hospital", standardize=True)
    assert len(torch.unique(torch.cat([found.train[0], found.test[0]])[:, 0])) == N


def test_a_column_that_is_there_twice_is_refused():
    twice = pd.concat([FRAME, FRAME[["age"]]], axis=1)
    assert "two columns are called 'age'. Rename one" in refused(twice, target="sick")
    assert "has no rows" in refused(FRAME[:0], target="sick")
    uneven = {"x": [1, 2], "y": [1]}
    assert "one value a row" in refused(uneven, target="y")


def test_a_test_table_of_its_own_is_encoded_as_the_training_rows(tmp_path):
    train, test = FRAME[:40], FRAME[40:]
    expected = data(train, target="sick", client="hospital", test=test)
    assert len(expected.train[0]) == 40
    assert expected.test_keys.tolist() == [0] * 10 + [-1] * 10  # no training row is of c
    train.to_csv(tmp_path / "a.csv", index=False)
    test.iloc[:, ::-1].to_csv(tmp_path / "b.csv", index=False)
    options = {"target": "sick", "client": "hospital"}
    same(data(tmp_path / "a.csv", test=tmp_path / "b.csv", **options), expected)
    same(data((train, test), **options), expected)
    line = refused(train, test=test.drop(columns="age"), **options)
    assert "data(test): lacks 'age'" in line


def test_columns_without_a_name_and_values_are_left_out(tmp_path):
    """A spreadsheet writes them at the end, and a Mac an umlaut as two characters."""
    (tmp_path / "a.csv").write_text("\n\nGr\u00f6\u00dfe;sick;;\n" + "1,5;no;;\n2;yes;;\n" * 3)
    (tmp_path / "b.csv").write_text("sick,Gro\u0308\u00dfe\n" + "no,1.5\nyes,2\n" * 3)
    found = data(tmp_path, target="sick", client="file")
    assert found.columns == ("Gr\u00f6\u00dfe",)
    assert set(found.train[0].flatten().tolist()) == {1.5, 2.0}


def test_levels_that_differ_in_case_alone_are_told(logged):
    found = data(FRAME.assign(sex=["f", "F"] * 30), target="sick", client="hospital", drop="age")
    assert {"sex=F", "sex=f"} < set(found.columns)
    assert any("'F', 'f' differ in case alone" in line for line in logged)


def test_points_that_are_decimal_elsewhere_are_decimal(tmp_path):
    (tmp_path / "a.csv").write_text("dose;age;sick\n" + "1.250;7.5;no\n2;8.25;yes\n" * 3)
    found = data(tmp_path, target="sick")
    assert sorted({*found.train[0][:, 0].tolist()}) == [1.25, 2.0]


# --- CSV files that are no tables.

BAD_CSVS = {
    "empty": (b"", "is empty. Leave it out"),
    "two of a name": (b"age,sick,age \n1,no,2\n", "two columns are called 'age'. Rename one."),
    "its target twice": (b"age,sick,sick\n1,no,no\n", "two columns are called 'sick'. Rename one."),
    "no name": (b"age,,sick\n1,2,no\n", "column 2 has no name. Name it, or remove it."),
    "points": (b"age;sick\n1.200;no\n950;yes\n", "'age' holds 1.200, which may be 1200"),
    "no rows": (b"age,sick\n", "has no rows. Leave it out"),
    "no header": (b"63,0\n41,1\n", "its first line holds numbers, must name the columns"),
    "more cells": (b"age,sick\n1,no\n2,yes,3\n", "Expected 2 fields in line 3, saw 3"),
    "more cells in all rows": (b"age,sick\n1,no,3\n2,yes,3\n", "expected a table"),
    "bytes": (b"age,sick\n\xff\xfe,1\n", "Save it as CSV in UTF-8"),
    "gzip": (gzip.compress(b"age,sick\n1,no\n")[:20], "UTF-8"),
    "other columns": (b"age,sik\n1,no\n2,yes\n", "lacks 'sick' and has the extra 'sik'"),
}


@pytest.mark.parametrize("name", BAD_CSVS)
def test_a_file_that_is_no_table_is_named(name, tmp_path):
    content, said = BAD_CSVS[name]
    (tmp_path / "a.csv").write_text("age,sick\n1,no\n2,yes\n")
    (tmp_path / "b.csv").write_bytes(content)
    line = refused(tmp_path, target="sick")
    assert "b.csv: " in line
    assert said in line


def test_files_called_train_and_test_are_that(tmp_path):
    expected = data(FRAME[:40], target="sick", client="hospital", test=FRAME[40:])
    (tmp_path / "b" / "test").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    for train, test in (("a/train.csv", "a/test.csv"), ("b/train.csv", "b/test/1.csv")):
        FRAME[:40].to_csv(tmp_path / train, index=False)
        FRAME[40:].to_csv(tmp_path / test, index=False)
        folder = tmp_path / train[0]
        same(data(folder, target="sick", client="hospital"), expected)
        assert "the source has a test set" in refused(folder, target="sick", test=0.3)


def test_a_path_that_names_nothing_is_refused(tmp_path):
    assert "there is no such file" in refused(tmp_path / "*.csv", target="y")
    assert "there is no such file" in refused(str(tmp_path / "x.csv"), target="y")
    assert "holds none of .csv" in refused(tmp_path, target="y")
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    assert "a.xlsx: is no CSV file" in refused(tmp_path / "a.xlsx", target="y")
    assert "holds CSV files and images" in refused(tmp_path, target="y")
    for wrong in (3, None, object()):
        assert "must be a DataFrame, a dict of columns" in refused(wrong)


@pytest.mark.parametrize("client_from", ["hospital", "column:", "column", "row:x"])
def test_the_command_line_says_what_a_client_is(client_from, tmp_path):
    path = hospitals(tmp_path / "own")
    with pytest.raises(ValueError, match="must be file, folder or column:NAME"):
        from_files(str(path), target="sick", client_from=client_from)


# --- Arrays.

X = RNG.normal(size=(N, 3)).astype(np.float32)
Y = np.arange(N) % 3
KEYS = np.repeat(["b", "a"], N // 2)


def test_arrays_in_any_form_are_the_same_dataset():
    expected = data((X, Y), client=KEYS)
    assert expected.names == ("a", "b")
    assert [len(expected.train[0]), len(expected.test[0])] == [48, 12]
    same(data((X, Y, KEYS)), expected)
    same(data((torch.from_numpy(X), torch.from_numpy(Y)), client=KEYS), expected)
    same(data([X.tolist(), Y.tolist(), KEYS.tolist()]), expected)
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    same(data(pairs, client=KEYS), expected)
    frame = pd.DataFrame(X).rename(columns=str)
    same(data((frame, pd.Series(Y, index=range(5, N + 5))), client=KEYS), expected)
    assert data((frame, Y)).columns == ("0", "1", "2")


def test_a_test_set_of_arrays_is_taken_as_it_is(tmp_path):
    four = X[:40], Y[:40], X[40:], Y[40:]
    expected = data(four)
    assert torch.equal(expected.train[0], torch.from_numpy(X[:40]))
    assert torch.equal(expected.test[1], torch.from_numpy(Y[40:]))
    same(data(four[:2], test=four[2:]), expected)
    tensors = [torch.from_numpy(x) for x in four]
    train, test = (torch.utils.data.TensorDataset(*tensors[i : i + 2]) for i in (0, 2))
    same(data((train, test)), expected)
    same(data(train, test=test), expected)
    np.savez(tmp_path / "x.npz", x_train=X[:40], y_train=Y[:40], x_test=X[40:], y_test=Y[40:])
    same(data(tmp_path / "x.npz"), expected)
    same(data(four, standardize=True), load(str(tmp_path / "x.npz"), standardize=True))
    np.savez(tmp_path / "y.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    assert "is one of several .npz files" in refused(tmp_path)
    assert "the source has a test set. Leave one out" in refused(four, test=0.3)


def test_a_known_dataset_is_not_standardized():
    with pytest.raises(ValueError, match=r"load\(standardize=True\): digits needs no choice"):
        load("digits", standardize=True)


def test_a_dataset_passes_through():
    dataset = data((X, Y))
    assert isinstance(dataset, Dataset)
    assert data(dataset) is dataset
    assert "a Dataset has no use for it" in refused(dataset, test=0.3)


def test_options_that_arrays_do_not_read_are_refused(tmp_path):
    assert "data(target='y'): arrays has no use" in refused((X, Y), target="y")
    assert "no columns" in refused((X, Y), client="hospital")
    assert "must be one key per row, 60" in refused((X, Y, KEYS), client=KEYS)
    assert "x has 60 rows, y has 59" in refused((X, Y[:-1]))
    assert "must be (x, y)" in refused((X, Y, KEYS, X, Y))
    np.savez(tmp_path / "x.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    assert "data(client='a'): .npz has no use" in refused(tmp_path / "x.npz", client="a")


class Letters(torch.utils.data.Dataset):
    classes = ("z", "a", "m")

    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], int(Y[i])


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


def test_a_torch_dataset_keeps_the_names_of_its_classes():
    found = data(Letters())
    assert found.class_names == ("z", "a", "m")
    assert all_rows(found) == sorted((*x, float(y)) for x, y in zip(X.tolist(), Y, strict=True))
    assert "IterableDataset" in refused(Stream())


def test_images_are_standardized_by_channel():
    images = RNG.integers(0, 256, (N, 5, 5, 3)).astype(np.uint8)
    images[..., 1] = 7
    x, _ = data((images, Y), standardize=True).train
    assert x.shape[1:] == (3, 5, 5)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.tensor([1.0, 0, 1]), atol=1e-5)


# --- Who is tested on what.


def test_natural_clients_have_names_and_test_rows_of_their_own():
    found = data(FRAME, target="sick", client="hospital")
    for num_clients in (0, 2):
        parts = by_key(found.keys, num_clients=num_clients, seed=1)
        names = names_of(found, parts)
        assert len(names) == len(parts)
        for name, part in zip(names, parts, strict=True):
            number = found.names.index(name)
            assert set(found.keys[part]) == {number}
            own = own_test_rows(found, part)
            assert own.tolist() == np.flatnonzero(found.test_keys == number).tolist()
            assert len(own)
    nobody = data((X, Y))
    assert names_of(nobody, parts) == ()
    assert len(own_test_rows(nobody, parts[0])) == 0
