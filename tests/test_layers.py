"""Imports point one way. Read from the source; nothing of it is imported."""

import ast
from functools import cache
from pathlib import Path

import pytest
from private_names import PRIVATE_MODULES, private_names

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedexp"
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}

TOOLS = {"keys", "arrays", "extras", "files", "logs", "specs", "threads", "terminal"}
RECORDS = TOOLS | {"simulation.flower", "records", "sums"}
LEARNING = {"clients", "datasets", "models"}  # and nothing of ours but records
CONDITIONS = {"simulation.faults", "simulation.profiles", "simulation.conditions"}
SERVER = RECORDS | {"stats", "wire", "merged", "strategies", "foreign_draws", "rounds"}
# A room is a module or a package directly in fedexp, or a package below one that has a row of its
# own. A new one says here what it may import.
MAY_IMPORT: dict[str, set[str]] = {
    "keys": set(),
    "arrays": set(),
    "extras": set(),
    "terminal": set(),
    "logs": {"terminal"},
    "specs": set(),
    "simulation.faults": {"specs"},  # the text of settings: nothing heavy
    "simulation.profiles": {"specs", "simulation.faults"},
    "threads": set(),
    "files": {"arrays"},
    "simulation.flower": {"arrays"},
    "records": {"arrays", "simulation.flower"},
    "sums": set(),
    "foreign_draws": set(),
    "privacy": {"extras", "specs", "keys"},  # mathematics: no Flower, no PyTorch at import
    "stats": {"arrays", "sums"},
    "wire": {"keys", "arrays", "records"},
    "simulation.conditions": {"keys", "arrays", "records", "wire"}
    | {"simulation.faults", "simulation.profiles"},
    "merged": {"arrays", "records", "stats", "wire"},
    "strategies": SERVER - {"rounds"} | {"privacy"},
    "rounds": SERVER,
    "augmentation": {"extras", "specs"},
    "hypergradients": set(),
    "learned_steps": set(),
    "datasets": TOOLS | LEARNING - {"clients"},
    "models": TOOLS | LEARNING - {"clients"},
    "clients": RECORDS
    | LEARNING
    | {"wire", "augmentation", "hypergradients", "learned_steps", "privacy"}
    | CONDITIONS,
    "config": TOOLS | {"clients"} | CONDITIONS,  # their settings, and so their defaults
    "progress": TOOLS,
    "console": TOOLS | {"progress"},
    "parser": TOOLS,
    "readers": SERVER | LEARNING | {"config"},
    "verdict": SERVER - {"rounds"},
    "agreement": SERVER | LEARNING | {"config"},
    "choices": SERVER | LEARNING | {"config"},
    "strategy_settings": SERVER | {"config", "readers"},
    "strategy_factory": SERVER
    | LEARNING
    | CONDITIONS
    | {"config", "choices", "agreement", "strategy_settings"},
    "factories": SERVER | LEARNING | {"config", "choices"},
    "checks": SERVER | LEARNING | {"config", "readers", "choices", "factories"},
    "simulation": SERVER | LEARNING | CONDITIONS | {"config"},
    "runs": SERVER
    | LEARNING
    | CONDITIONS
    | {"config", "readers", "choices", "factories", "checks", "verdict", "simulation"}
    | {"strategy_settings", "strategy_factory"},
    "devices.flower": {"arrays", "simulation.flower"},
    "app": SERVER
    | LEARNING
    | {"config", "choices", "factories", "strategy_factory", "checks", "verdict", "runs"},
    "listing": SERVER | LEARNING | {"config"},
    "flags": TOOLS | {"config", "parser", "listing"},
    "devices": SERVER
    | LEARNING
    | {"parser", "flags", "config", "choices", "checks", "simulation", "runs"}
    | {"devices.flower", "simulation.flower"},
    "doctor": SERVER | LEARNING | {"simulation"},
    "commands": SERVER
    | LEARNING
    | {"augmentation", "flags", "parser", "listing", "doctor", "checks", "verdict", "runs"}
    | {"console"},
    "cli": TOOLS | {"commands", "devices", "flags", "parser"},
    "__main__": {"cli"},
}
# Testable with NumPy alone: no Flower, no Ray, no torch, and of ours only each other.
MATHEMATICS = ["keys", "arrays", "sums", "stats"] + [
    f"strategies.{name}"
    for name in (
        *("directions", "step_sizes", "extrapolation", "optimizer", "scaffold"),
        *("averages", "running_ratio", "extensions", "rate_sharing", "step_sharing"),
        *("robustness", "medians", "proximal", "barzilai_borwein"),
        *("distance_over_gradients", "schedule_free", "anderson", "line_search"),
        *("trust_region", "normalized_averaging", "dynamic_regularization"),
        *("private_layers", "kinds"),
    )
]
MATHEMATICS += [
    f"augmentation.{name}"
    for name in (
        "schedules",
        "unseen",
        "findings",
        "conditions",
        "regression",
        "noise",
        "pairings",
        "projections",
    )
]
# Where records are written and read: their keys stand in fedexp.keys alone.
KEYED = ("wire.py", "merged.py", "rounds.py", "clients/", "strategies/", "simulation/")
HEAVY = {"sklearn", "matplotlib", "pandas", "flwr_datasets", "datasets", "ray"}


