"""The example of four hospitals, on published patients where they are at hand and on drawn ones."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "hospitals.py"
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


@pytest.mark.parametrize("published", [True, False])
def test_one_command_learns_from_the_files_of_four_hospitals(
    published, tmp_path, capfd, monkeypatch, undrawn
):
    """The command is run in this process, which has imported all."""
    pytest.importorskip("pandas")
    example = runpy.run_path(str(EXAMPLE))
    main = example["main"]
    if not published:
        main.__globals__["PUBLISHED"] = tmp_path / "nowhere"
    elif not example["PUBLISHED"].is_dir():
        pytest.skip("no published data files")

    def run(words, check):
        assert words[0] == sys.executable
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")

    main.__globals__["subprocess"] = SimpleNamespace(run=run)
    folder = tmp_path / "files of hospitals"
    main(folder, "3")
    for name in HOSPITALS:
        text = (folder / f"{name}.csv").read_text()
        assert "?" in text
        assert "female" in text
    out = capfd.readouterr().out
    assert out.startswith("fedexp simulate --data ")
    assert (folder / "run" / "fedexp" / "summary.json").exists()
