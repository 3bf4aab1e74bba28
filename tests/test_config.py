import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedexp.clients.settings import ClientSettings
from fedexp.config import Config


@given(
    st.builds(
        Config,
        alpha=st.floats(1e-6, 1e6),
        seed=st.integers(0, 2**40),
        name=st.text(st.characters(codec="utf-8", exclude_characters="/\\\0.")),
        weighted=st.booleans(),
    )
)
def test_toml_and_values_give_the_same_configuration_back(config):
    assert Config.of(config.values()) == config
    assert Config.of(tomllib.loads(config.to_toml())) == config


def test_text_from_the_command_line_becomes_numbers():
    config = Config.of({"num-clients": "7", "alpha": "0.5", "weighted": "false"})
    assert (config.num_clients, config.alpha, config.weighted) == (7, 0.5, False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fraction-train", 1.5),
        ("fraction-train", 0),
        ("epsilon", -1.0),
        ("alpha", 0.0),
        ("num-server-rounds", 0),
        ("engine", "slurm"),
        ("seed", "x"),
    ],
)
def test_a_bad_value_is_named_with_its_rule_and_a_remedy_in_one_line(key, value):
    with pytest.raises(ValueError, match="The default is") as caught:
        Config.of({key: value})
    line = str(caught.value)
    assert line.startswith(f"Config({key}={value!r}): it should be ")
    assert "\n" not in line


def test_an_unknown_key_suggests_the_one_that_was_meant():
    with pytest.raises(
        ValueError, match=r"unknown key 'num-client'\. Did you mean 'num-clients'\?"
    ):
        Config.of({"num-client": 3})


@pytest.mark.parametrize(
    ("short", "key"),
    [("lr", "learning-rate"), ("rounds", "num-server-rounds"), ("clients", "num-clients")],
)
def test_a_short_name_of_the_command_line_suggests_the_key(short, key):
    with pytest.raises(ValueError, match=f"unknown key '{short}'. Did you mean '{key}'"):
        Config.of({short: 3})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.toml: there is no such file\. Name a"):
        Config.read(tmp_path / "nowhere.toml")
    with pytest.raises(ValueError, match=r"cannot be read: Is a directory\. Name a TOML file"):
        Config.read(tmp_path)


@pytest.mark.parametrize("key", ["seed", "alpha", "weighted", "engine"])
@pytest.mark.parametrize("value", [["x" * 5000], "x" * 5000, {"a": range(9)}, np.zeros((99, 99))])
def test_a_value_that_is_long_or_of_another_kind_is_cut_to_one_line(key, value):
    with pytest.raises(ValueError, match="The default is") as caught:
        Config.of({key: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_lists_and_tables_of_a_toml_file_are_told_how_to_be_text(tmp_path):
    (tmp_path / "a.toml").write_text("[simulate]\nseed = 1\n")
    with pytest.raises(ValueError, match=r"holds a table \[simulate\]. Write its keys without one"):
        Config.read(tmp_path / "a.toml")
    with pytest.raises(ValueError, match="it should be text, such as '0,1'"):
        Config.of({"seeds": [0, 1]})


def test_equal_values_are_parsed_once_and_hold_the_clients_settings():
    config = Config.of({"batch-size": 7, "learning-rate": 0.5})
    assert Config.of({"learning-rate": 0.5, "batch-size": 7}) is config
    assert Config.of({"batch-size": 7}) is not config
    assert (config.clients.batch_size, config.clients.lr) == (7, 0.5)
    assert config.model_copy(update={"batch_size": 8}).clients.batch_size == 8
    assert Config().clients == ClientSettings()  # each default stands in one place
