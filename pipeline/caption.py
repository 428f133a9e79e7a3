"""Caption stage: describe every clean image once, from every perspective, into the caption store.

Only what the store lacks is done, so the command may be killed and repeated at will; with a full store it loads no
model and ends in seconds.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from pipeline.captioning.config import CaptionConfig
from pipeline.captioning.plan import Plan, earlier_rate, in_share, make_plan
from pipeline.captioning.release import take_from_release
from pipeline.captioning.run import CaptionError, run
from pipeline.captioning.run_report import speed_line
from pipeline.captioning.store import StoreError, open_stores
from pipeline.indexing.table import IndexUnusable, images_of, read_index
from pipeline.params import load_all
from pipeline.processes import process_of_many
from pipeline.stopping import Stop
from student.params import ParamsError, add_params_arguments
from teacher.identity import caption_identities

EXAMPLES = """examples:
  python -m pipeline.caption                                   what the store lacks
  python -m pipeline.caption photos captions --model llava-hf/llava-1.5-7b-hf   a folder, and nothing else
  python -m pipeline.caption --plan                            only say what would be done
  python -m pipeline.caption --set caption.model=llava-hf/llava-1.5-7b-hf --set caption.batch_images=auto
  python -m pipeline.caption --retry-errors                    try images again whose status is `error`
  accelerate launch --num_processes 8 -m pipeline.caption      eight GPUs; on several machines, share the store's folder
"""


def describe_plan(plan: Plan, config: CaptionConfig, store_root: Path) -> str:
    """The text of `--plan`."""
    captions = sum(plan.missing.values())
    lines = [f"caption: {len(plan.jobs)} of {plan.n_images} images lack a caption ({captions} captions)"]
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
    params = load_all(args.params, args.overrides)
    config, store_root = params.caption, Path(params.paths.caption_store)
    images = images_of(read_index(params.paths.index))
    stores = open_stores(store_root, caption_identities(**config.identity))
    plan = make_plan(images, stores, config, args.retry_errors)
    for path in (path for store in stores.values() for path in store.set_aside):
        print(f"caption: set aside {path}: damaged or not ours; its images are captioned again", file=sys.stderr)
    if args.plan:
        return describe_plan(plan, config, store_root)
    rank, world_size = process_of_many()
    if taken := take_from_release(params.paths.release, stores, plan.share(rank, world_size)):
        print(f"caption: {taken} images take their captions from {params.paths.release}, made by the same teacher")
        plan = make_plan(images, stores, config, args.retry_errors)
    jobs, detail, report = plan.share(rank, world_size), "no model loaded", None
    if jobs:
        stop = Stop()
        try:
            report, summary = run(config, store_root, stores, jobs, stop)
        finally:
            stop.restore()
        detail = speed_line(summary)
    share = f" (process {rank} of {world_size})" if world_size > 1 else ""
    held = [images[sha256][0] for sha256 in sorted(plan.errors) if in_share(sha256, rank, world_size)]
    errors, named = len(held) + (report.errors if report else 0), [*(report.failed_paths if report else ()), *held]
    n_share = sum(in_share(sha256, rank, world_size) for sha256 in images)
    if errors > config.max_error_fraction * n_share:
        raise CaptionError(
            f"{errors} of {n_share} images{share} have no caption but an error, more than caption.max_error_fraction = "
            f"{config.max_error_fraction:g} (python -m pipeline.caption --retry-errors tries them again): "
            + "; ".join(named[:10])
        )
    failed = ", ".join(f"{count} {status}" for status, count in sorted(plan.failed.items()))
    line = (
        f"caption: {len(jobs)} new of {plan.n_images} images × {len(stores)} perspectives{share}, "
        f"{plan.n_images - len(plan.jobs)} found in the store{failed and f' (captions that failed: {failed})'}, "
        f"{sum(report.failures.values()) if report else 0} bad, {time.perf_counter() - started:.1f} s ({detail})"
    )
    for reason, count in report.failures.most_common(10) if report else ():
        line += f"\n  {count} × {reason}"
    if report and report.cut > (made := report.rows["ok"] + report.rows["empty"]) / 2:
        line += (
            f"\n  warning: {report.cut} of {made} captions were cut at caption.max_new_tokens = "
            f"{config.max_new_tokens}: raise it; or does the model never say its end token (eos_token_id in its "
            "generation_config.json and tokenizer)?"
        )
    return line


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
