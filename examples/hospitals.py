"""CSV files of four hospitals, with missing values and text, and the one command for them.

Run: python examples/hospitals.py [FOLDER] [ROUNDS]
"""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT.parent / "shared" / "data" / "heart-disease"
HOSPITALS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
COLUMNS = ["age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang"]
COLUMNS += ["oldpeak", "slope", "ca", "thal", "num"]
PAIN = {1: "typical", 2: "atypical", 3: "not of the heart", 4: "none"}
FLAGS = """
    --target disease --client-from file --impute median --standardize --model linear
    --learning-rate 0.01 --strategy fedavg,fedexp --target-accuracy 0.8 --fraction-train 1
"""


def patients(hospital: str) -> pd.DataFrame:
    """The published patients of a hospital where they are at hand, else drawn ones."""
    path = PUBLISHED / f"processed.{hospital}.data"
    if path.exists():
        return pd.read_csv(path, names=COLUMNS, na_values="?")
    size = HOSPITALS[hospital]
    rng = np.random.default_rng(size)
    table = pd.DataFrame(
        {"age": rng.normal(54, 9, size).round(), "chol": rng.normal(240, 50, size)}
    )
    table["sex"], table["cp"] = rng.integers(0, 2, size), rng.integers(1, 5, size)
    table["num"] = (table["age"] + 8 * table["sex"] + rng.normal(0, 6, size) > 58).astype(int)
    return table.assign(chol=table["chol"].round().mask(rng.random(size) < 0.1))


def write(folder: Path) -> None:
    """A CSV file per hospital: words for what is no number, `?` where a value is missing."""
    for hospital in HOSPITALS:
        table = patients(hospital)
        table["sex"] = table["sex"].map({0: "female", 1: "male"})
        table["cp"] = table["cp"].map(PAIN)
        table["disease"] = table.pop("num").gt(0).map({False: "no", True: "yes"})
        table.to_csv(folder / f"{hospital}.csv", index=False, na_rep="?")


def main(folder: Path, num_rounds: str) -> None:
    """Write the files and learn from them; the command prints how well each hospital is served."""
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)
    flags = ["--data", f"{folder}/*.csv", "--num-server-rounds", num_rounds, *FLAGS.split()]
    flags += ["--out", f"{folder}/run", "--overwrite"]
    print("fedexp simulate", shlex.join(flags), flush=True)
    simulate = [sys.executable, str(ROOT / "simulate.py")]  # the same as `fedexp simulate`
    subprocess.run([*simulate, *flags], check=True)


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()),
        sys.argv[2] if len(sys.argv) > 2 else "30",
    )
