"""Run the variants of the `ablate` section over several seeds as DVC experiments, and compare them in pairs.

Every experiment is an ordinary one: `dvc exp show` lists it, `dvc exp apply NAME` takes it over. What is finished is
never run again: after an interruption the same command resumes with the experiment that was running.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.ablation.config import AblateConfig
from pipeline.ablation.statistics import markdown
from pipeline.params import load_all
from pipeline.stopping import finish
from student.data.pairs import index_files
from student.files import write_file
from student.params import ParamsError, Paths, add_params_arguments, read_params
from student.places import exists, read
from student.progress import progress

EXAMPLES = """examples:
  cp recipes/ablation.yaml params.yaml && git commit -am "ablation"     the setting, as DVC wants it
  python -m pipeline.ablate --plan                                     what would run
  python -m pipeline.ablate                                            run what is missing, print the table
  python -m pipeline.ablate --table                                    only the table of what is finished
"""


class AblateError(ValueError):
    """DVC could not do what the ablation asked; one line with the remedy."""


class Experiment(NamedTuple):
    """One variant with one seed."""

    variant: str
    seed: int
    overrides: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        """The experiment's name in DVC. The digest is over all parameters and over the data, so that an experiment of
        other parameters is never taken for this one."""
        return f"ablate-{self.variant}-s{self.seed}-{self.digest}"


def experiments(config: AblateConfig, params: Mapping[str, Any], data: bytes) -> list[Experiment]:
    """All of them, seed by seed: an ablation that is stopped early has few seeds of everything. `data`: the index,
    from which, with the parameters, the captions follow."""
    base = {section: values for section, values in params.items() if section not in ("ablate", "report")}
    found = []
    for seed in config.seeds:
        for name, variant in config.variants.items():
            overrides = (*variant.set, f"train.seed={seed}")
            text = json.dumps([base, overrides, hashlib.sha256(data).hexdigest()], sort_keys=True, default=str)
            found.append(Experiment(name, seed, overrides, hashlib.sha256(text.encode()).hexdigest()[:8]))
    return found


def ablate(args: argparse.Namespace) -> str:
    """The command; returns what it prints. Raises `ParamsError` and `AblateError`."""
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
    if not exists(paths.index):
        raise AblateError(f"{paths.index}: no index; run dvc repro index first")
    wanted = experiments(config, params, b"".join(read(file) for file in index_files(paths.index)))
    finished = finished_names()
    missing = [experiment for experiment in wanted if experiment.name not in finished]
    if args.plan:
        listed = "\n".join(f"  {e.name}: {' '.join(e.overrides)}" for e in missing)
        return f"ablate: {len(wanted) - len(missing)} of {len(wanted)} experiments are finished; to run:\n{listed}"
    failed = [] if args.table else run(missing, copies(config, paths))
    return collect(config, wanted, paths, failed)


def prepare(config: AblateConfig) -> None:
    """Bring index, captions and release up to date once, here, where all experiments find them: in DVC's cache and,
    captions that only some variants use, in the caption store."""
    dvc("repro", "embed", show=True)
    for variant in config.variants.values():
        changes = [part for override in variant.set if override.startswith("caption.") for part in ("--set", override)]
        if changes and finish([sys.executable, "-m", "pipeline.caption", *changes], os.environ).returncode:
            raise AblateError(f"captions for {' '.join(variant.set)} could not be made; see above")


def copies(config: AblateConfig, paths: Paths) -> list[str]:
    """Git-ignored folders to copy into every experiment's workspace; raises `ParamsError` if they are too large.

    DVC fills that workspace with what Git and its cache hold. Samples and caption store are neither (`persist: true,
    cache: false`): without a copy every experiment would make samples and captions anew.
    """
    wanted = [paths.samples, paths.caption_store] if config.copy_paths is None else config.copy_paths
    found = [path for path in wanted if Path(path).is_dir()]
    size = sum(file.stat().st_size for path in found for file in Path(path).rglob("*") if file.is_file()) / 1e9
    if size > config.max_copy_gb:
        raise ParamsError(
            f"{', '.join(found)}: {size:.1f} GB would be copied for every experiment, more than ablate.max_copy_gb "
            f"{config.max_copy_gb}; give index.root as an absolute path and leave the folder out of ablate.copy_paths"
        )
    return found


def run(missing: list[Experiment], copied: list[str]) -> list[str]:
    """One `dvc exp run` each, in a workspace of its own; returns what DVC said of those that failed."""
    failed = []
    with progress("ablation", len(missing)) as advance:
        for experiment in missing:
            changes = [
                part for override in experiment.overrides for part in ("-S", f"++{override}")
            ]  # ++: also new keys
            folders = [part for path in copied for part in ("-C", path)]
            try:
                dvc("exp", "run", "--quiet", "--temp", "--name", experiment.name, *folders, *changes, "evaluate")
            except AblateError as error:  # the others do not depend on it
                failed.append(f"{experiment.name}: {error}")
            advance(1)
    return failed


def dvc(*arguments: str, show: bool = False) -> str:
    """Run a DVC command; its output. Raises `AblateError` with DVC's own last line.

    Experiments run the code of their own workspace: without a PYTHONPATH an editable installation would lend them the
    code of this folder as it is at that moment.
    """
    here = os.pathsep.join(filter(None, [".", os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "dvc", *arguments]
    done = finish(command, {**os.environ, "PYTHONPATH": here}, capture=not show)
    if done.returncode:
        reason = "see above" if show else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise AblateError(f"dvc {' '.join(arguments[:2])} failed: {reason}")
    return done.stdout or ""


def finished_names() -> set[str]:
    """Names of all experiments that DVC holds, of any commit."""
    return set(dvc("exp", "list", "--all-commits", "--name-only").split())


def collect(config: AblateConfig, wanted: list[Experiment], paths: Paths, failed: list[str]) -> str:
    """Read what is finished, write table.md, return the table."""
    import dvc.api

    scores: dict[str, dict[int, dict]] = {}
    finished, metric, lacking = finished_names(), "", []
    for experiment in wanted:
        try:
            if experiment.name not in finished:
                raise FileNotFoundError
            measured = json.loads(dvc.api.read(paths.metrics, rev=experiment.name))
        except (OSError, ValueError):
            lacking.append(experiment.name)
            continue
        scores.setdefault(experiment.variant, {})[experiment.seed] = measured
        metric = measured["variant"]
    if not scores:
        raise AblateError("; ".join(["no experiment has finished", *failed[:1]]))
    text = markdown(config, scores, metric)
    out = Path(config.out, "table.md")
    write_file(out, text)
    rest = f"; {len(lacking)} missing, the first {lacking[0]}" if lacking else ""
    return "\n".join(
        [text, *failed, f"ablate: {len(wanted) - len(lacking)} of {len(wanted)} experiments in {out}{rest}"]
    )


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
    except (ParamsError, AblateError, OSError) as error:
        raise SystemExit(f"ablate: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("ablate: stopped; the same command resumes") from None


if __name__ == "__main__":
    main()
