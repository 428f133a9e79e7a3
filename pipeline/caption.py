"""Caption stage: describe every clean image once, from every perspective, into the caption store.

Only what the store lacks is done, so the command may be killed and repeated at will; with a full store it loads no
model and ends in seconds.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable
from functools import partial

from pipeline.captioning.config import CaptionConfig
from pipeline.captioning.plan import Lacking, Plan, earlier_rate
from pipeline.captioning.release import take_from_release
from pipeline.captioning.run import CaptionActor, CaptionError, run
from pipeline.captioning.run_report import RunReport, speed_line
from pipeline.captioning.store import StoreError, alone, open_stores
from pipeline.cluster import LEAST, add_ray_argument, over_ranges, refuse_ranks
from pipeline.indexing.table import BLOCK, Index, IndexUnusable
from pipeline.params import Params, load_all
from student.params import ParamsError, add_params_arguments
from student.progress import progress
from teacher.identity import caption_identities

EXAMPLES = """examples:
  python -m pipeline.caption                                   what the store lacks
  python -m pipeline.caption photos captions --model llava-hf/llava-1.5-7b-hf   a folder, and nothing else
  python -m pipeline.caption --plan                            only say what would be done
  python -m pipeline.caption --set caption.model=llava-hf/llava-1.5-7b-hf --set caption.batch_images=auto
  python -m pipeline.caption --retry-errors                    try images again whose status is `error`
  python -m pipeline.caption --ray                             on all GPUs of this machine (extra ray)
  python -m pipeline.caption --ray auto                        on the Ray cluster that this machine belongs to
