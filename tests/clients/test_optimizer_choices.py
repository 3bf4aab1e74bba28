"""Local optimizers as text and as objects: torch's own, one's own, with settings."""

import functools
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from builders import record
from flwr.app import ConfigRecord, RecordDict
from torch import nn

from fedexp import listing
from fedexp.clients import (
    LOCAL_OPTIMIZERS,
    ClientSettings,
    Examples,
    client_app,
    load_arrays,
    module_arrays,
)
from fedexp.clients.client import model_in
from fedexp.clients.factories import TORCHS
from fedexp.clients.groups.group import ClientGroup
from fedexp.clients.named import as_optimizer, named_optimizer, optimizers, told
from fedexp.clients.trial import try_model
from fedexp.simulation.grid import context_of

torch.set_num_threads(1)
RUN = {"local-steps": 6, "batch-size": 8, "learning-rate": 0.02, "seed": 3}


def model(context=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data(context=None):
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(30, 4)).astype(np.float32))
    return (Examples(x, torch.from_numpy(rng.integers(0, 3, 30))),) * 2


def client(optimizer=None, run=RUN, **message):
    """Arrays and metrics of a client that was sent these settings."""
    app, context = client_app(model, data, optimizer), context_of(2, 1, run, RecordDict())
    settings = ConfigRecord(
        {"server-round": 1, **{k.replace("_", "-"): v for k, v in message.items()}}
    )
    body = RecordDict({"arrays": record(module_arrays(model())), "config": settings})
    fitted = app.trainer.fit(app.trainer.config(body, context), model_in(body), body, context)
    return {name: np.asarray(x) for name, x in fitted.arrays.items()}, fitted.metrics


def by_hand(make, num_steps=RUN["local-steps"], lbfgs=False):
    """A loop as anyone writes it, on the batches that the client takes in round 1."""
    rng = np.random.default_rng([RUN["seed"], 1, 0])
    rng.integers(2**63)  # of dropout, which there is none of
    settings, (examples, _), net = ClientSettings(num_steps, RUN["batch-size"]), data(), model()
    optimizer = make(net.parameters())
    for rows in torch.from_numpy(settings.batches(30, rng)):

        def closure(rows=rows):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(examples.inputs[rows]), examples.targets[rows])
            loss.backward()
            return loss

        if lbfgs:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return module_arrays(net)


def assert_same(a, b, rtol=1e-5, atol=1e-7):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol, atol, err_msg=name)


WRITTEN = {
    "adamw(weight-decay=0.01)": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.0),
    "torch.optim.Adam(lr=0.1, betas=[0.8, 0.9])": lambda p: torch.optim.Adam(
        p, lr=0.1, betas=(0.8, 0.9)
    ),
    "sgd(momentum=0.9, nesterov=true)": lambda p: torch.optim.SGD(
        p, lr=0.02, momentum=0.9, nesterov=True
    ),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02),
    "rmsprop(centered=True, learning-rate=0.003)": lambda p: torch.optim.RMSprop(
        p, lr=0.003, centered=True
    ),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_a_client_takes_the_steps_of_torchs_optimizer(text):
    assert_same(client(local_optimizer=text)[0], by_hand(WRITTEN[text]))


@pytest.mark.parametrize("name", sorted(TORCHS.keys() - {"sparseadam", "muon", "lbfgs"}))
def test_every_optimizer_of_torch_works_by_its_lower_case_name(name):
    cls = TORCHS[name]
    undecayed = {} if name == "rprop" else {"weight_decay": 0.0}
    expected = by_hand(lambda params: cls(params, lr=0.02, **undecayed))
    name = "torch.optim.SGD" if name == "sgd" else name
    assert_same(client(local_optimizer=name)[0], expected)


def test_l_bfgs_evaluates_each_minibatch_as_often_as_it_needs():
    make = functools.partial(torch.optim.LBFGS, lr=0.5, max_iter=4)
    expected = by_hand(make, lbfgs=True)
    assert_same(client(local_optimizer="lbfgs(lr=0.5, max-iter=4)")[0], expected)
    assert_same(client(make)[0], expected)
    assert_same(client(lambda params, settings: make(params))[0], expected)


def test_the_runs_weight_decay_is_that_of_the_optimizer_unless_given():
    expected = by_hand(lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.3))
    assert_same(client(local_optimizer="adamw", weight_decay=0.3)[0], expected)
    assert_same(client(local_optimizer="adamw(weight-decay=0.3)", weight_decay=9.0)[0], expected)


