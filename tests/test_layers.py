"""Imports point one way. Read from the source; nothing of it is imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedexp"
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}

TOOLS = {"arrays", "extras", "files", "logs", "specs", "threads", "terminal"}
RECORDS = TOOLS | {"records", "fold"}
LEARNING = {"clients", "datasets", "models"}  # and nothing of ours but records
SERVER = RECORDS | {"stats", "wire", "merged", "strategies", "foreign_draws", "rounds"}
# A room is a module or a package directly in fedexp. A new one says here what it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "arrays": set(),
    "extras": set(),
    "terminal": set(),
    "logs": {"terminal"},
    "specs": set(),
    "threads": set(),
    "files": {"arrays"},
    "records": {"arrays"},
    "fold": set(),
    "foreign_draws": set(),
    "stats": {"arrays", "fold"},
    "wire": {"arrays", "records"},
    "merged": {"arrays", "records", "stats", "wire"},
    "strategies": SERVER - {"rounds"},
    "rounds": SERVER,
    "hypergradients": set(),
    "datasets": TOOLS | LEARNING - {"clients"},
    "models": TOOLS | LEARNING - {"clients"},
    "clients": RECORDS | LEARNING | {"wire", "hypergradients"},
    "config": TOOLS | {"clients"},  # their settings, and so their defaults
    "progress": TOOLS,
    "console": TOOLS | {"progress"},
    "parser": TOOLS,
    "readers": SERVER | LEARNING | {"config"},
    "verdict": SERVER - {"rounds"},
    "choices": SERVER | LEARNING | {"config", "readers"},
    "factories": SERVER | LEARNING | {"config", "choices"},
    "checks": SERVER | LEARNING | {"config", "readers", "choices", "factories"},
    "simulation": SERVER | LEARNING | {"config"},
    "runs": SERVER
    | LEARNING
    | {"config", "readers", "choices", "factories", "checks", "verdict", "simulation"},
    "app": SERVER | LEARNING | {"config", "choices", "factories", "checks", "verdict", "runs"},
    "listing": SERVER | LEARNING | {"config"},
    "flags": TOOLS | {"config", "parser", "listing"},
    "doctor": SERVER | LEARNING | {"simulation"},
    "cli": SERVER
    | LEARNING
    | {"flags", "parser", "listing", "doctor", "checks", "verdict", "runs", "console"},
    "__main__": {"cli"},
}
# Testable with NumPy alone: no Flower, no Ray, no torch, and of ours only each other.
MATHEMATICS = ["arrays", "fold", "stats"] + [
    f"strategies.{name}"
    for name in (
        *("rules", "directions", "step_sizes", "extrapolation", "optimizer", "scaffold"),
        *("averages", "running_ratio", "extensions", "rate_sharing"),
        *("robustness", "medians", "proximal"),
    )
    if (PACKAGE / "strategies" / f"{name}.py").exists()
]
HEAVY = {"sklearn", "matplotlib", "pandas", "flwr_datasets", "datasets", "ray"}


def imports(node: ast.AST) -> set[str]:
    """Full names of all that is imported anywhere below ``node``, lazily or not."""
    found = set()
    for x in ast.walk(node):
        if isinstance(x, ast.Import):
            found |= {alias.name for alias in x.names}
        elif isinstance(x, ast.ImportFrom):
            assert x.level == 0, "imports are absolute"
            found |= {f"{x.module}.{alias.name}" for alias in x.names}
    return found


def at_import(tree: ast.Module) -> set[str]:
    """What the module imports before any function is called."""
    inside = {
        id(x)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
        for x in ast.walk(f)
    }
    statements = [x for x in ast.walk(tree) if isinstance(x, ast.Import | ast.ImportFrom)]
    return {name for x in statements if id(x) not in inside for name in imports(x)}


def room(file: str) -> str:
    return file.split("/")[1].removesuffix(".py")


def ours(names: set[str]) -> set[str]:
    """Rooms among imported names."""
    return {name.split(".")[1] for name in names if name.startswith("fedexp.")}


def test_every_room_has_its_layer():
    rooms = {room(name) for name in FILES} - {"__init__"}
    assert rooms <= MAY_IMPORT.keys()


def test_the_layers_have_no_cycle_above_clients_datasets_and_models():
    order = list(MAY_IMPORT)
    for name, below in MAY_IMPORT.items():
        upwards = {x for x in below if order.index(x) >= order.index(name)} - {name}
        assert not upwards - LEARNING


@pytest.mark.parametrize("file", FILES)
def test_imports_point_downwards(file):
    if room(file) != "__init__":
        assert ours(imports(TREES[file])) <= MAY_IMPORT[room(file)] | {room(file)}


@pytest.mark.parametrize("module", MATHEMATICS)
def test_the_mathematics_needs_numpy_alone(module):
    names = imports(TREES[f"fedexp/{module.replace('.', '/')}.py"])
    assert not {name.split(".")[0] for name in names} & {"flwr", "ray", "torch"}
    own = {name.removeprefix("fedexp.") for name in names if name.startswith("fedexp.")}
    assert all(any(x.startswith(f"{pure}.") for pure in MATHEMATICS) for x in own)


@pytest.mark.parametrize("file", FILES)
def test_flowers_private_api_is_used_in_one_file_alone(file):
    if file != "fedexp/simulation/grid.py":
        assert "flwr.supercore" not in FILES[file].read_text(encoding="utf-8")


@pytest.mark.parametrize("file", FILES)
def test_ray_is_imported_by_the_ray_engine_alone(file):
    if not file.startswith("fedexp/simulation/ray"):
        assert "ray" not in {name.split(".")[0] for name in imports(TREES[file])}


@pytest.mark.parametrize("file", FILES)
def test_heavy_optional_libraries_wait_until_they_are_used(file):
    if not file.startswith("fedexp/simulation/ray"):
        assert not {name.split(".")[0] for name in at_import(TREES[file])} & HEAVY


@pytest.mark.parametrize("file", FILES)
def test_package_files_hold_names_and_no_logic(file):
    if file.endswith("__init__.py"):
        docstring, *rest = TREES[file].body
        assert isinstance(docstring, ast.Expr)
        allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign
        for x in rest:
            for_types = isinstance(x, ast.If) and ast.unparse(x.test) == "TYPE_CHECKING"
            assert for_types or isinstance(x, allowed)


@pytest.mark.parametrize("file", FILES)
def test_modules_are_nouns_of_their_own(file):
    banned = {"utils", "helpers", "common", "base", "core", "misc", "types"}
    assert not banned & {part.removesuffix(".py") for part in file.split("/")}


@pytest.mark.parametrize("file", FILES)
def test_nothing_draws_from_a_global_generator(file):
    if file == "fedexp/foreign_draws.py":  # which seeds them for others and leaves them as before
        return
    text = FILES[file].read_text(encoding="utf-8")
    assert "np.random.seed(" not in text
    assert "import random\n" not in text
