"""The commands that run no rounds: `partition`, `list`, `doctor`, `check-schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedexp.extras import need
from fedexp.files import reason
from fedexp.flags import config_of
from fedexp.parser import Once, Parser, fail, nearest
from fedexp.terminal import listed


def add_list_flags(parser: Parser) -> None:
    """Flags of `fedexp list`."""
    parser.add_argument(
        "KIND", nargs="?", help="strategies, datasets, models, ...; all if left out"
    )
    parser.add_argument("--json", action=Once, nargs=0, const=True, help="for programs")


def add_doctor_flags(parser: Parser) -> None:
    """Flags of `fedexp doctor`."""
    text = "look for datasets in it"
    parser.add_argument("--data-dir", action=Once, dest="data-dir", metavar="FOLDER", help=text)
    text = "see whether Ray starts; takes seconds"
    parser.add_argument("--ray", action=Once, nargs=0, const=True, help=text)


def add_schedule_flags(parser: Parser) -> None:
    """Flags of `fedexp check-schedule`."""
    parser.add_argument("X", help="exponent of the learning rate, eta (t + offset)^-X")
    parser.add_argument("Y", help="exponent of the noise's variance, sigma^2 (t + offset)^-Y")
    for name, text in (("eta", "learning rate"), ("sigma", "spread of the noise")):
        own = f"{text} where t + offset is 1 (default: 1)"
        parser.add_argument(f"--{name}", action=Once, metavar="NUMBER", help=own)
    parser.add_argument("--offset", action=Once, metavar="NUMBER", help="above 0 (default: 1)")


def partition(values: dict[str, Any]) -> None:
    """Print the sizes and label counts of the clients, and draw them."""
    config, given = config_of(values)
    from fedexp import checks
    from fedexp.logs import without_escape_codes
    from fedexp.runs.federation import Federation

    without_escape_codes()
    checks.check_read_by_partition(config, given)
    federation = Federation(config)
    data, parts, names = federation.dataset, federation.parts, federation.names
    need("matplotlib", "simulation")
    folder = Path(config.out or ".")
    folder.mkdir(parents=True, exist_ok=True)
    from fedexp.console import partition_table
    from fedexp.datasets import heterogeneity, label_counts, plot

    labels = data.train[1].numpy()
    counts = label_counts(labels, parts) if data.num_classes else None
    partition_table(parts.sizes, counts, names, data.class_names)
    line = f"{len(parts):,} clients, {parts.sizes.min()} to {parts.sizes.max()} examples"
    if data.num_classes:
        apart = heterogeneity(labels, parts)
        line += f", heterogeneity {apart:.3f} (mean total-variation distance to all)"
    print(line)
    try:
        picture = folder / "partition.png"
        plot(labels, parts, picture, names=names, class_names=data.class_names)
    except OSError as error:
        fail(f"{reason(error)}.", code=1)
    print(f"Picture: {picture}")


def show_list(values: dict[str, Any]) -> None:
    """Print what can be chosen."""
    from fedexp import listing

    kind = values["KIND"]
    if kind and kind not in listing.LISTED:
        close = nearest(kind, listing.LISTED)
        hint = f"Did you mean {close[0]}?" if close else f"There are {listed(listing.LISTED)}."
        raise ValueError(f"fedexp has no list of {kind!r}. {hint}")
    print(listing.as_json(kind) if values["json"] else listing.text(kind))


def doctor(values: dict[str, Any]) -> None:
    """Print what is there; exit with code 1 if something that is always needed is not."""
    from fedexp.doctor import examine

    if not examine(values["data-dir"], bool(values["ray"])):
        fail("not all that fedexp needs is there, see above.", code=1)


def check_schedule(values: dict[str, Any]) -> None:
    """Print what a joint schedule of learning rate and noise leads to."""
    from fedexp.augmentation import schedule_report

    numbers = {}
    for name, text in values.items():
        if text is not None:
            try:
                numbers[name.lower()] = float(text)
            except ValueError:
                raise ValueError(f"check-schedule {name} {text!r}: must be a number.") from None
    print(schedule_report(**numbers))