def test_plain_sgd_stays_what_it_was_with_settings_too():
    assert named_optimizer("sgd") is LOCAL_OPTIMIZERS["sgd"]
    decayed, _ = client(weight_decay=0.1, learning_rate=0.05)
    bracketed, _ = client(local_optimizer="sgd(weight-decay=0.1, lr=0.05)")
    for name, x in decayed.items():
        np.testing.assert_array_equal(bracketed[name], x)
    assert named_optimizer("sgd(weight-decay=0.1)").shares_memory


def test_settings_in_brackets_are_the_flags_of_the_same_name():
    flags = {"hyper_learning_rate": 0.05, "hyper_height": 2}
    expected, metrics = client(local_optimizer="hypersgd", **flags)
    text = "hypersgd(hyper-learning-rate=0.05, hyper-height=2)"
    found, same = client(local_optimizer=text, hyper_learning_rate=0.4)
    assert_same(found, expected, 0, 0)
    assert same["learning-rate"] == metrics["learning-rate"]


OWN = [
    "hypersgd(momentum=0.9, nesterov=true)",
    "hyperadam(beta1=0.5, eps=0.01)",
    "delta-sgd(gamma=0.5, delta=1.0)",
    "fedhyper(max-growth=1.5, bound=2)",
    "polyak(c=20, least-loss=0.1)",
]


@pytest.mark.parametrize("text", OWN)
def test_settings_of_its_own_reach_an_optimizer_alone_and_in_a_group(text):
    plain, _ = client(local_optimizer=text.partition("(")[0], learning_rate=0.5)
    alone, metrics = client(local_optimizer=text, learning_rate=0.5)
    assert any(not np.allclose(alone[name], plain[name]) for name in plain)
    app = client_app(model, data)
    contexts = [context_of(n, 3, RUN, RecordDict()) for n in (2, 3, 4)]
    group = ClientGroup.of(app, "on", contexts[0])
    config = RUN | {"server-round": 1, "local-optimizer": text, "learning-rate": 0.5}
    first, *_ = group.fit(config, module_arrays(model()), RecordDict(), contexts)
    assert_same({k: np.asarray(x) for k, x in first.arrays.items()}, alone, 2e-4, 2e-6)
    assert first.metrics["learning-rate"] == pytest.approx(metrics["learning-rate"], rel=1e-3)


def test_what_has_no_functional_form_goes_one_by_one_and_is_refused_where_groups_are_wanted():
    app, context = client_app(model, data), context_of(2, 1, RUN, RecordDict())
    group = ClientGroup.of(app, "on", context)
    assert group.takes({"local-optimizer": "hypersgd(momentum=0.5)"})
    assert group.takes({})
    assert not group.takes({"local-optimizer": "adamw"})
    adamw = context_of(2, 1, RUN | {"local-optimizer": "adamw"}, RecordDict())
    assert ClientGroup.of(app, "auto", adamw)
    with pytest.raises(ValueError, match="local optimizer adamw has no functional form"):
        ClientGroup.of(app, "on", adamw)


def half(params, lr, weight_decay=0.0, power=1.0):
    return torch.optim.SGD(params, lr=lr / 2**power, weight_decay=weight_decay)


def from_settings(params, settings):
    return torch.optim.SGD(params, lr=settings.lr / 2)


def alone(params):
    return torch.optim.SGD(params, lr=0.01)


def anything(params, **settings):
    return torch.optim.SGD(params, **settings)


@pytest.fixture
def own(monkeypatch):
    module = ModuleType("own_optimizers")
    for x in (half, from_settings, alone, anything, model):
        setattr(module, x.__name__, x)
    monkeypatch.setitem(sys.modules, "own_optimizers", module)
    yield "own_optimizers"
    named_optimizer.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        "half",
        "half(power=2, lr=0.04)",
        "from_settings",
        "alone",
        "anything(lr=0.01)",
        "anything(lr=0.01, momentum=0)",
    ],
)
def test_a_function_of_ones_own_is_named_by_its_module(own, text):
    expected = by_hand(lambda params: torch.optim.SGD(params, lr=0.01))
    assert_same(client(local_optimizer=f"{own}:{text}")[0], expected)


