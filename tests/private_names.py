"""Private names of Flower, PyTorch and Ray, and patches of them, found in source text."""

import ast
import re
from collections.abc import Iterator

# Modules that no release promises to keep.
PRIVATE_MODULES = re.compile(
    r"(flwr\.(supercore|supernode|superlink|proto|app\.message|common\.(serde|serde_utils|config|constant))"
    r"|ray\.(_\w+|experimental))(\.|$)"
)
# Attributes, keys and settings: one underscore, or Ray's own marks.
PRIVATE = re.compile(r"_[a-z]\w*|__ray_\w+|RAY_[a-z]\w*")


def private_names(tree: ast.AST) -> set[str]:
    """What the code uses of others that has no public name; its own ``self._x`` do not count."""
    return {name for node in ast.walk(tree) for name in _names(node)}


def _names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            pass
        case ast.Attribute(attr=name) if PRIVATE.fullmatch(name):
            yield name
        case ast.Constant(value=str(text)) if PRIVATE.fullmatch(text):
            yield text
        case ast.keyword(arg=str(name)) if PRIVATE.fullmatch(name):
            yield name
        case ast.Import(names=names):
            yield from (x.name for x in names if PRIVATE_MODULES.match(x.name))
        case ast.ImportFrom(module=str(module), names=names):
            theirs = module.split(".")[0] in ("flwr", "ray")
            yield from (
                full
                for x in names
                if PRIVATE_MODULES.match(full := f"{module}.{x.name}")
                or (theirs and x.name.startswith("_"))
            )
        case ast.Call(func=ast.Name(id="Patch"), args=[owner], keywords=methods):
            yield from (f"{ast.unparse(owner)}.{x.arg}" for x in methods)
        case ast.Call(func=ast.Name(id="Message"), keywords=given):
            yield from (f"Message({x.arg}=)" for x in given if x.arg == "metadata")
        case ast.Assign(targets=targets):
            yield from _assigned(targets)


def _assigned(targets: list[ast.expr]) -> Iterator[str]:
    """Attributes that are set on anything but ``self``."""
    for target in targets:
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        for x in parts:
            match x:
                case ast.Attribute(value=ast.Name(id="self")):
                    pass
                case ast.Attribute(attr=name) if not PRIVATE.fullmatch(name):
                    yield name if name.startswith("__") else ast.unparse(x)