@cache
def tree(file: str) -> ast.Module:
    return ast.parse(FILES[file].read_text(encoding="utf-8"))


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
    found: set[str] = set()
    todo: list[ast.AST] = [tree]
    while todo:
        x = todo.pop()
        if isinstance(x, ast.Import | ast.ImportFrom):
            found |= imports(x)
        elif not isinstance(x, ast.FunctionDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(x)
    return found


@cache
def imported_in(file: str) -> set[str]:
    """Full names of all that a module imports, lazily or not."""
    return imports(tree(file))


def room_of(name: str) -> str:
    """The room of a module or of a name in it: the longest that has a row, else the first level."""
    parts = name.split(".")[1:]
    dotted = [".".join(parts[:i]) for i in range(len(parts), 1, -1)]
    return next((x for x in dotted if x in MAY_IMPORT), parts[0])


def room(file: str) -> str:
    return room_of(file.removesuffix(".py").replace("/", "."))


def ours(names: set[str]) -> set[str]:
    """Rooms among imported names."""
    return {room_of(name) for name in names if name.startswith("fedexp.")}


def in_fence(file: str) -> bool:
    """Whether private names of Flower, and of Ray, may be used there."""
    return (
        file.startswith(("fedexp/simulation/flower/", "fedexp/devices/flower/"))
        or file == "fedexp/simulation/ray/private.py"
    )


def test_every_room_has_its_layer():
    rooms = {room(name) for name in FILES} - {"__init__"}
    assert rooms <= MAY_IMPORT.keys()


def test_the_layers_have_no_cycle_above_clients_datasets_and_models():
    order = list(MAY_IMPORT)
    for name, below in MAY_IMPORT.items():
        upwards = {x for x in below if order.index(x) >= order.index(name)} - {name}
        assert not upwards - LEARNING


def test_imports_point_downwards():
    for file in FILES:
        if room(file) != "__init__":
            waiting = {"extras"} if file.endswith("__init__.py") else set()  # names that load later
            allowed = MAY_IMPORT[room(file)] | {room(file)} | waiting
            assert ours(imported_in(file)) <= allowed, file


@pytest.mark.parametrize("module", MATHEMATICS)
def test_the_mathematics_needs_numpy_alone(module):
    names = imports(tree(f"fedexp/{module.replace('.', '/')}.py"))
    assert not {name.split(".")[0] for name in names} & {"flwr", "ray", "torch"}
    own = {name.removeprefix("fedexp.") for name in names if name.startswith("fedexp.")}
    assert all(any(f"{x}.".startswith(f"{pure}.") for pure in MATHEMATICS) for x in own)


@cache
def fenced() -> set[str]:
    return {name for file in FILES if in_fence(file) for name in private_names(tree(file))}


def test_private_names_of_flower_and_ray_are_in_the_fence_alone():
    for file in FILES:
        if not in_fence(file):
            used = private_names(tree(file))
            assert not used & fenced(), file
            assert not {name for name in used if PRIVATE_MODULES.match(name)}, file


def test_the_fence_is_light():
    """A device that only wants records imports neither PyTorch nor Ray, nor an engine."""
    for file in FILES:
        if in_fence(file) and not file.endswith(("profiler_marks.py", "private.py")):
            assert not {name.split(".")[0] for name in imported_in(file)} & {"torch", "ray"}
    assert not ours(at_import(tree("fedexp/simulation/__init__.py"))) - {"extras", "simulation"}


def test_ray_is_imported_by_the_ray_engine_alone():
    for file in FILES:
        if not file.startswith("fedexp/simulation/ray"):
            assert "ray" not in {name.split(".")[0] for name in imported_in(file)}, file


def test_heavy_optional_libraries_wait_until_they_are_used():
    for file in FILES:
        if not file.startswith("fedexp/simulation/ray"):
            assert not {name.split(".")[0] for name in at_import(tree(file))} & HEAVY, file


def test_package_files_hold_names_and_no_logic():
    for file in (x for x in FILES if x.endswith("__init__.py")):
        docstring, *rest = tree(file).body
        assert isinstance(docstring, ast.Expr), file
        allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign
        for x in rest:
            for_types = isinstance(x, ast.If) and ast.unparse(x.test) == "TYPE_CHECKING"
            parts = [*x.body, *x.orelse] if for_types else [x]
            assert all(isinstance(part, allowed) for part in parts), file


def test_modules_are_nouns_of_their_own():
    banned = {"utils", "helpers", "common", "base", "core", "misc", "types"}
    for file in FILES:
        assert not banned & {part.removesuffix(".py") for part in file.split("/")}, file


def test_nothing_draws_from_a_global_generator():
    for file, path in FILES.items():
        if file != "fedexp/foreign_draws.py":  # it seeds them for others and leaves them as before
            text = path.read_text(encoding="utf-8")
            assert "np.random.seed(" not in text, file
            assert "import random\n" not in text, file


def test_the_keys_of_records_are_written_in_one_module_alone():
    known = {x.value for x in ast.walk(tree("fedexp/keys.py")) if isinstance(x, ast.Constant)}
    for file in FILES:
        if file.removeprefix("fedexp/").startswith(KEYED):
            texts = {x.value for x in ast.walk(tree(file)) if isinstance(x, ast.Constant)}
            assert not texts & known, file