CHOICES = {
    "text": "torch.optim.SGD(lr=0.01)",
    "class": (torch.optim.SGD, {"learning_rate": 0.01}),
    "partial": functools.partial(torch.optim.SGD, lr=0.01),
    "params, lr": half,
    "params, settings": from_settings,
    "params": alone,
    "lambda": lambda params: torch.optim.SGD(params, lr=0.01),
    "partial of settings": functools.partial(lambda params, s, by: half(params, s.lr), by=2),
    "partial to params": functools.partial(lambda params, rate: alone(params), rate=3),
}


@pytest.mark.parametrize("name", CHOICES)
def test_any_way_to_make_an_optimizer_is_taken_in_python(name):
    choice, message = c if isinstance(c := CHOICES[name], tuple) else (c, {})
    expected = by_hand(lambda params: torch.optim.SGD(params, lr=0.01))
    assert_same(client(choice, **message)[0], expected)


@pytest.mark.parametrize("choice", ["adamw(lr=0.5)", functools.partial(torch.optim.AdamW, lr=0.5)])
def test_a_rate_that_came_with_the_choice_gives_way_to_the_messages(choice):
    assert client(choice)[1]["learning-rate"] == 0.5
    assert client(choice, learning_rate=0.1)[1]["learning-rate"] == 0.1
    assert client(choice, run=RUN | {"learning-rate": 0.1})[1]["learning-rate"] == 0.5


def test_other_settings_that_came_with_the_choice_stay_whatever_the_message_says():
    expected, _ = client(local_optimizer="hypersgd", hyper_height=2, weight_decay=0.1)
    text = "hypersgd(hyper-height=2, weight-decay=0.1)"
    assert_same(client(text, hyper_height=1, weight_decay=0.0)[0], expected, 0, 0)


def test_no_choice_is_that_of_the_settings():
    assert as_optimizer(None) is None
    assert as_optimizer(from_settings) is from_settings


def test_an_optimizer_that_is_made_already_is_refused():
    with pytest.raises(ValueError, match=r"give torch.optim.AdamW, not AdamW\(...\)"):
        as_optimizer(torch.optim.AdamW(model().parameters()))
    with pytest.raises(ValueError, match="must be text, a class or a function"):
        client_app(model, data, optimizer=3)


def test_a_message_has_settings_of_the_clients_under_their_own_keys():
    assert told("sgd") == {"local-optimizer": "sgd"}
    assert told("adamw(betas=[0.8, 0.9], lr=0.1, weight_decay=0.01)") == {
        "local-optimizer": "adamw(betas=[0.8, 0.9])",
        "learning-rate": 0.1,
        "weight-decay": 0.01,
    }
    assert told("hypersgd(hyper-height=2)") == {"local-optimizer": "hypersgd", "hyper-height": 2}
    named_optimizer(told("adamw(betas=[0.8, 0.9], lr=0.1)")["local-optimizer"])


