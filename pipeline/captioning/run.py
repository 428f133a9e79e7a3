"""One captioning run: decode ahead, caption in batches, flush often; a signal or a failure loses nothing finished."""

import time
from collections.abc import Callable, Iterable
from pkgutil import resolve_name

from pipeline.captioning.config import TEACHERS, CaptionConfig
from pipeline.captioning.decode import Decoded, DecodePool, Job
from pipeline.captioning.plan import Lacking, decoding
from pipeline.captioning.run_report import RunReport, new_run_id, save
from pipeline.captioning.store import PerspectiveStore, open_stores
from pipeline.indexing.table import Index
from pipeline.stopping import NeverStopped, Stop, Stopped
from student.images.workers import ImageWorkers
from student.progress import progress
from teacher.identity import caption_identities
from teacher.teacher import Teacher


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
            self.report.cut += caption is not None and caption.finish_reason == "length"
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


def caption_jobs(
    jobs: Iterable[Job], pool: DecodePool, captioner: Teacher, buffer: RowBuffer, stop: Stop, advance
) -> None:
    """Caption `jobs` in batches of `captioner.batch_size`; rows go to `buffer`. Raises `Stopped` on a signal."""
    report = buffer.report
    batch: list[Decoded] = []

    def caption_batch() -> None:
        try:
            with stop.interruptible():
                results = captioner.caption([decoded.image for decoded in batch], batch[0].job.perspectives)
        except (MemoryError, RuntimeError) as error:  # of the teacher, and of torch
            if isinstance(error, RuntimeError) and "out of memory" not in str(error):
                raise
            told = str(error).partition("\n")[0]
            raise CaptionError(
                "out of memory even with one image at a time: free the device, or choose caption.quantization = nf4 or "
                f"a smaller model; everything finished is kept ({told})"
            ) from error
        for image, result in zip(batch, results, strict=True):
            if isinstance(result, dict):
                buffer.add(image, result, "ok", None, len(batch))
            else:
                buffer.add(image, None, "error", result.reason, len(batch))
        advance(len(batch))
        batch.clear()

    decoded = pool.run(jobs, ahead=2 * captioner.batch_size + pool.workers.workers)
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


def load_captioner(config: CaptionConfig) -> Teacher:
    """The teacher on this process's device; raises `CaptionError`."""
    try:
        return resolve_name(TEACHERS[config.teacher])(
            **{key: value for key, value in config.identity.items() if key != "teacher"},
            dtype=config.dtype,
            device=config.device,
            batch_size=config.batch_images,
            quantized_cache=config.quantized_cache,
            **({"server": config.server} if config.server else {}),
        )
    except Exception as error:  # a broken checkpoint raises anything: OSError, KeyError, SafetensorError, ...
        reason = str(error).splitlines()[0] if str(error) else ""
        raise CaptionError(
            f"caption.model = {config.model!r} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error


class Captioning:
    """A teacher, the processes that decode for it, and its way into the store."""

    def __init__(
        self, config: CaptionConfig, store_root: str, stores: dict[str, PerspectiveStore], workers: ImageWorkers, stop
    ):
        self.config, self.store_root, self.stop = config, store_root, stop
        self.report = RunReport(new_run_id())
        with stop.interruptible():
            self.teacher = load_captioner(config)
        self.report.load_seconds = self.report.seconds
        self.provenance = self.teacher.provenance() | {"decoding": decoding(config)}
        self.buffer = RowBuffer(stores, config, self.report, self.provenance)
        self.pool = DecodePool(workers, config.max_pixels, self.teacher.square)

    def caption(self, jobs: Iterable[Job], advance: Callable[[int], None]) -> dict:
        """Everything finished is in the store when this ends, however it ends; returns the report so far."""
        try:
            caption_jobs(jobs, self.pool, self.teacher, self.buffer, self.stop, advance)
        finally:
            self.buffer.flush()
            summary = self.report.as_dict(self.teacher.statistics, self.provenance, self.config)
            save(summary, self.store_root)
        return summary


def run(
    config: CaptionConfig, store_root: str, stores: dict[str, PerspectiveStore], jobs: Iterable[Job], n_jobs: int
) -> tuple[RunReport, dict]:
    """Caption `jobs` in this process; returns the report, also as a dictionary."""
    stop, captioning = Stop(), None
    try:
        with ImageWorkers(config.workers, config.image_timeout_s) as workers:
            captioning = Captioning(config, store_root, stores, workers, stop)
            with progress("captioning", n_jobs) as advance:
                return captioning.report, captioning.caption(jobs, advance)
    except Stopped:
        done = captioning.report.images if captioning else 0
        raise CaptionError(
            f"stopped by {stop.signal.name}: {done} of {n_jobs} images done and kept; run again to resume"
        ) from None
    finally:
        stop.restore()


class CaptionActor:
    """On a cluster (`pipeline.cluster`): captions what the store lacks of ranges of hashes.

    It looks into the store before each task, so that a task that is repeated after a death repeats nothing finished.
    """

    def __init__(self, config: CaptionConfig, index: str, store_root: str, retry_errors: bool):
        self.config, self.store_root, self.retry_errors = config, store_root, retry_errors
        self.index, self.identities = Index(index), caption_identities(**config.identity)  # hashes the model's files
        self.workers = ImageWorkers(config.workers, config.image_timeout_s)
        self.captioning: Captioning | None = None

    def __call__(self, ranges: list[tuple[str, str]]) -> tuple[RunReport, list[str]]:
        """The actor's report so far, and the parts found damaged."""
        stores = open_stores(self.store_root, self.identities)
        jobs = list(Lacking(self.index, stores, self.config, self.retry_errors).jobs(ranges))
        if jobs and self.captioning is None:
            self.captioning = Captioning(self.config, self.store_root, stores, self.workers, NeverStopped())
        if jobs:
            self.captioning.buffer.stores = stores
            self.captioning.caption(jobs, lambda n: None)
        report = self.captioning.report if self.captioning else RunReport("")
        return report, [path for store in stores.values() for path in store.set_aside]
