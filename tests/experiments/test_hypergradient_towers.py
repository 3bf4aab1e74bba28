"""The experiment runs end to end on the digits that come with scikit-learn."""

import json

from experiments.hypergradient_towers import FIGURE, TABLE, main


def test_a_quick_run_leaves_its_numbers_and_its_picture(tmp_path):
    main(["--quick", "--data-dir", str(tmp_path), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "hypergradient-towers.json").read_text(encoding="utf-8"))
    assert result["data"] == "digits"
    assert [row["name"] for row in result["table"]] == [name for name, *_ in TABLE]
    assert len(result["figure"]["errors-by-height"]) == len(FIGURE) == 4
    assert (tmp_path / "hypergradient-towers.png").read_bytes().startswith(b"\x89PNG")
