"""Run folders are read whatever state a run has left them in."""

import json
from pathlib import Path

import pytest
from folders import unit_of, write_run

from fedexp.runs.reading import read, read_clients, read_metrics, read_units


def told(units):
    return [(unit.strategy, unit.seed, dict(unit.settings), unit.tuning) for unit in units]


def test_units_come_back_as_they_were_written(tmp_path):
    clients = ({"round": 2, "client": "St. Mary, 1", "examples": 7, "loss": 0.5, "accuracy": 0.9},)
    wanted = [
        unit_of("fedexp", seed=0),
        unit_of("fedexp", seed=1),
        unit_of("fedavg+hypersgd", settings={"learning-rate": 0.1}),
    ]
    wanted[1] = type(wanted[1])(**{**vars(wanted[1]), "clients": clients})
    found = read_units(write_run(tmp_path / "run", wanted))
    assert told(found) == told(wanted)
    assert [unit.rows for unit in found] == [unit.rows for unit in wanted]
    assert found[1].clients == list(clients)
    assert found[0].about["target-accuracy"] == 0.85
    assert found[0].summary["ended"] == "finished"
    assert found[0].folder == tmp_path / "run" / "fedexp" / "seed-0"


def test_strategies_keep_the_order_of_the_run_then_come_settings_and_seeds(tmp_path):
    units = [
        unit_of(strategy, seed=seed, settings=settings)
        for strategy in ("scaffold", "fedavg", "fedadam(eta=0.1, tau=0.01)")
        for settings in ({"learning-rate": 0.1}, {"learning-rate": 0.3})
        for seed in (2, 10)
    ]
    assert told(read_units(write_run(tmp_path / "run", units))) == told(units)


def test_tuning_comes_last_and_is_marked(tmp_path):
    units, tuning = [unit_of(seed=0)], [unit_of(seed=1, settings={"learning-rate": 0.3})]
    found = read_units(write_run(tmp_path / "run", units, tuning=tuning))
    assert [unit.tuning for unit in found] == [False, True]


def test_a_folder_of_an_older_run_has_its_strategy_by_name_and_the_rest_from_its_config(tmp_path):
    folder = write_run(tmp_path / "run", [unit_of("fedexp")], {"seed": 7}, one_seed=True)
    (folder / "fedexp" / "unit.json").unlink()
    (unit,) = read_units(folder)
    assert (unit.strategy, unit.seed, unit.about["target-accuracy"]) == ("fedexp", 7, 0.85)


def test_without_its_file_a_unit_is_what_the_names_of_folders_tell(tmp_path):
    units = [unit_of("fedadam(eta=0.1)", seed=3), unit_of("a name", seed=4)]
    tuning = [unit_of("fedavg", seed=1, settings={"learning-rate": 0.3})]
    folder = write_run(tmp_path / "run", units, {"strategy": "fedadam(eta=0.1)"}, tuning=tuning)
    wanted = told(read_units(folder))
    for path in folder.rglob("unit.json"):
        path.unlink()
    assert told(read_units(folder)) == wanted


def test_a_unit_before_its_first_round_is_there_without_rows(tmp_path):
    folder = write_run(tmp_path / "run", [unit_of()], summaries=False)
    (folder / "fedavg" / "seed-0" / "metrics.jsonl").unlink()
    (unit,) = read_units(folder)
    assert (unit.rows, unit.summary, unit.clients) == ([], {}, [])


