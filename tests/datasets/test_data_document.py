"""The examples of docs/data.md run, on files and objects of the kinds that it names."""

import ast
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import fedexp
from fedexp import cli
from fedexp.config import Config
from fedexp.datasets import Dataset, data

pd = pytest.importorskip("pandas")
Image = pytest.importorskip("PIL.Image")
pytestmark = [
    pytest.mark.usefixtures("undrawn"),
    pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed"),
]
TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^\$ fedexp (.*)$", TEXT, re.MULTILINE)
N = 90
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "age": [None, *range(1, N)],
        "sex": np.array(["m", "f"])[np.arange(N) % 2],
        "hospital": np.repeat(["north", "east", "west"], N // 3),
        "disease": np.array(["no", "yes"])[RNG.integers(0, 2, N)],
    }
)
X, Y, WRITERS = RNG.normal(size=(N, 4)), np.arange(N) % 3, np.arange(N) // 30


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return X[i], int(Y[i])


def write(folder):
    """Files by the names that the document gives them."""
    for name, part in FRAME.groupby("hospital"):
        (folder / "hospitals").mkdir(exist_ok=True)
        part.drop(columns="hospital").to_csv(folder / "hospitals" / f"{name}.csv", index=False)
    patients = FRAME.assign(age=1, name=[f"p{i}" for i in range(N)], visited="2020-01-31")
    patients.to_csv(folder / "patients.csv", index=False)
    for i in range(24):
        for path in (
            f"images/{'cat' if i % 2 else 'dog'}",
            f"photos/ann/{'cat' if i % 2 else 'dog'}",
        ):
            (folder / path).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 9), (i, 0, 0)).save(folder / path / f"{i}.png")
    np.savez(folder / "digits.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    table().save_to_disk(str(folder / "saved"))


def table():
    import datasets as hf  # here, because it takes a second

    columns = {"x": X.tolist(), "label": Y, "writer": WRITERS}
    return hf.Dataset.from_dict(columns)


NAMES = {
    **{"frame": FRAME, "x": X, "y": Y, "writers": WRITERS, "torch_dataset": Pairs()},
    **{"x_train": X, "y_train": Y, "x_test": X, "y_test": Y},
    **{"train_set": Pairs(), "test_set": Pairs()},
}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_statement_gives_a_dataset(block, monkeypatch):
    monkeypatch.setattr(fedexp, "data", data, raising=False)
    assert len(block.splitlines()) <= 5
    names = {**NAMES, "hf_dataset": table(), "fedexp": fedexp}
    for statement in ast.parse(block).body:
        exec(compile(ast.unparse(statement), "data.md", "exec"), names)
        assert isinstance(names["data"], Dataset)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_runs(command, tmp_path):
    quick = ["--num-server-rounds", "1", "--local-steps", "1", "--strategy", "fedavg"]
    cli.main([*shlex.split(command), *quick, "--engine", "serial", "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "fedavg" / "summary.json").exists()


def test_every_flag_is_known():
    assert {*re.findall(r"--([a-z][a-z-]*)", TEXT)} <= {*Config.keys()}
