"""Whole runs on files of a user's own: one command, or one line that says what to do."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

import fedexp
from fedexp import app, cli
from fedexp.config import Config
from fedexp.datasets import data
from fedexp.runs.federation import Federation

pd = pytest.importorskip("pandas")
pytestmark = pytest.mark.usefixtures("undrawn", "in_this_process")
NAMES = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang"]
NAMES += ["oldpeak", "slope", "ca", "thal", "disease"]
PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "heart-disease"
QUICK = ["--model", "linear", "--engine", "serial", "--num-server-rounds", "2"]


def hospital(name, number, value):
    """Patients of whom the disease is told by a column, and some other columns."""
    x = np.arange(number)
    table = pd.DataFrame({"x": x % 5, "sex": np.array(["m", "f"])[x % 2], "home": value})
    table["disease"] = np.where(table["x"] > 2, "yes", "no")
    table.loc[::9, "x"] = None
    return table


@pytest.fixture
def hospitals(tmp_path):
    folder = tmp_path / "hospitals"
    folder.mkdir()
    for value, (name, number) in enumerate({"north": 40, "east": 30, "west": 20}.items()):
        hospital(name, number, value).to_csv(folder / f"{name}.csv", index=False, na_rep="?")
    return folder


OWN = ["--target", "disease", "--client-from", "file", "--impute", "median", "--standardize"]


def config_of(folder, **more):
    own = {"target": "disease", "client_from": "file", "impute": "median", **more}
    return Config(data=f"{folder}/*.csv", **own)


def context(config, partition, num_clients=3):
    node = {"partition-id": partition, "num-partitions": num_clients}
    return Context(1, 1, node, RecordDict(), config.values())


def test_one_command_learns_from_a_folder_of_csv_files(hospitals, tmp_path):
    out = tmp_path / "run"
    flags = ["--data", f"{hospitals}/*.csv", *OWN, "--fraction-train", "1", "--strategy", "fedavg"]
    cli.main(["simulate", *flags, *QUICK, "--fraction-evaluate", "1", "--out", str(out)])
    rows = [json.loads(x) for x in (out / "fedavg" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["num-clients"] == 3
    assert rows[-1]["test-accuracy"] > 0.5
    assert (out / "partition.png").exists()


def test_a_natural_client_is_tested_on_its_own_held_out_rows(hospitals):
    config = config_of(hospitals)
    found = data(f"{hospitals}/*.csv", target="disease", client="file", impute="median")
    assert Federation(config).names == found.names == ("east", "north", "west")
    for i in range(3):
        train, test = app.examples(context(config, i))
        for examples, (x, _), keys in (
            (train, found.train, found.keys),
            (test, found.test, found.test_keys),
        ):
            rows = torch.from_numpy(np.flatnonzero(keys == i))
            assert torch.equal(examples.take(torch.arange(len(examples)))[0], x[rows])


def test_a_share_of_its_own_or_another_partition_tests_on_training_rows(hospitals):
    for more in ({"local_test_fraction": 0.5}, {"partitioner": "iid", "num_clients": 3}):
        config = config_of(hospitals, **more)
        train, test = app.examples(context(config, 0))
        assert test.inputs is train.inputs
    assert Federation(config).names == ()


def test_a_client_that_has_no_test_row_is_tested_on_what_it_trains_on(hospitals):
    hospital("alone", 1, 3).assign(x=1).to_csv(hospitals / "alone.csv", index=False)
    train, test = app.examples(context(config_of(hospitals), 0, 4))
    assert len(test) == len(train) == 1


def test_all_seeds_of_a_comparison_have_the_same_test_set(hospitals):
    one, other = (app.dataset_of(config_of(hospitals, seed=seed)) for seed in (0, 1))
    assert one is other


def test_a_subset_of_the_clients_keeps_its_names(hospitals):
    config = config_of(hospitals, num_clients=2, seed=3)
    names = Federation(config).names
    assert len(names) == 2
    for i, name in enumerate(names):
        train, test = app.examples(context(config, i, 2))
        inputs = torch.cat([x.take(torch.arange(len(x)))[0] for x in (train, test)])
        home = {"north": 0, "east": 1, "west": 2}[name]
        assert inputs[:, -1].unique().tolist() == [home]


REFUSED = {
    "two sources": (["--dataset", "digits"], "data='", "Leave one of the two out"),
    "no target": (["--target", "ilness"], "there is no such column", "Columns: 'x', 'sex', 'home'"),
    "missing": (["--impute", ""], "column 'x' has no value in 12 of 90 rows", "--impute median"),
    "images": (["--image-size", "8"], "no chosen dataset reads image-size", "images"),
    "folder": (["--data-dir", "x"], "no chosen dataset reads data-dir", "mnist"),
    "client": (["--client-from", "hospital"], "client-from='hospital'", "column:hospital"),
    "drop": (["--drop", "hme"], "drop='hme'", "Did you mean 'home'"),
}


@pytest.mark.parametrize("command", ["simulate", "partition"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_line_and_exit_code_2(name, command, hospitals, tmp_path, capsys):
    flags, found, remedy = REFUSED[name]
    own = dict(zip(OWN[:6:2], OWN[1:6:2], strict=True)) | dict(
        zip(flags[::2], flags[1::2], strict=True)
    )
    given = [word for pair in own.items() for word in pair]
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--data", str(hospitals), *given, "--out", str(tmp_path / "run")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert found in error
    assert remedy in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags", [["--standardize"], ["--target", "x"], ["--test-fraction", "0.2"], ["--drop", "x"]]
)
def test_options_of_own_files_are_refused_for_a_known_dataset(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["simulate", "--dataset", "digits", *flags])
    assert caught.value.code == 2
    assert f"no chosen dataset reads {flags[0][2:]}; " in capsys.readouterr().err


@pytest.fixture
def heart_disease(tmp_path):
    if not PUBLISHED.is_dir():
        pytest.skip("no published data files")
    for path in sorted(PUBLISHED.glob("processed.*.data")):
        own = tmp_path / f"{path.name.split('.')[1]}.csv"
        own.write_text(",".join(NAMES) + "\n" + path.read_text())
    return tmp_path


def test_the_published_hospitals_are_read_as_pandas_reads_them(heart_disease):
    found = data(heart_disease, target="disease", client="file", test=0.25, impute="zero")
    assert found.names == ("cleveland", "hungarian", "switzerland", "va")
    assert found.columns == tuple(NAMES[:-1])
    sizes = np.bincount(found.keys) + np.bincount(found.test_keys)
    assert sizes.tolist() == [303, 294, 123, 200]  # as published
    assert np.abs(np.bincount(found.test_keys) - 0.25 * sizes).max() < 1
    tables = [pd.read_csv(path, na_values="?") for path in sorted(heart_disease.glob("*.csv"))]
    expected = pd.concat(tables).fillna(0).to_numpy(np.float32)
    rows = [torch.cat([x, y[:, None]], 1) for x, y in (found.train, found.test)]
    assert sorted(torch.cat(rows).tolist()) == sorted(expected.tolist())


def test_a_partition_shows_the_names_of_clients_and_classes(hospitals, tmp_path, capsys):
    flags = ["--data", str(hospitals), *OWN, "--out", str(tmp_path / "seen")]
    cli.main(["partition", *flags])
    header, _, east, *_ = (x.split() for x in capsys.readouterr().out.splitlines())
    assert header == ["client", "size", "no", "yes"]
    assert east[:2] == ["east", "24"]
    assert sum(map(int, east[2:])) == 24
    assert (tmp_path / "seen" / "partition.png").exists()


def test_a_table_in_python_is_read_by_the_keys_of_the_command_line(hospitals):
    table = pd.concat(pd.read_csv(x, na_values="?").assign(of=x.stem) for x in hospitals.iterdir())
    options = {"strategy": "fedavg", "model": "linear", "num_server_rounds": 2, "engine": "serial"}
    keys = {"target": "disease", "client_from": "column:of", "impute": "mean", "standardize": True}
    one = fedexp.simulate(data=table, **keys, **options)
    made = fedexp.data(table, target="disease", client="of", impute="mean", standardize=True)
    other = fedexp.simulate(data=made, **options)
    assert [row["test-loss"] for row in one.metrics] == [row["test-loss"] for row in other.metrics]
    with pytest.raises(ValueError, match="a Dataset has no use for it"):
        fedexp.simulate(data=made, target="disease", **options)
    for data_ in (made, str(hospitals)):
        with pytest.raises(ValueError, match="Leave one"):
            fedexp.simulate(data=data_, dataset="digits", **options)


def test_values_of_a_table_are_learned_by_its_clients():
    x = np.random.default_rng(0).normal(size=(200, 2))
    table = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": x @ [2, 1], "of": np.arange(200) % 4})
    run = fedexp.simulate(
        data=fedexp.data(table, target="y", client="of"),
        strategy="fedavg",
        model="linear",
        num_server_rounds=20,
        fraction_train=1.0,
        engine="serial",
    )
    assert run.metrics[-1]["test-loss"] < 1e-9  # the data are exactly linear
