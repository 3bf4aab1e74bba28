"""The table of named strategies: what each one does, and when to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedexp.strategies import (
    adaptive_presets,
    algorithm_presets,
    optimization_presets,
    presets,
)
from fedexp.strategies.fedopt import FedOpt


@dataclass(frozen=True)
class Entry:
    """A row of the table of strategies.

    Attributes:
        strategy: the class.
        line: what it does, in a line.
        formula: its server step, or what its clients do if it differs from FedAvg there.
        source: authors, year and arXiv number.
        use: when to use it.
        options: arguments of the class on the command line, if its own default, which is
            Flower's, would turn the method off.
        all_clients: whether all clients must train in every round.
    """

    strategy: type[FedOpt]
    line: str
    formula: str
    source: str
    use: str
    options: Mapping[str, float] = field(default_factory=dict)
    all_clients: bool = False


_REDDI = "Reddi et al. 2021, arXiv:2003.00295"
_EXP = "Jhunjhunwala, Wang & Joshi 2023, arXiv:2301.09604"

STRATEGIES: dict[str, Entry] = {
    "fedavg": Entry(
        presets.FedAvg,
        "mean of the clients' models",
        "w ← w - η Δ̄",
        "McMahan et al. 2017, arXiv:1602.05629",
        "the baseline; under Flower's differential-privacy wrappers",
    ),
    "fedavgm": Entry(
        presets.FedAvgM,
        "server momentum",
        "m ← Δ̄ + β m, w ← w - η m",
        "Hsu, Qi & Brown 2019, arXiv:1909.06335",
        "skewed labels, few clients a round",
        {"server_momentum": 0.9},
    ),
    "fedadagrad": Entry(
        presets.FedAdagrad,
        "a step size for every coordinate, from its past",
        "v ← v + Δ̄², w ← w - η Δ̄/(√v + τ)",
        _REDDI,
        "sparse features, such as word embeddings; η and τ need a search",
    ),
    "fedadam": Entry(
        presets.FedAdam,
        "Adam on the server",
        "v ← β₂v + (1-β₂)Δ̄², w ← w - η m/(√v + τ)",
        _REDDI,
        "models whose layers differ in scale; η and τ need a search",
    ),
    "fedyogi": Entry(
        presets.FedYogi,
        "Adam that forgets large rounds slowly",
        "v ← v - (1-β₂)Δ̄² sign(v - Δ̄²), w ← w - η m/(√v + τ)",
        _REDDI,
        "as FedAdam, when rounds are noisy",
    ),
    "fedprox": Entry(
        presets.FedProx,
        "clients held near the server's model",
        "clients: fᵢ(y) + μ/2 ‖y - w‖²",
        "Li et al. 2020, arXiv:1812.06127",
        "many local steps, or clients that do unequal work",
        {"proximal_mu": 0.1},
    ),
    "scaffold": Entry(
        presets.Scaffold,
        "clients that correct their drift",
        "clients: y ← y - η_l (g - cᵢ + c)",
        "Karimireddy et al. 2020, arXiv:1910.06378",
        "the same clients come back, and can store a model",
    ),
    "fedexp": Entry(
        adaptive_presets.FedExP,
        "longer steps when clients disagree",
        "η = max(1, Σpᵢ‖Δᵢ‖²/Σpᵢ / (2(‖Δ̄‖² + ε))), w ← w - η Δ̄",
        _EXP,
        "no server step to search for, nothing new at the clients; use an averaged iterate",
    ),
    "fedexpm": Entry(
        adaptive_presets.FedExPM,
        "FedExP with server momentum",
        "r ← Σpᵢ‖Δᵢ‖²/Σpᵢ + ½βr, η = r/(2(‖m‖² + ε)), w ← w - η m",
        _EXP,
        "where FedAvgM beats FedAvg",
    ),
    "nesterovexp": Entry(
        adaptive_presets.NesterovExP,
        "Nesterov's direction with FedExP's smoothed step",
        "m ← Δ̄ + μm, η = κ max(1, N/(2Q)), w ← w - η(Δ̄ + μm)",
        "ours, of Douillard et al. 2023, arXiv:2311.08105 and FedExP, arXiv:2301.09604",
        "a first choice where it can be evaluated at an average of the iterates",
    ),
    "fedproxexp": Entry(
        adaptive_presets.FedProxExP,
        "FedExP's step on FedProx's clients",
        "as FedExP; clients: fᵢ(y) + μ/2 ‖y - w‖²",
        _EXP,
        "where FedProx beats FedAvg",
    ),
    "scaffoldexp": Entry(
        adaptive_presets.ScaffoldExP,
        "FedExP's step on SCAFFOLD's clients",
        "as FedExP; clients: y ← y - η_l (g - cᵢ + c)",
        _EXP,
        "where SCAFFOLD beats FedAvg",
    ),
    "fedexprox": Entry(
        adaptive_presets.FedExProx,
        "extrapolated proximal points",
        "η = Σpᵢ‖Δᵢ‖²/Σpᵢ / ‖Δ̄‖², w ← w - η Δ̄; clients: prox of γfᵢ",
        "Li, Acharya & Richtárik 2024, arXiv:2405.13766",
        "convex problems, clients that solve their local problem almost exactly",
    ),
    "fedhyper": Entry(
        adaptive_presets.FedHyper,
        "a step that follows its own gradient",
        "a ← clip(a + κ⟨Δ̄, Δ̄₋₁⟩), w ← w - (1 + a) Δ̄",
        "Wang, Wang & Li 2024, arXiv:2310.03156",
        "long runs where successive rounds point the same way",
    ),
    "fedbb": Entry(
        optimization_presets.FedBB,
        "the curvature along the last step, from two rounds",
        "η = ⟨s, y⟩/‖y‖², s = w - w₋₁, y = Δ̄ - Δ̄₋₁, w ← w - η Δ̄",
        "ours, of Barzilai & Borwein 1988 and FedExP, arXiv:2301.09604",
        "all clients train in every round, and their losses are smooth",
        all_clients=True,
    ),
    "fedanderson": Entry(
        optimization_presets.FedAnderson,
        "a step from what the last rounds have in common",
        "w ← w - Wγ - η(Δ̄ - Dγ), γ = argmin ‖Δ̄ - Dγ‖, η = max(1, Σpᵢ‖Δᵢ‖²/Σpᵢ / (2‖Δ̄‖²))",
        "ours, of Anderson 1965 and FedExP, arXiv:2301.09604",
        "as FedBB, when the server can hold a dozen models",
        all_clients=True,
    ),
    "feddog": Entry(
        optimization_presets.FedDoG,
        "a step as long as the way so far allows",
        "η = r/√(Σ‖Δ̄ᵢ‖²), r = max ‖wᵢ - w₀‖, w ← w - η Δ̄",
        "Ivgi, Hinder & Carmon 2023, arXiv:2302.12022",
        "long runs without a step to choose; evaluate `--average poly-8`",
    ),
    "feddowg": Entry(
        optimization_presets.FedDoWG,
        "DoG with more weight on late rounds",
        "η = r²/√(Σrᵢ²‖Δ̄ᵢ‖²), r = max ‖wᵢ - w₀‖, w ← w - η Δ̄",
        "Khaled, Mishchenko & Jin 2023, arXiv:2305.16284",
        "as FedDoG, and faster from a small start; evaluate `--average poly-8`",
    ),
    "fedschedulefree": Entry(
        optimization_presets.FedScheduleFree,
        "a mean of the iterates in place of a falling step",
        "z ← z - η Δ̄(y), x ← (1 - 1/t)x + z/t, y ← βx + (1-β)z",
        "Defazio et al. 2024, arXiv:2405.15682",
        "long runs of unknown length; evaluate `--average poly-9`; η needs a search",
    ),
    "fednova": Entry(
        algorithm_presets.FedNova,
        "the mean update of a local step",
        "w ← w - (Σ pᵢτᵢ) Σ pᵢ Δᵢ/τᵢ, Σ pᵢ = 1",
        "Wang et al. 2020, arXiv:2007.07481",
        "clients that take unequally many steps, as with `--local-epochs`",
    ),
    "feddyn": Entry(
        algorithm_presets.FedDyn,
        "losses whose minimum moves to that of all clients",
        "w ← w - Δ̄ - h/α; clients: fᵢ(y) - ⟨λᵢ, y⟩ + α/2 ‖y - w‖²",
        "Acar et al. 2021, arXiv:2111.04263",
        "the same clients come back, can store a model, and nearly solve their problem",
    ),
}
"""Rows by key of ``--strategy``; the command line, the documents and the tests read them."""


def strategies_table() -> str:
    """The table of `STRATEGIES` as Markdown, as docs/strategies.md has it.

    Example:
        >>> from fedexp.strategies.table import strategies_table
        >>> strategies_table().splitlines()[2][:22]
        '| `fedavg` | FedAvg: m'
    """
    head = "| `--strategy` | what | formula | when | source |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| `{key}` | {row.strategy.__name__}: {row.line} | {_code(row.formula)} "
        f"| {row.use} | {row.source} |\n"
        for key, row in STRATEGIES.items()
    )


def _code(formula: str) -> str:
    return f"`{formula}`".replace("|", "\\|")
