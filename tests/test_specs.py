import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedexp.specs import Spec, slug, split_list

NAMES = st.from_regex(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", fullmatch=True)
VALUES = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.lists(st.integers())
)


@given(NAMES, st.dictionaries(NAMES, VALUES, max_size=3))
def test_text_and_choice_give_each_other_back(name, settings):
    spec = Spec(name, {key.replace("-", "_"): value for key, value in settings.items()})
    assert Spec.of(str(spec)) == spec


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=4))
def test_a_list_of_choices_is_cut_at_commas_outside_brackets(choices):
    texts = [str(Spec(name, settings)) for name, settings in choices]
    assert split_list(", ".join(texts)) == texts


def test_hyphens_and_underscores_mean_the_same():
    spec = Spec.of("adamw( weight-decay=0.01 , use_it = true)")
    assert (spec.name, spec.settings) == ("adamw", {"weight_decay": 0.01, "use_it": True})


def test_both_infinities_are_numbers():
    assert Spec.of("f(a=-inf, b=inf)").settings == {"a": -math.inf, "b": math.inf}


def test_what_is_no_number_stays_text():
    assert Spec.of("f(g=my.module:name)").settings == {"g": "my.module:name"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fedadam(eta=0.1", "bracket is missing"),
        ("fedadam(eta=0.1) x", "bracket is missing"),
        ("(eta=0.1)", "has no name"),
        ("fedadam(0.1)", "'0.1' is no setting"),
        ("fedadam(eta=)", "'eta=' is no setting"),
        ("fedadam(eta=1, eta=2)", "eta is given twice"),
    ],
)
def test_a_slip_is_named_in_one_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        Spec.of(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a(b", "a)b", "a(b))", "f([1, 2)"])
def test_a_list_with_a_lost_bracket_is_refused(text):
    with pytest.raises(ValueError, match="bracket"):
        split_list(text)


@given(st.text())
def test_the_name_of_a_folder_names_no_other_folder(text):
    assert not set(slug(text)) & set('/\\:*?"<>|\0\n ')


@pytest.mark.parametrize("text", ["", ".", "..", "/", "../.."])
def test_a_folder_of_dots_alone_is_renamed(text):
    assert slug(text).strip(".")
