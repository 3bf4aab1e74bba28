"""Can the final model of a federation tell who was trained on? Noisy and noiseless clients.

200 handwritten digits are the members, dealt to 10 clients; all others are not. A quarter of the
labels of both is drawn at random, so that there is something to learn by heart. A threshold on the
loss guesses who is a member (``fedexp.privacy.membership``): AUC 0.5 is a guess.

    python -m experiments.membership [--seeds 3] [--rounds 60] [--out FILE.json]
        [--local-optimizer sgd --local-optimizer 'experiments.membership:NoisySGD' ...]

What this does not show. Three seeds give a spread, no bound. The attack is the weakest one of
those that are known, and looks at the last model alone; the server sees more. ``NoisySGD`` clips
and noises whole batches, and so promises nothing: it is here for its effect. For a run with a
guarantee give the name of a private optimizer of this library; its budget is spent in its
own steps, 20 a round, and rounds after that change nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import nn

import fedexp
from fedexp import keys
from fedexp.clients.named import named_optimizer
from fedexp.datasets import Dataset
from fedexp.datasets.digits import digits
from fedexp.privacy.membership import loss_attack

NUM_MEMBERS, FLIPPED = 200, 0.25
STRATEGIES = ("fedavg", "fedexp")
OPTIMIZERS = ("sgd", "experiments.membership:NoisySGD")
Row = dict[str, float]


class NoisySGD(torch.optim.SGD):
    """SGD on batch gradients of norm at most 1, with noise of deviation 0.3 on each entry."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Clip, add noise, step."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        nn.utils.clip_grad_norm_(params, 1.0)
        for p in params:
            p.grad += 0.3 * torch.randn_like(p)
        return super().step(closure)


def members_and_others(seed: int, num_members: int = NUM_MEMBERS) -> Dataset:
    """Members as the training set, all others as the test set; some labels of both are random."""
    rng, source = torch.Generator().manual_seed(seed), digits()
    images, labels = (torch.cat(both) for both in zip(source.train, source.test, strict=True))
    order = torch.randperm(len(labels), generator=rng)
    flipped = torch.rand(len(labels), generator=rng) < FLIPPED
    labels = torch.where(flipped, torch.randint(10, labels.shape, generator=rng), labels)
    members, others = order[:num_members], order[num_members:]
    return Dataset((images[members], labels[members]), (images[others], labels[others]), 10)


def perceptron(shape: Any, num_classes: int) -> nn.Module:
    """128 hidden units: enough to learn 200 random labels by heart."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, num_classes))


def attacked(strategy: str, optimizer: str, seed: int, rounds: int) -> Row:
    """What the attack finds in the model of one run, and how good the model is."""
    data = members_and_others(seed)
    reads_rate = keys.LEARNING_RATE in named_optimizer(optimizer).reads()
    run = fedexp.simulate(
        strategy=strategy,
        model=perceptron,
        data=data,
        local_optimizer=optimizer,
        seed=seed,
        num_server_rounds=rounds,
        num_clients=10,
        partitioner="iid",
        fraction_train=1.0,
        engine="serial",
        **({"learning_rate": 0.2} if reads_rate else {}),
    )
    with torch.no_grad():
        model = run.model()
        outputs = [(model(inputs), targets) for inputs, targets in (data.train, data.test)]
    losses = [nn.functional.cross_entropy(*pair, reduction="none").numpy() for pair in outputs]
    train, test = (float((x.argmax(1) == y).float().mean()) for x, y in outputs)
    found = loss_attack(*losses)
    epsilon = run.summary.get("epsilon-spent")
    own = {} if epsilon is None else {"epsilon": epsilon}
    return {**found._asdict(), "train-accuracy": train, "test-accuracy": test, **own}


def table(found: dict[str, list[Row]]) -> str:
    """Mean and deviation over the seeds, as Markdown; of what all rows have."""
    every = [row for rows in found.values() for row in rows]
    columns = [column for column in every[0] if all(column in row for row in every)]
    lines = ["| run | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, rows in found.items():
        values = [[row[column] for row in rows] for column in columns]
        lines.append(
            f"| {name} | {' | '.join(f'{fmean(x):.3f} ± {pstdev(x):.3f}' for x in values)} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run every strategy with every optimizer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--local-optimizer", action="append", help="of the clients; repeat it")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    settings = {"members": NUM_MEMBERS, "flipped": FLIPPED, "rounds": args.rounds}
    found: dict[str, list[Row]] = {}
    for strategy in STRATEGIES:
        for optimizer in args.local_optimizer or OPTIMIZERS:
            name = f"{strategy}, {optimizer}"
            found[name] = [attacked(strategy, optimizer, s, args.rounds) for s in range(args.seeds)]
            print(table({name: found[name]}).splitlines()[-1], flush=True)
            if args.out:  # as far as it has come
                text = json.dumps({**settings, "runs": found}, indent=1)
                args.out.write_text(text + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
