"""Compare evaluations image by image: who restores what better, and by how much.

    python -m student.compare artifacts/evaluation artifacts/evaluation-input
    python -m student.compare BEFORE AFTER OTHER --out compare.md --page compare.html

Each RUN is a folder that `student.eval` wrote. Differences are to the first, paired by image, over the images that both
measured, with a bootstrap 95 % interval; only runs of one metric variant and border are compared. Prints a table, and
writes a page: scores overall and by task, the curves of the trainings, and the panels side by side.
"""

import argparse
import sys
from pathlib import Path

from student.evaluation.comparison import CompareError, read_all, table
from student.evaluation.comparison_page import page
from student.files import write_file


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m student.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that student.eval wrote")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the table there, too")
    where = Path("artifacts/compare.html")
    parser.add_argument("--page", type=Path, default=where, metavar="FILE.html", help=f"the page (default: {where})")
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        parser.error("name at least two runs")
    try:
        runs = read_all(args.runs)
        text = table(runs)
        if args.out:
            write_file(args.out, text)
        write_file(args.page, page(runs))
    except (CompareError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print(f"{text}\ncompare: {len(runs)} runs → {args.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
