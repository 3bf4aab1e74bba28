"""What fedexp does where PyTorch and Ray are not installed, as JSON; test_without_torch reads it.

Run as ``python tests/without_torch.py FOLDER``, with the folder of a run.
"""

import contextlib
import importlib
import io
import json
import sys

import numpy as np

HIDDEN = {"torch", "ray"}


class Hiding:
    """A finder of modules and installed packages that does not find those of ``HIDDEN``."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in HIDDEN
        return None if hidden else self.finder.find_spec(name, path, target)

    def find_distributions(self, *args):
        found = getattr(self.finder, "find_distributions", lambda *_: ())(*args)
        return (x for x in found if x.metadata["Name"] not in HIDDEN)


def numpy_app():
    """A ClientApp whose client ``p`` goes a tenth of the way to ``p``."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message, context):
        client = context.node_config["partition-id"]
        weights = [w + 0.1 * (client - w) for w in message.content["arrays"].to_numpy_ndarrays()]
        metrics = MetricRecord({"train-loss": float(client), "num-examples": 10 + client})
        record = RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics})
        return Message(record, reply_to=message)

    return app


def trained(vectorize):
    """The arrays after three rounds of FedExP with clients of NumPy."""
    from flwr.app import ArrayRecord

    from fedexp.simulation import SerialGrid
    from fedexp.strategies import FedExP

    with SerialGrid(numpy_app(), 3, vectorize=vectorize) as grid:
        strategy = FedExP(fraction_evaluate=0.0)
        result = strategy.start(grid, ArrayRecord([np.array([1.0, -2.0, 5.0])]), num_rounds=3)
    return [array.tolist() for array in result.arrays.to_numpy_ndarrays()]


def said(function):
    """What ``function`` raises for want of a package."""
    try:
        function()
    except ModuleNotFoundError as error:
        return str(error)
    return "nothing"


def command(*words):
    """Exit code, output and errors of ``fedexp WORDS``."""
    from fedexp import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(words)
            code = 0
        except SystemExit as error:
            code = error.code
    return code, out.getvalue(), err.getvalue()


def names_of(package):
    """The public names of a package that can be had, and what is said of the others."""
    module = importlib.import_module(package)
    found = {name: said(lambda name=name: getattr(module, name)) for name in module.__all__}
    return {"names": found, "dir": dir(module)}


def main(folder):
    """Everything that the tests ask for."""
    sys.meta_path[:] = list(map(Hiding, sys.meta_path))
    import fedexp
    import fedexp.clients
    import fedexp.datasets
    import fedexp.strategies.legacy
    from fedexp.simulation import SerialGrid

    packages = ("", ".augmentation", ".clients", ".datasets", ".hypergradients", ".learned_steps")
    others = (".runs", ".simulation", ".strategies")
    labels = np.arange(40) % 4
    run = fedexp.load_run(folder)
    found = {
        "packages": {x: names_of(f"fedexp{x}") for x in (*packages, *others)},
        "arrays": {mode: trained(mode) for mode in ("off", "auto")},
        "sizes": fedexp.datasets.PARTITIONERS["iid"](labels, num_clients=4, seed=0).sizes.tolist(),
        "metrics": run.metrics,
        "said": {
            "model": said(run.model),
            "app": said(lambda: importlib.import_module("fedexp.app")),
            "vectorize": said(lambda: SerialGrid(numpy_app(), 3, vectorize="on")),
            "star": said(lambda: exec("from fedexp.clients import *", {})),
        },
        "commands": {
            " ".join(words): command(*words, *more)
            for words, more in {
                ("--help",): (),
                ("--version",): (),
                ("doctor",): (),
                ("list", "strategies"): (),
                ("list", "partitioners"): (),
                ("report",): (folder,),
                ("simulate",): (),
                ("partition",): (),
                ("resume",): (folder,),
                ("list",): (),
                ("list", "models"): (),
                ("help", "simulate"): (),
            }.items()
        },
    }
    found["loaded"] = sorted(HIDDEN & set(sys.modules))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
