"""Six methods, three seeds, each at the learning rate that suits it best: one command.

Run: python examples/six_methods.py [FOLDER] [ROUNDS]
"""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

SIMULATE = Path(__file__).resolve().parents[1] / "simulate.py"  # the same as `fedexp simulate`
STRATEGIES = (
    "fedavg, fedavgm(server-learning-rate=0.1), fedadam(eta=0.03), fedyogi(eta=0.03), "
    "fedexp, nesterovexp"
)
FLAGS = "--seeds 0-2 --sweep learning-rate=0.03,0.1,0.3 --select mean-best-accuracy"


def main(folder: str, num_rounds: str) -> None:
    """Tune each method on two other seeds, report it on three, and say where the page is."""
    flags = ["--strategy", STRATEGIES, *FLAGS.split(), "--num-server-rounds", num_rounds]
    flags += ["--out", folder]
    print("fedexp simulate", shlex.join(flags), flush=True)
    subprocess.run([sys.executable, str(SIMULATE), *flags], check=True)


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(),
        sys.argv[2] if len(sys.argv) > 2 else "40",
    )
