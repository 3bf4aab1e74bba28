"""The examples of docs/python.md run, in their order."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

TEXT = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
N = 60


class Pairs(torch.utils.data.Dataset):
    """A map-style dataset of one's own."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return np.full(4, i / N, np.float32), i % 3


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the document speaks of as the reader's: objects by name, and files by path."""
    pd, pil = pytest.importorskip("pandas"), pytest.importorskip("PIL.Image")
    hf = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": [None, *range(1, N)], "sex": ["m", "f"] * (N // 2)})
    frame["hospital"] = np.repeat(["north", "east", "west"], N // 3)
    frame["disease"] = np.where(rng.random(N) < 0.5, "no", "yes")
    Path("hospitals").mkdir()
    for name, part in frame.groupby("hospital"):
        part.drop(columns="hospital").to_csv(f"hospitals/{name}.csv", index=False)
    for i in range(24):
        Path(f"images/{'cat' if i % 2 else 'dog'}").mkdir(parents=True, exist_ok=True)
        pil.new("RGB", (20, 17), (9 * i, 0, 0)).save(f"images/{'cat' if i % 2 else 'dog'}/{i}.png")
    x, y = rng.normal(size=(N, 4)), np.arange(N) % 3
    table = hf.Dataset.from_dict({"x": x.tolist(), "label": y, "writer": np.arange(N) // 20})
    table.save_to_disk("saved")
    return {"frame": frame, "x": x, "y": y, "torch_dataset": Pairs(), "hf_dataset": table}


def test_the_examples_run_in_their_order(names, in_this_process, undrawn, capsys):
    seen = {}
    for block in BLOCKS:
        exec(compile(block, "python.md", "exec"), names)
        seen[block] = names.get("run")
    printed = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in printed] == list(range(1, len(printed) + 1))
    stopped = next(run for block, run in seen.items() if "stop=" in block)
    scores = [row["test-accuracy"] for row in stopped.metrics]
    assert scores[-1] > 0.5 >= max(scores[:-1])
    by_hospital = next(run for block, run in seen.items() if "run.clients\n" in block)
    assert {row["client"] for row in by_hospital.clients} == {"north", "east", "west"}
    going_on = next(run for block, run in seen.items() if "run(rounds=2)" in block)
    assert len(going_on.metrics) == 5
    for name in ("runs.csv", "table.tex", "runs/a/report.html"):
        assert Path(name).stat().st_size
    for name in ("curves.pdf", "run.svg"):  # what is in them: see test_pictures.py
        assert Path(name).exists()


def test_the_arrays_of_the_own_client_app_are_those_of_a_hand_written_loop(names, in_this_process):
    for block in BLOCKS:
        if block.startswith(("import fedexp", "from flwr.app")):
            exec(compile(block, "python.md", "exec"), names)
    w, drawn = np.zeros(3), {int(row["train-loss"]) for row in names["run"].metrics}
    for row in names["run"].metrics:  # one client of five a round, whose loss is its number
        w = w + 0.1 * (row["train-loss"] - w)
    assert drawn <= set(range(5))
    np.testing.assert_allclose(names["run"].arrays[0]["0"], w, rtol=1e-12)


def test_each_example_is_at_most_five_lines_besides_the_users_own_classes_and_imports():
    for block in BLOCKS:
        own = re.sub(r"(?m)^(@\S+\n)?(class|def) .*\n(?:(?: .*)?\n)*", "", block)
        lines = [x for x in own.splitlines() if x and not x.startswith(("import", "from"))]
        assert len(lines) <= 6, block  # five and a closing bracket