def test_a_line_that_was_cut_short_does_not_count(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n{"round": 2}\n{"rou')
    assert read_metrics(tmp_path) == [{"round": 1}, {"round": 2}]
    (tmp_path / "clients.csv").write_text("round,client,examples,loss\n1,0,5,\n1,1,5,0.2\n2,0")
    assert read_clients(tmp_path) == [
        {"round": 1, "client": "0", "examples": 5, "loss": None},
        {"round": 1, "client": "1", "examples": 5, "loss": 0.2},
    ]


@pytest.mark.parametrize("text", ["", "round,client,loss"])
def test_a_table_of_clients_without_a_whole_line_has_no_rows(tmp_path, text):
    (tmp_path / "clients.csv").write_text(text)
    assert read_clients(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", '{"round": 1}\n{"rou\n{"round": 3}\n'),
        ("metrics.jsonl", '{"round": 1}\n[]\n'),
        ("metrics.jsonl", '{"test-loss": 1}\n'),
        ("metrics.jsonl", b"\xff\xfe\n"),
        ("clients.csv", "round,client,loss\n1,0\n"),
        ("clients.csv", "a,b\n1,2\n"),
        ("clients.csv", "round,client,loss\nx,0,1\n"),
        ("clients.csv", b"round,client\n1,\xff\n"),
        ("summary.json", '{"best-accu'),
        ("summary.json", "[1]"),
        ("unit.json", "{"),
        ("unit.json", '{"settings": [1]}'),
        ("unit.json", '{"seed": "zero"}'),
        ("unit.json", "{}"),
        ("unit.json", ""),
        ("unit.json", "null"),
        ("unit.json", b"\xff"),
        ("unit.json", '{"strategy": 3, "seed": 0, "settings": {}, "tuning": false}'),
        ("unit.json", '{"strategy": "fedavg", "seed": 7, "settings": {}, "tuning": false}'),
        ("summary.json", "{}"),
        ("summary.json", '{"problem": 3}'),
        ("summary.json", '{"problem": null, "best-accuracy": "x"}'),
        ("../../environment.json", "[]"),
        ("../../environment.json", '{"config": []}'),
        ("../../partition.json", "{}"),
        ("../../partition.json", '{"sizes": "x"}'),
        ("../../partition.json", '{"sizes": [1, 2], "classes": ["a"], "counts": [[1]]}'),
        ("../../partition.json", '{"sizes": [1], "clients": ["a", "b"]}'),
        ("metrics.jsonl", '{"round": 1, "failures": [3]}\n'),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, text):
    folder = write_run(tmp_path / "run", [unit_of()])
    path = folder.joinpath(*("fedavg", "seed-0")[: 2 - name.count("..")], name.rpartition("/")[2])
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="is damaged") as caught:
        read([folder])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_run_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run, it has no config\.toml"):
        read([tmp_path])


def test_a_folder_near_a_run_suggests_the_run(tmp_path):
    run = write_run(tmp_path / "runs" / "x", [unit_of()])
    for folder in (tmp_path / "runs", run / "fedavg", run / "fedavg" / "seed-0"):
        with pytest.raises(ValueError, match="Name a run folder, such as") as caught:
            read([folder])
        assert repr(str(run)) in str(caught.value)


def test_what_differs_between_runs_becomes_a_setting(tmp_path):
    folders = [
        write_run(tmp_path / name, [unit_of()], {"learning-rate": rate, "name": name, "seed": 0})
        for name, rate in (("a", 0.1), ("b", 0.3))
    ]
    found = read(folders)
    assert [dict(unit.settings) for unit in found.units] == [
        {"learning-rate": 0.1},
        {"learning-rate": 0.3},
    ]
    assert found.config["dataset"] == "digits"
    assert "learning-rate" not in found.config


def test_seeds_of_two_runs_that_are_alike_belong_together(tmp_path):
    folders = [
        write_run(tmp_path / str(seed), [unit_of(seed=seed)], {"seed": seed}) for seed in (0, 1)
    ]
    assert told(read(folders).units) == [("fedavg", 0, {}, False), ("fedavg", 1, {}, False)]


def test_the_same_run_twice_is_told_apart_by_its_folder(tmp_path):
    folders = [write_run(tmp_path / name, [unit_of()]) for name in "ab"]
    assert [unit.settings["run"] for unit in read(folders).units] == list(map(str, folders))


def test_a_run_inside_the_folder_of_another_is_not_its_own(tmp_path):
    outer = write_run(tmp_path / "run", [unit_of("fedavg")])
    write_run(outer / "inner", [unit_of("fedexp")])
    assert [unit.strategy for unit in read_units(outer)] == ["fedavg"]


def test_command_environment_and_partition_are_read_where_there_are_any(tmp_path):
    folder = write_run(tmp_path / "run", [unit_of()])
    assert (read([folder]).command, read([folder]).environment) == ("", {})
    (folder / "command.txt").write_text("fedexp simulate\n")
    (folder / "environment.json").write_text('{"python": "3.11"}')
    partition = {"clients": ["a"], "classes": ["0"], "counts": [[3]], "sizes": [3]}
    (folder / "partition.json").write_text(json.dumps(partition))
    found = read([Path(folder)])
    assert (found.command, found.environment) == ("fedexp simulate", {"python": "3.11"})
    assert found.partition == partition
