"""Report stage: one page with the evidence of a run, from its artifacts alone; what is missing is named there."""

import argparse
import time
from pathlib import Path

from pipeline.params import load_all
from student.params import ParamsError, add_params_arguments

EXAMPLES = """examples:
  python -m pipeline.report                                     → artifacts/report/index.html, opens from disk
  python -m pipeline.report --set report.max_priors=500         a quicker map of the priors
A missing input is named on the page, with the command that makes it.
"""
LEAD = """A vision-language model described clean images once; its descriptions became priors, and one small network
learned with them to restore images."""


def report(args: argparse.Namespace) -> str:
    """The stage; returns the summary line. Raises `ParamsError`."""
    started = time.perf_counter()
    params = load_all(args.params, args.overrides)
    # Heavy (matplotlib), so not before the parameters are known to be right.
    from pipeline.reporting import captions, data, page, provenance, results, training
    from pipeline.reporting.blocks import Section, visible
    from pipeline.reporting.inputs import Inputs

    inputs = Inputs(params.paths, params.report)
    sections = []
    for title, about, module in (
        ("Results", "Restored images against the clean ones, on held-out images.", results),
        ("Data", "What the student learned from, and what it is measured on.", data),
        ("Captions", "What the vision-language model said about the clean images.", captions),
        ("Training", "The losses, and the score on held-out images, over the steps.", training),
    ):
        sections.append(Section(title, about))
        for block in module.BLOCKS:
            sections[-1].add(block, inputs)
    sections.append(Section("Provenance", "What this run was made of."))
    sections[-1].add(provenance.made_of, inputs, Path(args.params))
    html = page.render("Caption once, distil many times: report of a run", LEAD, results.facts(inputs), sections)
    folder = Path(params.paths.report)
    page.write(folder, html, sections)
    summary = f"report: {folder / 'index.html'}, {len(html) / 2**20:.1f} MiB, {time.perf_counter() - started:.1f} s"
    lacks = [lack for section in sections for lack in section.missing]
    return visible(summary + "".join(f"\n  not shown: {lack.what}; make it with {lack.command}" for lack in lacks))


def main(arguments: list[str] | None = None) -> None:
    """`python -m pipeline.report`."""
    about = "One self-contained HTML page about a run: results, data, captions, training."
    look = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m pipeline.report", None, about, EXAMPLES, formatter_class=look)
    add_params_arguments(parser)
    try:
        print(report(parser.parse_args(arguments)))
    except (ParamsError, OSError) as error:
        raise SystemExit(f"report: {error}") from None


if __name__ == "__main__":
    main()
