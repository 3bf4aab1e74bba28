"""What a picture or a page says of the runs it shows, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedexp.runs.reading import UnitResult

# Partitioner to the key that says how uneven it is, and its sign.
_KNOBS = {
    "dirichlet": ("alpha", "α"),
    "quantity-dirichlet": ("alpha", "α"),
    "quantity-lognormal": ("sigma", "σ"),
    "shards": ("shards-per-client", "shards a client"),
    "classes": ("classes-per-client", "classes a client"),
}


def title_of(units: Sequence[UnitResult], config: Mapping[str, Any]) -> str:
    """Dataset, partition and seeds: ``digits, dirichlet (α = 0.1), seeds 0 to 4``."""
    config = agreed(units, config)
    parts = [dataset_title(units, config), partition_title(config), seeds_title(units)]
    return ", ".join(part for part in parts if part)


def agreed(units: Sequence[UnitResult], config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` without the keys in which the units differ."""
    return {k: v for k, v in config.items() if not any(k in unit.settings for unit in units)}


def dataset_title(units: Sequence[UnitResult], config: Mapping[str, Any]) -> str:
    """The dataset, or the user's own files; empty if the runs do not agree."""
    own = str(config.get("data") or config.get("dataset") or shared(units, "dataset"))
    # Of a path from the root the end says what it is.
    return "/".join(Path(own).parts[-2:]) if Path(own).is_absolute() else own


def shared(units: Sequence[UnitResult], key: str) -> str:
    """What all units that say anything say of themselves; empty if they do not agree."""
    found = {str(unit.about[key]) for unit in units if unit.about.get(key)}
    return found.pop() if len(found) == 1 else ""


def partition_title(config: Mapping[str, Any]) -> str:
    """How the clients' shares were made; empty if the runs do not agree."""
    name = config.get("partitioner", "")
    if name == "auto":
        name = "natural" if config.get("client-from") else "dirichlet"
    if name == "natural":
        return "natural partition"
    key, sign = _KNOBS.get(name, ("", ""))
    return f"{name} ({sign} = {config[key]:g})" if key in config else str(name)


def seeds_title(units: Sequence[UnitResult]) -> str:
    """``seed 0``, ``seeds 0 to 4`` or ``seeds 0, 3, 7``, of all but tuning."""
    seeds = sorted({unit.seed for unit in units if unit.seed is not None and not unit.tuning})
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if seeds else ""
