"""The public names: sorted, complete, documented."""

import ast
import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import fedexp

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "fedexp").rglob("*.py"))
PACKAGES = [
    ".".join(path.parent.relative_to(ROOT).parts) for path in FILES if path.name == "__init__.py"
]
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_and_complete(name):
    package = import_module(name)
    # Constants first, then classes, then functions: the order that ruff keeps.
    key = {True: 0, False: 1}
    expected = sorted(package.__all__, key=lambda x: (key[x.isupper()], key[x[:1].isupper()], x))
    assert package.__all__ == expected
    assert len(set(package.__all__)) == len(package.__all__)
    own = {
        x
        for x in dir(package)
        if not x.startswith("_")
        and not inspect.ismodule(getattr(package, x))
        and x != "TYPE_CHECKING"
    }
    assert own == {x for x in package.__all__ if not x.startswith("_")}
    assert all(hasattr(package, x) for x in package.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_names_that_load_later_are_those_that_type_checkers_see(name):
    tree = ast.parse(Path(import_module(name).__file__).read_text(encoding="utf-8"))
    for block in (x for x in tree.body if isinstance(x, ast.If)):
        assert ast.unparse(block.test) == "TYPE_CHECKING"
        seen = _names_of(block.body)
        (table,) = (x.value for x in block.orelse)
        later = {x.arg: x.value.value for x in table.keywords}
        assert later == seen
        # Importing a submodule of the same name would put the module in the name's place.
        assert not [x for x in later if find_spec(f"{name}.{x}")]


def _names_of(body):
    """``module`` by name of the imports in ``body``; ``module:name`` of an alias."""
    found = {}
    for x in body:
        if isinstance(x, ast.ImportFrom):
            found |= {alias.name: x.module for alias in x.names}
            assert not [alias for alias in x.names if alias.asname]
        else:  # Old = New
            (old,) = x.targets
            found[old.id] = f"{found[x.value.id]}:{x.value.id}"
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_documented(name):
    package = import_module(name)
    assert package.__doc__
    for x in package.__all__:
        value = getattr(package, x)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, x
            assert value.__doc__.strip().splitlines()[0].endswith((".", ":")), x


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_public_function_class_and_module_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    scopes = [tree, *(x for x in tree.body if isinstance(x, ast.ClassDef))]
    for scope in scopes:
        if isinstance(scope, ast.ClassDef) and scope.name.startswith("_"):
            continue
        for x in scope.body:
            if isinstance(x, DEFINITIONS) and not x.name.startswith("_"):
                assert ast.get_docstring(x), f"{path.name}: {x.name}"


def test_the_changelogs_top_version_is_the_packages():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    assert versions[0] == fedexp.__version__
    assert versions == sorted(versions, key=lambda v: [*map(int, v.split("."))], reverse=True)
