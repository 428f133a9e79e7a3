"""Report stage: one page with the evidence of a run, from its artifacts alone.

What is missing is named on the page with the command that makes it; the report never fails for it.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.params import load_all
from student.params import ParamsError, add_params_arguments

if TYPE_CHECKING:
    from pipeline.reporting.inputs import Inputs

EXAMPLES = """examples:
  python -m pipeline.report                                     → artifacts/report/index.html, opens from disk
  python -m pipeline.report --set report.max_priors=500         a quicker map of the priors
  python -m pipeline.report --params recipes/md-6t.yaml         of another run
A missing input is named on the page, with the command that makes it.
"""


def report(args: argparse.Namespace) -> str:
    """The stage; returns the summary line. Raises `ParamsError`."""
    started = time.perf_counter()
    params = load_all(args.params, args.overrides)
    # Heavy (matplotlib), so not before the parameters are known to be right.
    from pipeline.reporting import captions, data, page, priors, provenance, results, training
    from pipeline.reporting.blocks import Section, visible
    from pipeline.reporting.inputs import Inputs

    inputs = Inputs(params.paths, params.report)
    sections = []
    for title, about, module in (
        ("Results", "Restored images against the clean ones, on held-out images.", results),
        ("Data", "What the student learned from: degraded images and their clean originals.", data),
        ("Captions", "What the vision-language model said about the clean images.", captions),
        ("Priors", "The captions as vectors: the target of the student's domain prompts.", priors),
        ("Training", "The losses, and the score on held-out images, over the steps.", training),
    ):
        sections.append(Section(title.lower(), title, about))
        for block in module.BLOCKS:
            sections[-1].add(block, inputs)
    sections.append(Section("provenance", "Provenance", "What this run was made of."))
    sections[-1].add(provenance.made_of, inputs, Path(args.params))
    html = page.render(
        "Caption once, distil many times: report of a run",
        "A vision-language model described clean images once; its descriptions became priors, and one small network "
        "learned with them to restore images.",
        facts(inputs),
        sections,
    )
    folder = Path(params.paths.report)
    page.write(folder, html, sections)
    summary = f"report: {folder / 'index.html'}, {len(html) / 2**20:.1f} MiB, {time.perf_counter() - started:.1f} s"
    lacks = [lack for section in sections for lack in section.missing]
    return visible(summary + "".join(f"\n  not shown: {lack.what}; make it with {lack.command}" for lack in lacks))


def facts(inputs: "Inputs") -> list[tuple[str, str]]:
    """The run in a few numbers; those that are not there are left out: their section says what is missing."""
    from pipeline.reporting.blocks import Missing
    from pipeline.reporting.results import change, verdict

    def mean() -> tuple[str, str]:
        overall = inputs.results["overall"]
        name = verdict(overall)
        return f"mean {name} in PSNR" if name in ("gain", "loss") else "mean change in PSNR, not shown", change(overall)

    found = []
    for fact in (
        mean,
        lambda: ("pairs", f"{len(inputs.pairs):,}"),
        lambda: ("clean images", f"{len(inputs.clean):,}"),
        lambda: ("training steps", f"{inputs.log[-1]['step']:,}"),
    ):
        try:
            found.append(fact())
        except Missing:
            continue
    return found


def main(arguments: list[str] | None = None) -> None:
    """`python -m pipeline.report`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.report",
        description="One self-contained HTML page about a run: results, data, captions, priors, training.",
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
