"""Whether the table of a sweep is README's: `make demo` ends with it.

    python analyses/readme_table.py [figures/sweep_conditions.csv]

README's table is that of figures/fig1_layer_sweep_conditions.csv. Another processor may sum in another order: an answer
that two choices tie for to the last bit can then move, and its share with it.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

FIGURES = Path(__file__).resolve().parent.parent / "figures"
ROW = ["channel", "condition", "metric"]


def differences(found: pd.DataFrame, published: pd.DataFrame) -> list[str]:
    """A line for each row whose count of correct answers or p-value is another, or that only one of the tables has."""
    both = found.merge(published, on=ROW, how="outer", suffixes=("", "_published"))
    differs = (both["correct"] != both["correct_published"]) | (both["n"] != both["n_published"])
    for p in ("p_silent", "p_shuffled"):  # equal counts of other items have another p-value
        differs |= ~np.isclose(both[p], both[f"{p}_published"], rtol=1e-9, atol=0, equal_nan=True)
    moved = pd.DataFrame(both[differs])
    return [
        f"{' '.join(row[name] for name in ROW)}: {_share(row['correct'], row['n'])},"
        f" README {_share(row['correct_published'], row['n_published'])}"
        for row in moved.to_dict("records")
    ]


def _share(correct: float, n: float) -> str:
    return "no such row" if pd.isna(correct) else f"{correct:.0f} of {n:.0f}"


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURES / "sweep_conditions.csv"
    if not path.exists():
        raise SystemExit(f"{path} is not there; run `latentcomm sweep` first")
    moved = differences(pd.read_csv(path), pd.read_csv(FIGURES / "fig1_layer_sweep_conditions.csv"))
    if not moved:
        print("The table is README's, digit for digit.")
        return
    print(f"{len(moved)} rows differ from README's table:")
    print("\n".join(f"  {line}" for line in moved))
    print("A tie that falls the other way on this processor moves a row by an answer or two; more than that is a bug.")


if __name__ == "__main__":
    main()
