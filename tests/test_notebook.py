"""The example notebook runs, shows its pictures, works on Ray, and leaves nothing running."""

import base64
import os
import sys
from pathlib import Path

import pytest
from simulation.offspring import descendants, left_of

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
for package in ("ipykernel", "ray", "matplotlib"):
    pytest.importorskip(package)
ROOT = Path(__file__).parents[1]
PATH = ROOT / "examples" / "notebook.ipynb"
COMPARE_IN_PROCESSES = """\
from fedexp.runs import parallel, study as studies
parallel.cores = lambda: 1  # one process shows that cells reach it
studies._WORTH_PROCESSES, ran, run_all = 0.0, [], studies.run_in_processes
studies.run_in_processes = lambda *args: ran.append(1) or run_all(*args)
beside = fedexp.compare({"FedExP": "fedexp", "double": double}, seeds=range(2), rounds=10, **parts)
ran, [a.metrics[-1]["test-loss"] for a in beside] == [
    a.metrics[-1]["test-loss"] for name in ("FedExP", "double") for a in study[name]
]
"""


def shown(cell, kind):
    return [out["data"][kind] for out in cell.outputs if kind in out.get("data", {})]


def workers(kernel):
    return [pid for pid, command in descendants(kernel).items() if command.startswith("ray::_Act")]


def test_every_cell_runs_and_nothing_is_left(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    notebook = nbformat.read(PATH, as_version=4)
    stored = {cell.id: cell for cell in nbformat.read(PATH, as_version=4).cells}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    with client.setup_kernel():
        for i, cell in enumerate(notebook.cells):
            client.execute_cell(cell, i)  # raises if it fails
            if 'engine="ray"' in cell.source:
                kernel = client.km.provisioner.pid
                assert len(workers(kernel)) == 2  # and none of the cell that ran before
        extra = nbformat.v4.new_code_cell(COMPARE_IN_PROCESSES)
        notebook.cells.append(extra)
        client.execute_cell(extra, len(notebook.cells) - 1)
        begun = descendants(kernel) | {kernel: "kernel"}
    assert shown(extra, "text/plain") == ["([1], True)"]
    assert not left_of(begun)
    assert sum('engine="ray"' in cell.source for cell in notebook.cells) == 2
    pictures = [
        png
        for cell in notebook.cells
        if cell.cell_type == "code"
        for png in shown(cell, "image/png")
    ]
    assert pictures
    assert all(base64.b64decode(png).startswith(b"\x89PNG") for png in pictures)
    tables = [
        html
        for cell in notebook.cells
        if cell.cell_type == "code"
        for html in shown(cell, "text/html")
    ]
    assert "<table>" in tables[0]
    for cell in notebook.cells[:-1]:  # what is stored are the outputs of today
        if cell.cell_type == "code":
            assert shown(stored[cell.id], "text/plain") == shown(cell, "text/plain")


def test_the_stored_notebook_is_small_and_of_no_machine():
    text = PATH.read_text(encoding="utf-8")
    assert len(text) < 200_000
    for path in ("/home/", "/root/", "/tmp/", "site-packages"):
        assert path not in text
    cells = nbformat.reads(text, as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
