"""What a captioning run did, how fast, and where its time went: the summary line and `runs/<run>.json`."""

import json
import os
import platform
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from student.places import join, write_whole


def new_run_id() -> str:
    """Sortable by start time, unique over processes and machines."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}x{os.urandom(4).hex()}"


@dataclass
class RunReport:
    """Counts and seconds of one process, or of several."""

    run: str
    images: int = 0
    "images that got rows"
    rows: Counter = field(default_factory=Counter)
    "rows by status"
    cut: int = 0
    "captions that reached caption.max_new_tokens"
    failures: Counter = field(default_factory=Counter)
    "images by status and reason"
    failed_paths: list[str] = field(default_factory=list)
    "the first ten of status `error`, with their reason"
    decode_seconds: float = 0.0
    "summed over workers; overlaps with the model's work"
    wait_seconds: float = 0.0
    "the model idle because no image was ready"
    load_seconds: float = 0.0
    write_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the process began its work."""
        return time.perf_counter() - self.started

    def count_failure(self, path: str, status: str, reason: str | None) -> None:
        """Remember why an image got no caption."""
        self.failures[f"{status}: {reason}"] += 1
        if status == "error" and len(self.failed_paths) < 10:
            self.failed_paths.append(f"{path}: {reason}")

    def include(self, other: "RunReport") -> None:
        """Add what another process did."""
        self.images, self.cut = self.images + other.images, self.cut + other.cut
        self.rows.update(other.rows)
        self.failures.update(other.failures)
        self.failed_paths = [*self.failed_paths, *other.failed_paths][:10]

    @property
    def errors(self) -> int:
        """Images with status `error`."""
        return sum(count for reason, count in self.failures.items() if reason.startswith("error: "))

    def as_dict(self, statistics, provenance: dict, config) -> dict:
        """The run as JSON; `statistics` are the captioner's (`teacher.llava.shared_prefix.Statistics`)."""
        busy = max(self.seconds - self.load_seconds, 1e-9)
        slots = statistics.tokens + statistics.wasted_tokens
        prompt = statistics.prompt_tokens + statistics.wasted_prompt_tokens
        return {
            "run": self.run,
            "model": config.model,
            "quantization": config.quantization,
            "images": self.images,
            "rows": dict(sorted(self.rows.items())),
            "failures": dict(self.failures.most_common(50)),
            "images_per_second": statistics.images / busy,
            "captions_per_second": statistics.captions / busy,
            "tokens_per_second": statistics.tokens / busy,
            "new_tokens": statistics.tokens,
            "decode_slots_wasted": statistics.wasted_tokens / slots if slots else 0.0,
            "prompt_padding_wasted": statistics.wasted_prompt_tokens / prompt if prompt else 0.0,
            "seconds": {
                "total": self.seconds,
                "load": self.load_seconds,
                "decode": self.decode_seconds,
                "wait": self.wait_seconds,
                **statistics.seconds,
                "write": self.write_seconds,
            },
            "peak_memory_bytes": peak_memory(),
            "host": platform.node(),
            **provenance,
        }


def peak_memory() -> dict[str, int]:
    """Peak resident bytes of this process, and of its GPU allocations if it used one."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


def save(report: dict, store_root: str) -> None:
    """Write `runs/<run>.json` into the store."""
    write_whole(join(store_root, "runs", f"{report['run']}.json"), json.dumps(report, indent=2) + "\n")


def speed_line(report: dict) -> str:
    """Speed, waste, time split and memory in one bracket."""
    seconds = report["seconds"]
    split = ", ".join(f"{name} {seconds[name]:.1f}" for name in ("load", "wait", "prefill", "generate", "write"))
    memory = " + ".join(f"{value / 2**30:.1f} GiB {name}" for name, value in report["peak_memory_bytes"].items())
    return (
        f"{report['images_per_second']:.1f} images/s, {report['captions_per_second']:.1f} captions/s, "
        f"{report['tokens_per_second']:.0f} tokens/s, {report['decode_slots_wasted']:.0%} of decoding slots padded, "
        f"seconds: {split}, peak {memory}"
    )