"""


def describe_plan(plan: Plan, config: CaptionConfig, store_root: str) -> str:
    """The text of `--plan`."""
    captions = sum(plan.missing.values())
    lines = [f"caption: {plan.to_do} of {plan.n_images} images lack a caption ({captions} captions)"]
    lines += [f"  {name:<12} {count:>9} to do" for name, count in plan.missing.items()]
    if plan.failed:
        held = ", ".join(f"{count} {status}" for status, count in sorted(plan.failed.items()))
        lines.append(f"  held without a caption: {held} (--retry-errors tries those with status `error` again)")
    rate = earlier_rate(store_root, config.model, config.quantization)
    if captions and rate:
        seconds = captions / rate
        lines.append(
            f"  about {seconds / 3600:.1f} h ({seconds:.0f} s) on one process, at {rate:.1f} captions/s as last"
        )
    elif captions:
        lines.append("  no estimate: the store holds no earlier run with this model")
    return "\n".join(lines)


def caption(args: argparse.Namespace) -> str:
    """The stage; returns the summary line. Raises `CaptionError` and the errors of params, index, store and model."""
    started = time.perf_counter()
    refuse_ranks()
    params = load_all(args.params, args.overrides)
    config, store_root = params.caption, params.paths.caption_store
    index = Index(params.paths.index)
    identities = caption_identities(**config.identity)
    stores = open_stores(store_root, identities)
    lacking = Lacking(index, stores, config, args.retry_errors)
    plan = lacking.plan()
    tell_set_aside(path for store in stores.values() for path in store.set_aside)
    if args.plan:
        return describe_plan(plan, config, store_root)
    if taken := take_from_release(params.paths.release, stores, lacking.jobs(plan.ranges)):
        print(f"caption: {taken} images take their captions from {params.paths.release}, made by the same teacher")
        plan = lacking.plan()
    detail, report = "no model loaded", RunReport("")
    if plan.ranges:
        for name in (name for name, missing in plan.missing.items() if missing):
            stores[name].prepare()  # a folder that cannot be written shows before the model is loaded
        with alone(store_root):
            if args.ray:
                report, detail = caption_on_ray(args, params, plan, lacking)
                # What an actor wrote and did not live to tell is in the store.
                if left := Lacking(index, open_stores(store_root, identities), config).plan().to_do:
                    raise CaptionError(f"{left} images still lack a caption; run again, and look at the store")
            else:
                report, summary = run(config, store_root, stores, lacking.jobs(plan.ranges), plan.to_do)
                detail = speed_line(summary)
    errors, named = plan.errors + report.errors, [*report.failed_paths, *plan.error_paths]
    if errors > config.max_error_fraction * plan.n_images:
        raise CaptionError(
            f"{errors} of {plan.n_images} images have no caption but an error, more than caption.max_error_fraction = "
            f"{config.max_error_fraction:g} (python -m pipeline.caption --retry-errors tries them again): "
            + "; ".join(named[:10])
        )
    failed = ", ".join(f"{count} {status}" for status, count in sorted(plan.failed.items()))
    line = (
        f"caption: {plan.to_do} new of {plan.n_images} images × {len(stores)} perspectives, "
        f"{plan.n_images - plan.to_do} found in the store{failed and f' (captions that failed: {failed})'}, "
        f"{sum(report.failures.values())} bad, {time.perf_counter() - started:.1f} s ({detail})"
    )
    for reason, count in report.failures.most_common(10):
        line += f"\n  {count} × {reason}"
    if report.cut > (made := report.rows["ok"] + report.rows["empty"]) / 2:
        line += (
            f"\n  warning: {report.cut} of {made} captions were cut at caption.max_new_tokens = "
            f"{config.max_new_tokens}: raise it; or does the model never say its end token (eos_token_id in its "
            "generation_config.json and tokenizer)?"
        )
    return line


def caption_on_ray(args: argparse.Namespace, params: Params, plan: Plan, lacking: Lacking) -> tuple[RunReport, str]:
    """Caption the plan's images on a cluster; returns the joint report and how it went."""
    begun, of_actor = time.perf_counter(), {}
    actor = partial(CaptionActor, params.caption, params.paths.index, params.paths.caption_store, args.retry_errors)
    tasks = lacking.plan(max(LEAST, min(BLOCK, plan.n_images // 1024))).ranges
    with progress("captioning", plan.to_do) as advance:
        for report, set_aside in over_ranges(args.ray, actor, tasks, advance, CaptionError):
            tell_set_aside(set_aside)
            of_actor[report.run] = report  # each tells all that its actor has done
    joint = RunReport("")
    for report in of_actor.values():
        joint.include(report)
    rate = plan.to_do / (time.perf_counter() - begun)
    return joint, f"{rate:.1f} images/s by {len(of_actor.keys() - {''})} actors"


def tell_set_aside(paths: Iterable[str]) -> None:
    for path in paths:
        print(f"caption: set aside {path}: damaged or not ours; its images are captioned again", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m pipeline.caption`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # docs/decisions.md, before torch is imported
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.caption",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_params_arguments(parser)
    parser.add_argument(
        "--plan", action="store_true", help="print what would be done, with an estimate, and do nothing"
    )
    add_ray_argument(parser)
    parser.add_argument("--retry-errors", action="store_true", help="also redo images whose status is `error`")
    alone = parser.add_argument_group("a folder of images, without index or params.yaml")
    alone.add_argument("folder", nargs="?", metavar="FOLDER", help="its images, searched recursively")
    alone.add_argument(
        "out", nargs="?", metavar="OUT", help="gets captions.csv, a page to look through and the release"
    )
    alone.add_argument("--model", help="caption.model: a hub id or a folder (default: the small one that comes along)")
    alone.add_argument("--teacher", help="caption.teacher")
    alone.add_argument("--questions", metavar="FILE", help="YAML lines `name: question` in place of the five questions")
    args = parser.parse_args(argv)
    if args.folder and not args.out:
        parser.error(f"FOLDER needs OUT: python -m pipeline.caption {args.folder} captions")
    if args.folder and args.params != parser.get_default("params"):
        parser.error("FOLDER needs no parameter file: give single keys with --set")
    if not args.folder and (args.model or args.teacher or args.questions):
        parser.error("--model, --teacher and --questions go with FOLDER OUT; else --set caption.model=...")
    try:
        if args.folder:
            from pipeline.captioning.folder import caption_folder

            print(caption_folder(args))
        else:
            print(caption(args))
    except (ParamsError, IndexUnusable, StoreError, CaptionError, OSError, ValueError) as error:
        raise SystemExit(f"caption: {error}") from None


if __name__ == "__main__":
    main()
