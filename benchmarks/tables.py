"""Rows of a benchmark as a markdown table, and as an entry of RESULTS.md that says where and how it was measured."""

import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("RESULTS.md")


def table(rows: list[dict[str, object]]) -> str:
    """One column a key, in the order in which they come up."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, ["---"] * len(keys), *([row.get(key, "") for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(str("" if cell is None else cell) for cell in line) + " |" for line in cells)


def where(device: str) -> str:
    """Date, commit, device and command of this process."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads, no GPU"
    command = " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return f"{date.today()}, commit {commit or 'unknown'}, {name}, torch {torch.__version__}: `python {command}`"


def show(title: str, rows: list[dict[str, object]], record: bool, device: str = "cpu", remark: str = "") -> None:
    """Print an entry, and append it to RESULTS.md where that is wanted."""
    text = f"\n## {title}\n{where(device)}\n\n{table(rows)}\n" + (f"\n{remark}\n" if remark else "")
    print(text)
    if record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(text)
