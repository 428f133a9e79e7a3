"""Caption stage: describe every clean image once, from every perspective, into the caption store.

Only what the store lacks is done, so the command may be killed and repeated at will; with a full store it loads no
model and ends in seconds.
"""

import argparse
import sys
import time
from pathlib import Path

from pipeline.caption_config import CaptionConfig
from pipeline.caption_decode import Decoded, DecodePool, Job
from pipeline.caption_plan import IndexUnusable, Plan, earlier_rate, images_of, make_plan, process_of_many, read_index
from pipeline.caption_progress import progress
from pipeline.caption_report import RunReport, new_run_id, save, speed_line
from pipeline.caption_stop import Stop, Stopped
from pipeline.caption_store import PerspectiveStore, StoreError, open_stores
from pipeline.params import load_all
from student.config import ParamsError, add_params_arguments
from teacher.identity import caption_identity, resolve_model

EXAMPLES = """examples:
  python -m pipeline.caption                                   what the store lacks
  python -m pipeline.caption --plan                            only say what would be done
  python -m pipeline.caption --set caption.model=llava-hf/llava-1.5-7b-hf --set caption.batch_images=auto
  python -m pipeline.caption --retry-errors                    try images again whose status is `error`
  accelerate launch --num_processes 8 -m pipeline.caption      eight GPUs; on several machines, share the store's folder
"""


class CaptionError(ValueError):
    """Captioning cannot start or did not end well; one line with the remedy."""


