"""Report stage: one page with the evidence of a run, from its artifacts alone.

What is missing is named on the page with the command that makes it; the report never fails for it.
"""

import argparse
import time
from pathlib import Path

from pipeline.params import load_all
from pipeline.reporting.blocks import Missing, Section, decibel
from student.params import ParamsError, add_params_arguments

EXAMPLES = """examples:
  python -m pipeline.report                                     → artifacts/report/index.html, opens from disk
  python -m pipeline.report --set report.max_priors=500         a quicker map of the priors
  python -m pipeline.report --params recipes/md-6t.yaml         of another run
A missing input is named on the page, with the command that makes it.
"""

ABOUT_PRIORS = (
    "The captions as vectors: the target of the student's domain prompts. On the maps (t-SNE) only neighbourhoods mean "
    "something, distances between groups do not."
)


def report(args: argparse.Namespace) -> str:
    """The stage; returns the summary line. Raises `ParamsError`."""
    started = time.perf_counter()
    params = load_all(args.params, args.overrides)
    # Heavy (matplotlib), so not before the parameters are known to be right.
    from pipeline import (
        report_ablation,
        report_data,
        report_page,
        report_priors,
        report_prompts,
        report_provenance,
        report_results,
        report_teacher,
        report_training,
    )
    from pipeline.reporting.inputs import Inputs

    inputs = Inputs(params.paths, params.report, params.train.batch_size)
    contents = (
        ("data", "Data", "What the student sees: degraded images and their clean originals.", report_data),
        ("teacher", "Teacher", "What the vision-language model says about the clean images.", report_teacher),
        ("priors", "Priors", ABOUT_PRIORS, report_priors),
        ("training", "Training", "Losses, validation and speed over the steps.", report_training),
        ("prompts", "Prompts", "What the learned prompts are used for, and how much they count.", report_prompts),
        ("results", "Results", "Restored images against the clean ones, on held-out images.", report_results),
        ("ablation", "Ablation", "Which part of the method helps, measured by leaving it out.", report_ablation),
        ("provenance", "Provenance", "What this run was made of.", report_provenance),
    )
    sections = []
    for key, title, about, module in contents:
        section = Section(key, title, about)
        for block in module.BLOCKS:
            section.add(block, inputs)
        sections.append(section)
    sections[-1].add(report_provenance.files, inputs, Path(args.params))
    commit, _ = report_provenance.git_state()
    seconds = time.perf_counter() - started
    html = report_page.render(
        "Caption once, distil many times: report of a run",
        "A vision-language model described clean images once; its descriptions became priors, and one small network "
        "learned from them to restore images of several domains.",
        facts(inputs),
        sections,
        f"Made by python -m pipeline.report in {seconds:.0f} s{f' from commit {commit[:12]}' if commit else ''}.",
    )
    folder = Path(params.paths.report)
    report_page.write(folder, html, sections)
    missing = [lack for section in sections for lack in section.missing if not lack.optional]
    return (
        f"report: {folder / 'index.html'}, {sum(len(section.blocks) for section in sections)} blocks, "
        f"{len(html) / 2**20:.1f} MiB, {time.perf_counter() - started:.1f} s"
        + "".join(f"\n  not shown: {lack.what}; make it with {lack.command}" for lack in missing)
    )


def facts(inputs) -> list[tuple[str, str]]:
    """The run in a few numbers; those that are not there are left out."""
    wanted = (
        ("pairs", lambda: f"{len(inputs.pairs):,}"),
        ("captioned images", lambda: f"{len(inputs.release):,}"),
        ("dimension of the prior", lambda: str(inputs.release.dim)),
        ("training steps", lambda: f"{inputs.log[-1]['step']:,}"),
        ("mean PSNR gain", lambda: decibel(inputs.metrics["overall"]["psnr_gain"])),
        ("tasks that gain", lambda: _gaining(inputs.metrics["tasks"])),
    )
    found = []
    for name, value in wanted:
        try:
            found.append((name, value()))
        except (Missing, KeyError, TypeError):
            continue  # the section says what is missing
    return found


def _gaining(tasks: dict) -> str:
    return f"{sum(task['psnr_gain'] > 0 for task in tasks.values())} of {len(tasks)}"


def main(arguments: list[str] | None = None) -> None:
    """`python -m pipeline.report`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report",
        description="One self-contained HTML page about a run: data, captions, priors, training, prompts, results.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_params_arguments(parser)
    try:
        print(report(parser.parse_args(arguments)))
    except (ParamsError, OSError) as error:
        raise SystemExit(f"report: {error}") from None


if __name__ == "__main__":
    main()
