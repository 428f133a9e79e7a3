"""Run the variants of the `ablate` section over several seeds as DVC experiments, and compare them in pairs.

Every experiment is an ordinary one: `dvc exp show` lists it, `dvc exp apply NAME` takes it over. What is finished is
never run again; what was interrupted is queued again by the same command.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.ablation import queue as queue
from pipeline.ablation.config import AblateConfig
from pipeline.ablation.statistics import as_json, markdown, rows
from pipeline.params import load_all
from student.files import write_file
from student.params import ParamsError, add_params_arguments, read_params
from student.progress import progress

EXAMPLES = """examples:
  cp recipes/ablation.yaml params.yaml && git commit -am "ablation"     the setting, as DVC wants it
  python -m pipeline.ablate --plan                                     what would run
  python -m pipeline.ablate                                            run what is missing, print the table
  python -m pipeline.ablate --table                                    only the table of what is finished
  dvc queue status; dvc queue stop                                     from another terminal
"""
POLL_SECONDS = 10
QUIET_POLLS = 2
"""On a loaded machine a worker may not answer DVC in time, and its experiment is then in no list for a moment."""
IDLE_POLLS = 3
ATTEMPTS = 2
"""An idle worker ends itself; one that was only slow to answer then takes its experiment along, which is run again."""


def ablate(args: argparse.Namespace) -> str:
    """The command; returns what it prints. Raises `ParamsError` and `queue.QueueError`."""
    params = read_params(args.params, args.overrides)
    checked = load_all(args.params, args.overrides)
    config, paths = checked.ablate, checked.paths
    if not config.variants:
        raise ParamsError(f"{args.params} has no ablate.variants; cp recipes/ablation.yaml params.yaml")
    if Path(args.params) != Path("params.yaml") or args.overrides:
        raise ParamsError("experiments read params.yaml as it stands: copy the file there instead of --params or --set")
    for variant in config.variants.values():  # a typo must not cost the night that all others take
        load_all(args.params, variant.set)
    if not (args.plan or args.table):
        prepare(config)
    wanted = queue.experiments(config, params, queue.data_hash(paths))
    finished = queue.finished()
    missing = [experiment for experiment in wanted if experiment.name not in finished]
    if args.plan:
        listed = "\n".join(f"  {e.name}: {' '.join(e.overrides)}" for e in missing)
        return f"ablate: {len(wanted) - len(missing)} of {len(wanted)} experiments are finished; to run:\n{listed}"
    if not args.table:
        run(config, missing, queue.copies(config, paths))
    return collect(config, wanted, paths)


def prepare(config: AblateConfig) -> None:
    """Bring index, captions and release up to date once, here, where all experiments find them: in DVC's cache and,
    captions that only some variants use, in the caption store."""
    queue.dvc("repro", "embed", show=True)
    for variant in config.variants.values():
        changes = [part for override in variant.set if override.startswith("caption.") for part in ("--set", override)]
        if changes and subprocess.run([sys.executable, "-m", "pipeline.caption", *changes]).returncode:
            raise queue.QueueError(f"captions for {' '.join(variant.set)} could not be made; see above")


def run(config: AblateConfig, missing: list[queue.Experiment], copies: list[str]) -> None:
    """Queue what is neither finished nor in the queue, start workers, wait. Ctrl-C stops after what runs."""
    try:
        with progress("ablation", len(missing)) as advance:
            for _ in range(ATTEMPTS):
                known = queue.states()
                for experiment in missing:
                    if known.get(experiment.name) not in queue.WAITING:
                        queue.enqueue(experiment, copies, "evaluate")
                if missing:
                    wait(config, {experiment.name for experiment in missing}, advance)
                finished = queue.finished()
                missing = [experiment for experiment in missing if experiment.name not in finished]
    except KeyboardInterrupt:
        queue.dvc("queue", "stop")
        raise queue.QueueError("stopped after the experiment that runs; the same command goes on") from None


def wait(config: AblateConfig, names: set[str], advance: Callable[[int], None]) -> None:
    """Return when none of `names` waits or runs; start workers when there are none."""
    quiet, idle, done = 0, IDLE_POLLS, 0
    while quiet < QUIET_POLLS:
        if idle >= IDLE_POLLS:  # at first, and when the workers were killed
            queue.start(config.jobs)
            idle = 0
        time.sleep(POLL_SECONDS)
        states = queue.states()
        waiting = {name for name in names if states.get(name) in queue.WAITING}
        quiet = 0 if waiting else quiet + 1
        idle = 0 if "Running" in states.values() or not waiting else idle + 1
        advance(max(0, len(names) - len(waiting) - done))
        done = max(done, len(names) - len(waiting))


def collect(config: AblateConfig, wanted: list[queue.Experiment], paths) -> str:
    """Read what is finished, write table.md and results.json, return the table."""
    scores: dict[str, dict[int, dict]] = {}
    finished, kind = queue.finished(), "basicsr"
    for experiment in wanted:
        measured = queue.metrics(experiment, paths.metrics) if experiment.name in finished else None
        if measured:
            scores.setdefault(experiment.variant, {})[experiment.seed] = measured
            kind = measured["variant"]
    n = sum(map(len, scores.values()))
    lacking = [e.name for e in wanted if e.seed not in scores.get(e.variant, {})]
    if not n:
        raise queue.QueueError("no experiment has finished; dvc queue status and dvc queue logs NAME tell why")
    table = rows(config, scores)
    text = markdown(table, config.seeds, kind)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    out = Path(config.out)
    result = as_json(table, config.seeds, kind, commit)
    write_file(out / "results.json", json.dumps(result, indent=2).encode() + b"\n")
    write_file(out / "table.md", text.encode())
    rest = f"; {len(lacking)} failed or are missing, the first {lacking[0]} (dvc queue logs NAME)" if lacking else ""
    return f"{text}\nablate: {n} of {len(wanted)} experiments in {out / 'table.md'}{rest}"


def main(arguments: list[str] | None = None) -> None:
    """`python -m pipeline.ablate`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.ablate",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_params_arguments(parser)
    parser.add_argument("--plan", action="store_true", help="list what would run, and run nothing")
    parser.add_argument("--table", action="store_true", help="only print the table of what is finished")
    try:
        print(ablate(parser.parse_args(arguments)))
    except (ParamsError, queue.QueueError, OSError) as error:
        raise SystemExit(f"ablate: {error}") from None


if __name__ == "__main__":
    main()
