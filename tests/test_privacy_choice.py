"""``--privacy`` from its text to the strategy, and what is said of a slip in it."""

import sys

import pytest

import fedexp
from fedexp.checks import check_read
from fedexp.config import Config
from fedexp.privacy.accounting import PrivacyFilter
from fedexp.strategies import CentralPrivacy, FedAvg, LocalPrivacy
from fedexp.strategy_factory import strategy_of

CENTRAL = "central(noise-multiplier=2, clip=0.5, delta=1e-4)"


def made(key="fedexp", **settings):
    return strategy_of(Config(strategy=key, **settings), key, 10)


def test_the_text_is_the_extension():
    found = made("fedadam", privacy=CENTRAL).extensions[0]
    assert found == CentralPrivacy(2.0, 0.5, 1e-4, norm_share=0.0)
    assert made(privacy="local(clip=0.1)").extensions[0] == LocalPrivacy(clip=0.1)
    (only,) = made(f"fedavg(privacy={CENTRAL})").extensions
    assert only == found
    check_read(Config(strategy="fedavg", privacy=CENTRAL))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("centrl", "unknown 'centrl'. Known: central, local"),
        ("central(noise=1)", "no 'noise'. Known: noise-multiplier, clip"),
        ("central(clip=abc)", "clip='abc': must be a number"),
        ("central(clip=0)", r"clip=0\): must be > 0"),
        ("central(clip=1", "a bracket is missing"),
    ],
)
def test_a_slip_is_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        made(privacy=text)
    assert str(caught.value).startswith(f"Config(privacy={text!r})")
    assert "\n" not in str(caught.value)


def test_a_strategy_that_would_ignore_it_is_refused():
    with pytest.raises(ValueError, match="FedMedian would ignore it"):
        made("flwr.serverapp.strategy:FedMedian", privacy=CENTRAL)
    with pytest.raises(ValueError, match="a strategy object has its own"):
        fedexp.Simulation(strategy=FedAvg(), privacy=CENTRAL, num_clients=5)
    with pytest.raises(ValueError, match="Give it there") as caught:
        fedexp.Simulation(strategy=FedAvg(), privacy="local(clip=0.5)", num_clients=5)
    written = str(caught.value).split("there: ")[1].removesuffix(".")
    assert written == "FedAvg(extensions=[fedexp.strategies.LocalPrivacy(clip=0.5)])"
    with pytest.raises(ValueError, match=r"FedAvg\(clip=fedexp.strategies.FixedClip\(2.0\)\)"):
        fedexp.Simulation(strategy=FedAvg(), clip=2.0, num_clients=5)
    with pytest.raises(ValueError, match=r"there: FedOpt\(optimizer=.*LineSearch\(loss\)\)\)\."):
        fedexp.Simulation(strategy=FedAvg(), server_step_size="line-search", num_clients=5)


def test_a_run_reports_epsilon_each_round():
    run = fedexp.Simulation(
        strategy="fedexp(smoothing=0.8)",
        privacy="central(noise-multiplier=8)",
        **{"num_clients": 10, "fraction_train": 0.5, "local_steps": 1, "engine": "serial"},
    ).run(rounds=2)
    spent = [row["privacy-epsilon"] for row in run.metrics]
    assert 0 < spent[0] < spent[1] == run.summary["privacy-epsilon"]
    assert [row["train-loss"] for row in run.metrics] == [None, None]


def test_clients_do_not_evaluate_in_the_clear(tmp_path):
    with pytest.raises(ValueError, match=r"fraction-evaluate=0.5\): .* exact losses"):
        made("fedavg", privacy="local", fraction_evaluate=0.5)
    with pytest.raises(ValueError, match="clients tell nobody their rates"):
        made("fedavg+hypersgd", privacy=CENTRAL, hyper_between_rounds="average")
    rows = [f"{i / 40},{i % 2},{i % 4}" for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["x,y,who", *rows]) + "\n")
    settings = {"data": tmp_path / "a.csv", "target": "y", "client_from": "column:who"}
    for privacy, asked in (("", 4), ("central(noise-multiplier=8)", 0)):
        run = fedexp.simulate(
            strategy="fedavg",
            privacy=privacy,
            rounds=1,
            model="linear",
            engine="serial",
            **settings,
        )
        assert len(run.clients) == asked


def test_what_private_steps_lack_is_said_before_a_client_is_asked(monkeypatch):
    with pytest.raises(ValueError, match=r"strategy='fedprox\+dp-sgd'\): .*proximal-mu"):
        made("fedprox+dp-sgd")
    with pytest.raises(ValueError, match="loss after training, which dp-sgd does not tell"):
        made("fedexprox(step-size=stops)+dp-sgd")
    with pytest.warns(UserWarning, match="fixed by the seed 3"):  # also if clients run on Ray
        made("fedavg+dp-sgd(noise-seed=3)")
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    PrivacyFilter.possible.cache_clear()
    with pytest.raises(ValueError, match=r"dp_accounting is not installed.*fedexp\[dp\]"):
        made("fedavg+dp-sgd")
