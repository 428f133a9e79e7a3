"""Compare evaluations image by image: who restores what better, and by how much.

    python -m student.compare artifacts/evaluation artifacts/evaluation-input
    python -m student.compare BEFORE AFTER OTHER --out compare.md

Each RUN is a folder that `student.eval` wrote. Differences are to the first, paired by image, over the images that both
measured, with a bootstrap 95 % interval; only runs of one metric variant and border are compared.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from student.evaluation.metrics import IDENTICAL_DB, bootstrap_interval
from student.files import write_file

Scores = dict[str, dict[str, float]]
"""Data set → image → PSNR."""


class CompareError(ValueError):
    """The runs cannot be compared; one line with the remedy."""


def read(folder: Path) -> tuple[Scores, str]:
    """The scores of one evaluation, and what kind of numbers they are."""
    scores: Scores = defaultdict(dict)
    kinds = set()
    try:
        with open(folder / "per_image.csv", newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                scores[row["dataset"]][row["image"]] = min(float(row["psnr"]), IDENTICAL_DB)
                kinds.add(f"variant `{row['variant']}`, border {row['crop_border']}")
    except (OSError, KeyError, ValueError) as error:
        raise CompareError(f"{folder}: no evaluation there ({error}); python -m student.eval --out {folder}") from None
    if len(kinds) != 1:
        raise CompareError(f"{folder}: holds no image, or numbers of several kinds; evaluate it again")
    return scores, kinds.pop()


def table(folders: list[Path]) -> str:
    """Markdown: a line a data set, the mean of each run, and its difference to the first."""
    runs = [read(folder) for folder in folders]
    if len({kind for _, kind in runs}) > 1:
        told = "; ".join(f"{folder}: {kind}" for folder, (_, kind) in zip(folders, runs, strict=True))
        raise CompareError(f"numbers of different kinds do not compare: {told}")
    first = runs[0][0]
    lines = [
        f"PSNR (dB), {runs[0][1]}, mean over the images; differences to {folders[0]} are paired by image, in brackets "
        "their bootstrap 95 % interval.",
        "",
        f"| data set | images | {' | '.join(map(str, folders))} |",
        f"|---|--:|{'--:|' * len(folders)}",
    ]
    for name, images in sorted(first.items()):
        cells = []
        for scores, _ in runs[1:]:
            both = sorted(images.keys() & scores.get(name, {}).keys())
            if not both:
                cells.append("–")
                continue
            change = [scores[name][image] - images[image] for image in both]
            low, high = bootstrap_interval(change)
            of = f" (of {len(both)})" if len(both) < len(images) else ""
            mean = np.mean([scores[name][image] for image in both])
            cells.append(f"{mean:.2f}{of}, {np.mean(change):+.2f} [{low:+.2f}, {high:+.2f}]")
        lines.append(f"| {name} | {len(images)} | {np.mean(list(images.values())):.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m student.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that student.eval wrote")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table there, too")
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        parser.error("name at least two runs")
    try:
        text = table(args.runs)
        if args.out:
            write_file(args.out, text)
    except (CompareError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
