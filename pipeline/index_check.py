"""`python -m pipeline.index --check`: what a data set holds and what to fix, before any GPU hour is spent."""

from collections import Counter, defaultdict

import pyarrow as pa

from pipeline.index_config import IndexConfig

FIRST = 3
"""Examples named per kind of fault."""


def report(table: pa.Table, config: IndexConfig) -> int:
    """Print a table per data set and split and what is wrong; returns 1 if the index stage would fail, else 0."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 140)
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in table.to_pylist():
        groups[row["dataset"], row["split"]].append(row)
    shown = Table(title=f"{config.root}", title_justify="left")
    for name in ("data set", "split", "pairs", "clean images", "width x height", "modes", "faults"):
        shown.add_column(name, overflow="fold")
    for (dataset, split), rows in groups.items():
        good = [row for row in rows if row["status"] == "ok"]
        faults = Counter(row["status"] for row in rows if row["status"] != "ok")
        shown.add_row(
            dataset, split, str(len(good)), str(len({row["gt_sha256"] for row in good})), _sizes(good),
            ", ".join(f"{n} {mode}" for mode, n in Counter(row["mode"] for row in good).most_common()),
            ", ".join(f"{n} {status}" for status, n in faults.most_common()) or "none",
        )  # fmt: skip
    console.print(shown)
    faults: dict[str, list[str]] = defaultdict(list)
    for row in table.to_pylist():
        if row["status"] != "ok":
            faults[row["status"]].append(row["error"])
    for status, errors in faults.items():
        console.print(f"{len(errors)} {status}:", style="bold")
        for error in errors[:FIRST]:
            console.print(f"  {error}", highlight=False)
    leaked = leaks(table)
    if leaked:
        console.print(f"warning: {len(leaked)} clean images of train stand in val or test too:", style="bold")
        for train, other in leaked[:FIRST]:
            console.print(f"  {train} = {other}", highlight=False)
    bad = sum(len(errors) for errors in faults.values())
    fails = bad > config.max_bad_fraction * table.num_rows or bad == table.num_rows
    console.print(
        f"index --check: {table.num_rows - bad} pairs, {bad} faults, {len(leaked)} leaked clean images; "
        + (f"the stage would FAIL (index.max_bad_fraction = {config.max_bad_fraction})" if fails else "ready")
    )
    return int(fails)


def leaks(table: pa.Table) -> list[tuple[str, str]]:
    """(path in train, path in val or test) of equal content, one per clean image."""
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for row in table.select(["gt_sha256", "split", "gt_path", "status"]).to_pylist():
        if row["status"] == "ok":
            splits[row["gt_sha256"]].setdefault("train" if row["split"] == "train" else "other", row["gt_path"])
    return [(paths["train"], paths["other"]) for paths in splits.values() if len(paths) == 2]


def _sizes(rows: list[dict]) -> str:
    if not rows:
        return "-"
    widths, heights = ([row[side] for row in rows] for side in ("width", "height"))
    return f"{min(widths)}-{max(widths)} x {min(heights)}-{max(heights)}"
