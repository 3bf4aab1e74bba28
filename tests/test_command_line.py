"""The command line before anything runs: help, names of flags, and what a mistake is answered."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest

import fedexp
from fedexp import cli
from fedexp.config import SHORT, Config
from fedexp.flags import GROUPS, OF_A_PARTITION


def printed(capsys, *words):
    with suppress(SystemExit):
        cli.main(list(words))
    out, err = capsys.readouterr()
    assert not err
    return out


def refused(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        cli.main(list(words))
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def in_process(*words, **env):
    return subprocess.run(
        [sys.executable, "-m", "fedexp", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )


def test_the_name_alone_shows_three_examples_and_every_command(capsys):
    text = printed(capsys)
    assert text == printed(capsys, "help") == printed(capsys, "--help")
    assert text.count("\n  fedexp ") == 3
    for name in cli.COMMANDS:
        assert f"\n  {name} " in text


def test_the_examples_of_the_short_help_are_read_without_a_mistake(capsys):
    import shlex

    for line in printed(capsys).splitlines():
        if line.startswith("  fedexp "):
            _, name, *flags = shlex.split(line)
            cli.parser_of(name).parse_args(flags)


def test_the_version_is_printed(capsys):
    assert printed(capsys, "--version") == f"fedexp {fedexp.__version__}\n"


def test_the_package_runs_as_a_module():
    assert in_process("--version").stdout == f"fedexp {fedexp.__version__}\n"


def test_every_key_is_in_one_group():
    keys = [key for group in GROUPS.values() for key in group]
    assert sorted(keys) == sorted(Config.keys())


@pytest.mark.parametrize("columns", [60, 100])
def test_the_help_names_every_flag_and_every_choice_within_the_width(columns, capsys, monkeypatch):
    from fedexp.clients.local_optimizers import LOCAL_OPTIMIZERS
    from fedexp.clients.schedules import SCHEDULERS
    from fedexp.datasets import PARTITIONERS, SOURCES
    from fedexp.models import MODELS
    from fedexp.strategies import STRATEGIES

    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(capsys, "help", "simulate")
    assert text == printed(capsys, "simulate", "--help")
    assert max(map(len, text.splitlines())) <= columns
    words = set(text.replace(",", " ").split())
    of_devices = {*GROUPS["devices"]} - {"deadline"}  # simulate has one of simulated seconds
    assert {f"--{name}" for name in {*Config.keys(), *SHORT.values()} - of_devices} <= words
    assert not {f"--{name}" for name in of_devices} & words
    for table in (STRATEGIES, SOURCES, MODELS, PARTITIONERS):
        assert table.keys() <= words
    assert LOCAL_OPTIMIZERS.keys() <= words
    assert {"cosine", "step"} <= words & SCHEDULERS.keys()
    for title in GROUPS.keys() - {"devices"}:
        assert f"\n{title}:\n" in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_a_help_of_its_own(name, capsys):
    assert printed(capsys, "help", name).startswith(f"usage: fedexp {name} ")


@pytest.mark.parametrize(("key", "short"), SHORT.items())
def test_a_short_name_is_the_same_flag(key, short, capsys):
    parser = cli.parser_of("simulate")
    assert vars(parser.parse_args([f"--{short}", "3"]))[key] == "3"
    line = refused(capsys, "simulate", f"--{short}", "3", f"--{key}", "3")
    assert "one flag" in line


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--weighted"], True),
        (["--weighted", "false"], False),
        (["--weighted=true"], True),
        (["--no-weighted"], False),
        ([], True),
        (["--robust"], True),
        (["--no-robust"], False),
    ],
)
def test_switches(words, value):
    from fedexp.flags import config_of

    config, _ = config_of(vars(cli.parser_of("simulate").parse_args(words)))
    assert (config.robust if "robust" in str(words) else config.weighted) is value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "--local-step", "3"], "Did you mean --local-steps? See `fedexp simulate --h"),
        (["simulate", "--local_steps", "3"], "Did you mean --local-steps?"),
        (["simulate", "-lr", "3"], "Did you mean --lr?"),
        (["simulate", "--optimizer", "adam"], "Did you mean --local-optimizer?"),
        (["simulate", "--json"], "`fedexp list` has --json. See `fedexp simulate --help`."),
        (["simulate", "--frobnicate"], "fedexp simulate has no --frobnicate. See"),
        (["simulate", "--strategy", "fedavg,", "fedexp"], "quote spaces and *"),
        (["simulate", "--lr"], "--learning-rate needs a value. See"),
        (["simulate", "--overwrite=yes"], "--overwrite takes no value, 'yes' was given"),
        (["simulate", "--no-weighted", "false"], "takes no value. Leave 'false' out."),
        (["simulate", "--weighted", "--no-weighted"], "one flag"),
        (["partition", "--rounds", "3"], "fedexp partition has no --rounds; `fedexp simulate` has"),
        (["partition", "--strategy", "fedexp"], "`fedexp simulate` has --strategy"),
        (["simulat"], "Did you mean simulate? See `fedexp help`."),
        (
            ["train"],
            "There are simulate, resume, report, partition, list, doctor, check-schedule, "
            "provision, serve, run, device.",
        ),
        (["--dataset", "digits"], "fedexp simulate --dataset"),
        (["help", "lists"], "Did you mean list?"),
        (["resume"], "FOLDER is missing. See `fedexp resume --help`."),
        (["resume", "x", "--rounds", "many"], "--rounds many: it should be a whole number from 1"),
        (["resume", "x", "--rounds", "0"], "whole number from 1"),
        (["resume", "x", "--seed", "1"], "fedexp resume has no --seed; `fedexp simulate` has"),
        (["report"], "FOLDER is missing"),
        (["list", "strategy"], "Did you mean strategies?"),
        (["list", "hats"], "There are strategies, datasets,"),
        (["doctor", "--data-dir", "no/such"], "--data-dir no/such: is no folder"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(words, said, capsys):
    assert said in refused(capsys, *words)


def test_a_partition_takes_the_flags_that_it_reads():
    flags = cli.parser_of("partition").flags()
    keys = {flag.removeprefix("--").removeprefix("no-") for flag in flags}
    assert keys - {"-h", "help", "config", "clients"} == set(OF_A_PARTITION)


def test_the_flags_of_a_partition_are_the_keys_that_it_depends_on():
    from fedexp import factories

    fields = {key.replace("-", "_") for key in OF_A_PARTITION}
    assert fields - {"out"} == factories.PARTITION


def test_a_mistake_in_a_flag_loads_no_heavy_library():
    code = (
        "import sys; from fedexp.cli import main\n"
        "try: main(['simulate', '--locl-steps', '3'])\n"
        "except SystemExit: print(sorted({'torch', 'flwr', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_an_ascii_terminal_gets_the_names_of_greek_letters():
    """Where the locale says so, and where Python's own variable does."""
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    done = in_process("help", "simulate", **ascii_locale, COLUMNS="200")
    assert done.returncode == 0
    assert "--epsilon" in done.stdout
    assert "kappa of the clients that tune theirs" in done.stdout
    assert done.stdout.isascii()
    done = in_process("simulate", "--é→κ", PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert "no --e->kappa." in done.stderr


def test_a_reader_that_goes_away_is_no_error():
    script = f"{sys.executable} -m fedexp list partitioners --json | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_an_interrupt_before_the_first_round_is_one_line_and_code_130(capsys, monkeypatch):
    from fedexp import factories

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(factories, "partition_of", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["simulate"])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "fedexp: error: interrupted.\n"


def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it(monkeypatch, capsys):
    from fedexp import extras

    find_spec = extras.find_spec
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    assert "pip install 'fedexp[simulation]'" in refused(capsys, "simulate", "--engine", "serial")


def test_a_run_whose_reader_goes_away_says_how_to_go_on(tmp_path):
    flags = f"--engine serial --strategy fedavg --rounds 8 --local-steps 1 --out {tmp_path / 'r'}"
    script = f"({sys.executable} -m fedexp simulate {flags}; echo $? >&2) | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    line, code = done.stderr.splitlines()
    assert line.endswith(f"go on with: fedexp resume {tmp_path / 'r'}")
    assert code == "1"


def test_what_to_type_next_survives_the_shell(tmp_path):
    import shlex

    from fedexp.terminal import command

    assert shlex.split(command("fedexp", "resume", "my runs/it's")) == [
        *("fedexp", "resume", "my runs/it's")
    ]


def test_a_schedule_is_checked_by_its_exponents(capsys):
    cli.main(["check-schedule", "0.75", "0"])
    assert "Guaranteed: the weights go to the ridge solution" in capsys.readouterr().out
    cli.main(["check-schedule", "0.75", "0", "--sigma", "2"])
    assert "coefficient 4 N" in capsys.readouterr().out  # sigma² N


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["slow", "0"], "check-schedule X 'slow': must be a number."),
        (["1", "0", "--offset", "0"], "offset"),
        (["-1", "0"], "-1"),
    ],
)
def test_a_schedule_that_cannot_be_is_one_line(words, line, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["check-schedule", *words])
    assert ended.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
