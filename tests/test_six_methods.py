"""The example of six methods, in one round: all are tuned alike and reported on other seeds."""

import csv
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedexp import cli

EXAMPLE = Path(__file__).parents[1] / "examples" / "six_methods.py"


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn", "in_this_process")
def test_one_command_tunes_six_methods_and_reports_them_on_three_seeds(tmp_path, capfd):
    main = runpy.run_path(str(EXAMPLE))["main"]
    here = SimpleNamespace(run=lambda words, check: cli.main(["simulate", *words[2:]]))
    main.__globals__["subprocess"] = here  # a process of its own is tested with the hospitals
    main(str(tmp_path / "run"), "1")
    with (tmp_path / "run" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tuning = [row for row in rows if row["tuning"] == "True"]
    reported = [row for row in rows if row["tuning"] == "False"]
    strategies = {row["strategy"] for row in rows}
    assert len(strategies) == 6
    assert {row["seed"] for row in tuning} == {"3", "4"}
    for strategy in strategies:
        tried = [row for row in tuning if row["strategy"] == strategy]
        assert sorted(row["learning-rate"] for row in tried) == sorted(["0.03", "0.1", "0.3"] * 2)
        own = [row for row in reported if row["strategy"] == strategy]
        assert [row["seed"] for row in own] == ["0", "1", "2"]
        means = {
            rate: sum(float(r["mean-best-accuracy"]) for r in tried if r["learning-rate"] == rate)
            for rate in ("0.03", "0.1", "0.3")
        }
        assert {row["learning-rate"] for row in own} == {max(means, key=means.get)}
    assert (tmp_path / "run" / "report.html").exists()
    assert "3 seeds" in capfd.readouterr().out
