"""What a run leaves that does not depend on time or place."""

import json

SECONDS = ("round-seconds", "train-seconds", "move-seconds", "server-seconds", "seconds-a-round")


def kept(folder):
    """Content by file, of all units below ``folder``."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name in ("model.safetensors", "model-mean.safetensors", "clients.csv"):
            found[name] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            found[name] = [timeless(json.loads(x)) for x in path.read_text().splitlines()]
        elif path.name in ("summary.json", "unit.json"):
            found[name] = timeless(json.loads(path.read_text()))
    return found


def timeless(row):
    return {key: value for key, value in row.items() if key not in SECONDS}