class RowBuffer:
    """Rows on their way to the store, flushed every `flush_images` images or `flush_seconds`."""

    def __init__(self, stores: dict[str, PerspectiveStore], config: CaptionConfig, report: RunReport, provenance: dict):
        self.stores, self.config, self.report, self.provenance = stores, config, report, provenance
        self.rows: dict[str, list[dict]] = {name: [] for name in stores}
        self.images, self.flushed = 0, time.monotonic()

    def add(self, decoded: Decoded, captions: dict | None, status: str, error: str | None, batch_images: int) -> None:
        """One image's rows: of `captions`, or the same failure for each perspective that was asked for."""
        for name in decoded.job.perspectives:
            caption = captions[name] if captions else None
            row_status = status if caption is None or caption.text else "empty"
            self.report.rows[row_status] += 1
            self.rows[name].append(
                {
                    "image_sha256": decoded.job.sha256,
                    "perspective": name,
                    "caption": caption.text if caption else None,
                    "n_tokens": caption.n_tokens if caption else 0,
                    "finish_reason": caption.finish_reason if caption else None,
                    "status": row_status,
                    "error": error,
                    "path": decoded.path,
                    "run": self.report.run,
                    "batch_images": batch_images,
                }
            )
        if status != "ok":
            self.report.count_failure(decoded.path, status, error)
        self.images += 1
        self.report.images += 1
        if self.images >= self.config.flush_images or time.monotonic() - self.flushed >= self.config.flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered: one part per perspective."""
        started = time.monotonic()
        for name, rows in self.rows.items():
            if rows:
                self.stores[name].append(rows, self.report.run, self.provenance)
                rows.clear()
        self.images, self.flushed = 0, time.monotonic()
        self.report.write_seconds += self.flushed - started


def caption_jobs(jobs: list[Job], pool: DecodePool, captioner, buffer: RowBuffer, stop: Stop, advance) -> None:
    """Caption `jobs` in batches of `captioner.batch_size`; rows go to `buffer`. Raises `Stopped` on a signal."""
    report, batch = buffer.report, []

    def caption_batch() -> None:
        try:
            with stop.interruptible():
                results = captioner.caption_pixels([image.pixels for image in batch], batch[0].job.perspectives)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            raise CaptionError(
                "out of memory even with one image at a time: free the device, or choose caption.quantization = nf4 or "
                f"a smaller model; everything finished is kept ({str(error).splitlines()[0]})"
            ) from error
        for image, result in zip(batch, results, strict=True):
            if isinstance(result, dict):
                buffer.add(image, result, "ok", None, len(batch))
            else:
                buffer.add(image, None, "error", result.reason, len(batch))
        advance(len(batch))
        batch.clear()

    decoded = pool.run(jobs, captioner.preprocess, ahead=2 * captioner.batch_size + len(pool.decoders))
    while True:
        started = time.perf_counter()
        with stop.interruptible():
            image = next(decoded, None)
        report.wait_seconds += time.perf_counter() - started
        if batch and (image is None or image.job.perspectives != batch[0].job.perspectives):
            caption_batch()
        if image is None:
            return
        report.decode_seconds += image.seconds
        if image.status != "ok":
            buffer.add(image, None, image.status, image.error, 0)
            advance(1)
            continue
        batch.append(image)
        if len(batch) >= captioner.batch_size:
            caption_batch()


def load_captioner(config: CaptionConfig):
    """The teacher on this process's device; raises `CaptionError`."""
    import os

    import torch

    from teacher.captioner import Captioner

    device = config.device
    if device == "auto" and torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    try:
        return Captioner(
            **config.identity,
            dtype=config.dtype,
            device=device,
            batch_size=config.batch_images,
            quantized_cache=config.quantized_cache,
        )
    except Exception as error:  # a broken checkpoint raises anything: OSError, KeyError, SafetensorError, ...
        reason = str(error).splitlines()[0] if str(error) else ""
        raise CaptionError(
            f"caption.model = {config.model!r} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


def run(config: CaptionConfig, store_root: Path, stores: dict[str, PerspectiveStore], jobs: list[Job], stop: Stop):
    """Caption `jobs`; returns (`RunReport`, the report as a dictionary). Everything finished is on disk on return."""
    rank, world_size = process_of_many()
    report = RunReport(new_run_id(), rank, world_size)
    for name in {name for job in jobs for name in job.perspectives}:
        stores[name].prepare()  # a folder that cannot be written shows before the model is loaded
    pool = DecodePool(config.workers, config.image_timeout_s, config.max_pixels)
    try:
        with stop.interruptible():
            captioner = load_captioner(config)
        report.load_seconds = report.seconds
        provenance = captioner.provenance()
        buffer = RowBuffer(stores, config, report, provenance)
        try:
            with progress("captioning", len(jobs), rank) as advance:
                caption_jobs(jobs, pool, captioner, buffer, stop, advance)
        finally:
            buffer.flush()
            summary = report.as_dict(captioner.statistics, provenance, config)
            save(summary, store_root)
    except Stopped:
        done = report.images
        raise CaptionError(
            f"stopped by {stop.signal.name}: {done} of {len(jobs)} images done and kept; run again to go on"
        ) from None
    finally:
        pool.close()
    return report, summary


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
    stores = open_stores(store_root, identities(config))
    plan = make_plan(images, stores, args.retry_errors)
    if args.plan:
        return describe_plan(plan, config, store_root)
    for path in (path for store in stores.values() for path in store.set_aside):
        print(f"caption: set aside {path}: damaged or not ours; its images are captioned again", file=sys.stderr)
    rank, world_size = process_of_many()
    jobs, detail, report = plan.share(rank, world_size), "no model loaded", None
    if jobs:
        stop = Stop()
        try:
            report, summary = run(config, store_root, stores, jobs, stop)
        finally:
            stop.restore()
        detail = speed_line(summary)
    bad = sum(report.failures.values()) if report else 0
    if report and report.errors > config.max_error_fraction * len(jobs):
        raise CaptionError(
            f"{report.errors} of {len(jobs)} images ended with an error, more than caption.max_error_fraction = "
            f"{config.max_error_fraction:g} (python -m pipeline.caption --retry-errors tries them again): "
            + "; ".join(report.failed_paths)
        )
    share = f" (process {rank} of {world_size})" if world_size > 1 else ""
    found = plan.n_images - len(plan.jobs)
    line = (
        f"caption: {len(jobs)} new of {plan.n_images} images × {len(stores)} perspectives{share}, "
        f"{found} found in the store, {bad} bad, {time.perf_counter() - started:.1f} s ({detail})"
    )
    for reason, count in report.failures.most_common(10) if report else ():
        line += f"\n  {count} × {reason}"
    return line


def identities(config: CaptionConfig) -> dict[str, dict]:
    """What each perspective's fingerprint is the hash of (name -> identity). Loads no model."""
    source = resolve_model(config.model, config.revision)
    options = {key: getattr(config, key) for key in ("quantization", "max_new_tokens", "padding")}
    return {name: caption_identity(source, name, prompt, **options) for name, prompt in config.perspectives.items()}


def main(argv: list[str] | None = None) -> None:
    """Entry point of `python -m pipeline.caption`."""
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
    args = parser.parse_args(argv)
    try:
        print(caption(args))
    except (ParamsError, IndexUnusable, StoreError, CaptionError, FileNotFoundError, ValueError) as error:
        raise SystemExit(f"caption: {error}") from None


if __name__ == "__main__":
    main()
