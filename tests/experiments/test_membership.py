import json

import torch

from experiments.membership import main, members_and_others


def test_members_and_others_are_all_digits_and_a_quarter_of_their_labels_is_drawn():
    data, other = members_and_others(0), members_and_others(1)
    assert (len(data.train[1]), len(data.test[1])) == (200, 1597)
    assert not torch.equal(data.train[0], other.train[0])
    rows = {tuple(x.flatten().tolist()) for part in (data.train, data.test) for x in part[0]}
    assert len(rows) == 1797


def test_a_run_is_written_with_what_the_attack_found(tmp_path, capsys):
    main(["--seeds", "1", "--rounds", "2", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rounds"] == 2
    assert len(found["runs"]) == 4
    for (row,) in found["runs"].values():
        assert 0.4 < row["auc"] < 0.75
        assert 0 <= row["advantage"] <= 1
        assert 0 < row["test-accuracy"] < 1
    assert "| fedexp, experiments.membership:NoisySGD | 0." in capsys.readouterr().out
