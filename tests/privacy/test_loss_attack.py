"""The loss-threshold attack against scikit-learn's ROC curve."""

import numpy as np
import pytest

from fedexp.privacy.membership import loss_attack


@pytest.mark.parametrize("decimals", [1, 12], ids=["ties", "no ties"])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5, 9.0])
def test_it_is_scikit_learns(shift, decimals):
    from sklearn.metrics import roc_auc_score, roc_curve  # here, because it takes a second

    rng = np.random.default_rng(0)
    members = rng.normal(size=57).round(decimals)
    others = rng.normal(shift, size=91).round(decimals)
    is_member = np.repeat([1, 0], [57, 91])
    scores = -np.concatenate([members, others])
    found = loss_attack(members, others)
    false, true, _ = roc_curve(is_member, scores, drop_intermediate=False)
    assert found.auc == pytest.approx(roc_auc_score(is_member, scores))
    assert found.advantage == pytest.approx((true - false).max())


def test_an_infinite_loss_is_a_loss():
    assert loss_attack([0.0], [np.inf, 1.0]) == (1.0, 1.0)
    assert loss_attack([1.0], [0.0]) == (0.0, 0.0)


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_without_losses_there_is_no_attack(members, others):
    with pytest.raises(ValueError, match="Give at least one, and numbers"):
        loss_attack(members, others)