REFUSED = {
    "sdg": "unknown. Did you mean 'sgd'? Known: sgd, hypersgd",
    "adamww": "Did you mean 'adamw'?",
    "torch.optim.Foo": "unknown",
    "adamw(weigt-decay=0.1)": "no setting 'weigt-decay'. Did you mean 'weight-decay'? Known: learn",
    "sgd(momentm=0.9)": "no setting 'momentm'. Did you mean 'momentum'?",
    "hypersgd(hyper-hight=2)": "Did you mean 'hyper-height'?",
    "adamw(betas=3)": "betas=3 must be a list like [0.9, 0.999]",
    "adamw(betas=[a, b])": "betas='[a, b]' must be a list like",
    "adam(foreach=maybe)": "foreach='maybe' must be true or false",
    "adam(eps=nan)": "eps='nan' must be a number",
    "lbfgs(max-iter=2.5)": "max-iter=2.5 must be a whole number",
    "muon(momentum=5)": "momentum=5): must be at least 0 and less than 1",
    "muon(ns-steps=0)": "ns_steps=0): must be at least 1",
    "muon(adjust-lr-fn=x)": "Config(local-optimizer='muon(adjust-lr-fn=x)'): ValueError: Adjust",
    "sgd(lr=-1)": "learning-rate=-1 must be at least 0",
    "polyak(least-loss=-inf)": "least_loss=-inf): must be finite",
    "adamw(betas=[2, 0.9])": "Invalid beta",
    "hypersgd(momentum=abc)": "momentum='abc' must be a number",
    "sgd(lr=fast)": "learning-rate='fast' must be a number",
    "sgd(lr=true)": "must be a number",
    "adam(lr=1, learning-rate=2)": "Leave one out",
    "adam(lr=1": "bracket is missing",
    "no_such_module:f": "Is it on the Python path?",
    "own_optimizers:haf": "has no attribute 'haf'. Name one that own_optimizers has. Did you mean",
    "own_optimizers:half(power=fast)": "power='fast' must be a number",
    "own_optimizers:half(speed=2)": "no setting 'speed'. Known: learning-rate, weight-decay, power",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(own, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        named_optimizer(text)
    assert REFUSED[text] in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG = {bool: ["maybe", "1"], int: ["abc", "nan", "true"], float: ["abc", "nan", "true"]}
WRONG |= {tuple: ["3", "[a, b]", "none"]}
KINDS = [
    (f"{name}({key}={value})", key)
    for name, _, settings in optimizers()
    if name not in ("dp-sgd", "private-line-search", "learned-step")  # which say more
    for key, default in settings.items()
    for value in WRONG.get(type(default), ())
]


@pytest.mark.parametrize(("text", "key"), KINDS)
def test_a_setting_of_another_kind_than_its_default_is_refused_by_its_name(text, key):
    with pytest.raises(ValueError, match=rf"[( ]{key}=.*must be (a |true)"):
        named_optimizer(text)


def test_a_setting_may_be_whatever_its_default_or_annotation_allows():
    named_optimizer("adam(foreach=none, betas=[0, 0.5])")
    assert named_optimizer("lbfgs(max-iter=1e1)").make.keywords == {"max_iter": 10}
    as_optimizer(
        functools.partial(torch.optim.Adam, betas=(torch.tensor(0.9),) * 2, capturable=True)
    )


def test_a_number_whose_default_is_whole_may_be_any(own):
    sys.modules[own].powered = lambda params, lr, power=1: half(params, lr)
    named_optimizer(f"{own}:powered(power=0.5)")


def test_a_weight_decay_is_refused_where_the_function_has_none(own):
    for name in ("rprop", "lbfgs", "delta-sgd"):
        with pytest.raises(ValueError, match=r"weight_decay=0.1"):
            named_optimizer(name)([nn.Parameter(torch.zeros(2))], ClientSettings(weight_decay=0.1))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "sparseadam",
            r"^Config\(local-optimizer='sparseadam'\): .*torch.optim.SparseAdam fails.*"
            "dense gradients.*another local optimizer",
        ),
        ("torch.optim.Muon", "Muon.*Muon only supports 2D parameters"),
        ("own_optimizers:model", "local-optimizer='own_optimizers:model'.*TypeError"),
    ],
)
def test_an_optimizer_that_cannot_step_on_the_model_is_refused_by_the_trial(own, text, reason):
    settings, examples = ClientSettings(optimizer=text), data()[0]
    with pytest.raises(ValueError, match=reason):
        try_model("Config(model='own')", model(), examples, named_optimizer(text), settings)


def test_muon_trains_a_model_of_matrices():
    net = nn.Sequential(nn.Linear(4, 3, bias=False))
    try_model("own", net, data()[0], named_optimizer("muon"), ClientSettings())


def test_the_list_has_every_name_and_all_settings():
    listed = {name: settings for name, _, settings in optimizers()}
    assert listed.keys() >= LOCAL_OPTIMIZERS.keys() | TORCHS.keys() | {"torch.optim.SGD"}
    assert listed["adamw"]["learning-rate"] is None
    assert listed["adamw"]["betas"] == (0.9, 0.999)
    assert "weight-decay" not in listed["lbfgs"]
    assert listed["hypersgd"].keys() >= {"hyper-height", "momentum", "weight-decay"}
    for name, settings in listed.items():
        told_ = ", ".join(f"{k}={v}" for k, v in settings.items() if isinstance(v, int | float))
        named_optimizer(f"{name}({told_})")


def test_the_command_that_lists_them_knows_torchs_too():
    shown = listing.text("optimizers")
    assert "adamw" in shown
    assert "betas=(0.9, 0.999)" in shown
    assert "learning-rate, weight-decay, hyper-learning-rate, hyper-height, momentum" in shown


def test_the_arrays_that_were_sent_stay_as_they_were():
    arrays = module_arrays(model())
    before = {k: x.copy() for k, x in arrays.items()}
    app, context = client_app(model, data, torch.optim.Adam), context_of(2, 1, RUN, RecordDict())
    app.trainer.fit(RUN, arrays, RecordDict(), context)
    load_arrays(model(), arrays)
    for name, x in before.items():
        np.testing.assert_array_equal(arrays[name], x)
