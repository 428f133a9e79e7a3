"""The student on a CPU, this commit beside earlier ones, in one run.

    git worktree add ../before COMMIT
    python benchmarks/student_beside.py ../before --record

Each working tree's own code runs in a process of its own, at the published size with random weights, and all take
turns. What counts are the seconds that a process was on a CPU, which other work on the machine changes little. "plain"
is the formulation that each tree's bench_student measures against: the same work everywhere, so it shows the noise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

HERE = Path(__file__).resolve()


def answer_rounds(size: int, step_size: int, width: int) -> None:
    """With another tree's modules: for each line of input a line of JSON, name → CPU seconds."""
    import bench_student as theirs
    from torch import nn

    plain, student = theirs.pair(theirs.ModelConfig(width=width, zero_init_output=False, selection_noise=0), "cpu")
    restorer = theirs.restoring(student)[0] if hasattr(theirs, "restoring") else student
    image, crops = torch.rand(1, 3, size, size), torch.rand(2, 3, step_size, step_size)

    def forward(model: nn.Module) -> None:
        with torch.inference_mode():
            model.eval()(image)

    def step(model: nn.Module) -> None:
        model.train().zero_grad(set_to_none=True)
        (model(crops) - crops).abs().mean().backward()

    for _ in sys.stdin:
        seconds = {}
        for name, run, model in (
            (f"forward {size}², plain", forward, plain), (f"forward {size}², ours", forward, restorer),
            (f"training step 2 x {step_size}², plain", step, plain),
            (f"training step 2 x {step_size}², ours", step, student),
        )[: 4 if step_size else 2]:  # fmt: skip
            begun = time.process_time()
            run(model)
            seconds[name] = time.process_time() - begun
        print(json.dumps(seconds), flush=True)


def in_turn(trees: list[Path], sizes: list[int], rounds: int) -> list[list[dict[str, float]]]:
    """What each tree measured in each of `rounds` rounds, after one to warm up."""
    command = [sys.executable, "-P", str(HERE), *map(str, trees), "--answer", *map(str, sizes)]
    paths = [os.pathsep.join([str(tree), str(tree / "benchmarks")]) for tree in trees]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(command, cwd=tree, env=os.environ | {"PYTHONPATH": path}, **pipes)
        for tree, path in zip(trees, paths, strict=True)
    ]
    found: list[list[dict[str, float]]] = [[] for _ in trees]
    try:
        for turn in range(rounds + 1):
            for i in range(len(trees)):
                at = (i + turn) % len(trees)  # nobody is always first
                print(file=processes[at].stdin, flush=True)
                line = processes[at].stdout.readline()
                if not line:
                    sys.exit(f"student_beside: the code in {trees[at]} does not run; its error is above")
                if turn:
                    found[at].append(json.loads(line))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return found


def commit(tree: Path) -> str:
    ask = ["git", "log", "-1", "--format=%h, %as"]
    return subprocess.run(ask, cwd=tree, capture_output=True, text=True).stdout.strip()


def rows(commits: list[str], found: list[list[dict[str, float]]]) -> Iterator[dict[str, object]]:
    for name in found[0][0]:
        first = statistics.median(round_[name] for round_ in found[0])
        for name_of_tree, of_tree in zip(commits, found, strict=True):
            times = sorted(round_[name] for round_ in of_tree)
            median = statistics.median(times)
            yield {
                "what": name, "commit": name_of_tree, "CPU time, median": f"{1e3 * median:.0f} ms",
                "least to most": f"{1e3 * times[0]:.0f} to {1e3 * times[-1]:.0f}",
                "of the first commit's": f"{median / first:.3f}",
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", type=Path, nargs="+", help="other working trees of this repository, oldest first")
    parser.add_argument("--size", type=int, default=128, help="side of the forward's image")
    parser.add_argument("--step-size", type=int, default=64, help="side of the training step's two crops; 0: none")
    parser.add_argument("--width", type=int, default=48, help="48 is the published size")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    parser.add_argument("--answer", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        return answer_rounds(*options.answer)
    from tables import show

    trees = [*map(Path.resolve, options.trees), HERE.parents[1]]
    commits = [commit(tree) for tree in trees]  # which they may leave meanwhile
    found = in_turn(trees, [options.size, options.step_size, options.width], options.rounds)
    show("Student on a CPU, this commit beside earlier ones", list(rows(commits, found)), options.record)


if __name__ == "__main__":
    main()
