"""Each example in a docstring runs alone, every public name has one, and none means two things."""

import ast
import doctest
import inspect
from collections import defaultdict
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "fedexp").rglob("*.py"))
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in FILES}
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# The named strategies for Flower's older API. The example of each is that of its twin.
TWINS = {
    *("FedAdagrad", "FedAdam", "FedAnderson", "FedAvg", "FedAvgM", "FedBB", "FedDoG", "FedDoWG"),
    *("FedExP", "FedExPM", "FedExProx", "FedHyper", "FedProx", "FedProxExP", "FedScheduleFree"),
    *("FedYogi", "NesterovExP"),
}

# Packages in which every public class and function has an example, but for those named here.
COMPLETE: dict[str, set[str]] = {
    "fedexp": set(),
    "fedexp.clients": set(),
    "fedexp.augmentation": set(),
    "fedexp.datasets": set(),
    "fedexp.devices": {"Served", "serving"},  # they start processes
    "fedexp.models": set(),
    "fedexp.hypergradients": set(),
    "fedexp.learned_steps": set(),
    "fedexp.privacy": set(),
    "fedexp.strategies": set(),
    "fedexp.strategies.legacy": TWINS,
    "fedexp.simulation": {"RayGrid"},  # it starts processes
    "fedexp.runs": set(),
}

# Examples that are shown and not run, and why.
SKIPPED = {"fedexp.datasets.hub.from_hub": "it downloads from the Hub"}

# Names that are defined in two modules on purpose, and why.
ENTRY = "what starts a process is called main, in the command line as in Flower's apps"
COMMAND = "the command line's function has the name of its command, and calls the other one"
DEFINED_TWICE = {
    **dict.fromkeys(["check_schedule", "report", "serve", "simulate"], COMMAND),
    "main": ENTRY,
    **dict.fromkeys([*TWINS, "FedOpt"], "the same strategy for Flower's older API"),
}


def docstrings(tree):
    documented = (x for x in ast.walk(tree) if isinstance(x, DEFINITIONS | ast.Module))
    return [text for x in documented if (text := ast.get_docstring(x)) and ">>> " in text]


WITH_EXAMPLES = [name for name, text in TEXTS.items() if ">>> " in text]


def module_of(file):
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("file", WITH_EXAMPLES)
def test_each_example_of_a_module_runs_alone(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = import_module(module_of(file))
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [x for x in finder.find(module, globs={}) if x.examples]  # no name of the module's
    assert len(found) == len(
        docstrings(ast.parse(TEXTS[file]))
    )  # none is hidden behind a decorator
    for test in found:
        skips = any(doctest.SKIP in example.options for example in test.examples)
        assert skips == (test.name in SKIPPED), test.name
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for test in found:
            runner.run(test)
    assert not runner.summarize(verbose=False).failed


def exported_above(module, name):
    """Whether a package around the module has the name too, so that it is public there."""
    parts = module.split(".")
    above = (import_module(".".join(parts[:i])) for i in range(1, len(parts)))
    return any(name in getattr(package, "__all__", ()) for package in above)


@pytest.mark.parametrize("file", WITH_EXAMPLES)
def test_examples_first_import_what_they_use_from_where_it_is_public(file):
    imports = ast.Import | ast.ImportFrom
    for text in docstrings(ast.parse(TEXTS[file])):
        tree = ast.parse("".join(x.source for x in doctest.DocTestParser().get_examples(text)))
        first = list(takewhile(lambda x: isinstance(x, imports), tree.body))
        assert first == [x for x in ast.walk(tree) if isinstance(x, imports)], text
        names = [alias.asname or alias.name for x in first for alias in x.names]
        used = {x.id for x in ast.walk(tree) if isinstance(x, ast.Name)}
        assert {name.partition(".")[0] for name in names} <= used, text
        ours = (x for x in first if isinstance(x, ast.ImportFrom) and x.module.startswith("fedexp"))
        assert not [x for x in ours for alias in x.names if exported_above(x.module, alias.name)]


def lacking(package):
    values = {name: getattr(package, name) for name in package.__all__}
    return {
        name
        for name, value in values.items()
        if (inspect.isclass(value) or inspect.isroutine(inspect.unwrap(value)))
        and ">>> " not in inspect.cleandoc(value.__doc__ or "").partition("\nExample:\n")[2]
    }


def test_every_package_with_public_names_is_held_to_that():
    packages = {module_of(file) for file in TEXTS if file.endswith("/__init__.py")}
    assert {name for name in packages if import_module(name).__all__} == COMPLETE.keys()


@pytest.mark.parametrize("name", COMPLETE)
def test_every_public_class_and_function_has_an_example(name):
    assert lacking(import_module(name)) == COMPLETE[name]


def defined_twice():
    modules = defaultdict(list)
    for file, text in TEXTS.items():
        for x in ast.parse(text).body:
            if isinstance(x, DEFINITIONS) and not x.name.startswith("_"):
                modules[x.name].append(module_of(file))
    return {name: where for name, where in modules.items() if len(where) > 1}


def test_no_public_name_is_defined_in_two_modules():
    found = defined_twice()
    assert found.keys() == DEFINED_TWICE.keys(), found
