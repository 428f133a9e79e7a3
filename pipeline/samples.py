"""Stage `samples`: real images of three domains, each degraded for two tasks.

Writes `<paths.samples>/<task>/{train,val}/{gt,lq}/*.png` and `sources.json` beside them. Everything is seeded: the same
package versions give the same bytes. Files that are already as they should be are left alone, and files that the
stage does not know (images that you added) are never touched.
"""

import argparse
import hashlib
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.params import load_all
from pipeline.sample_sources import SamplesConfig, crops
from student.data.degradations import DegradationSpec, degrade
from student.files import write_file
from student.params import ParamsError, add_params_arguments

# Strengths that people meet in practice; a range is drawn from per image.
TASKS = {
    "natural_sr_x4": ("natural", {"kind": "bicubic"}),
    "natural_deraining": ("natural", {"kind": "rain", "amount": (0.2, 0.9)}),
    "medical_sr_x4": ("medical", {"kind": "kspace"}),
    "medical_denoising": ("medical", {"kind": "rician_noise", "sigma": (12.0, 28.0)}),
    "remote_sensing_sr_x4": ("remote_sensing", {"kind": "bicubic"}),
    "remote_sensing_cloud_removal": ("remote_sensing", {"kind": "cloud", "amount": (0.2, 0.8)}),
}


def make_samples(config: SamplesConfig, out: Path) -> list[str]:
    """Write the sample tree under `out`; returns one line per task. Raises FileNotFoundError for a missing package."""
    lines, provenance, known = [], {}, {}
    for task, (domain, degradation) in TASKS.items():
        counts = {}
        for split, wanted in (("train", config.train_pairs), ("val", config.val_pairs)):
            # One generator a domain and split, so that both tasks of a domain know the same clean images: they are
            # captioned once. Where there are more than wanted, the second task takes them from the end.
            if (domain, split) not in known:
                known[domain, split] = crops(domain, split, _generator(config.seed, domain, split))
            found = known[domain, split]
            if len(found) < wanted:
                raise ParamsError(f"samples.{split}_pairs = {wanted}: {domain} has only {len(found)} {split} images")
            first_task = task == next(name for name, (other, _) in TASKS.items() if other == domain)
            chosen = found[:wanted] if first_task else found[-wanted:]
            for number, crop in enumerate(chosen):
                name = f"{number:03d}.png"
                lq = _degraded(crop, degradation, _generator(config.seed, task, split, name))
                for side, pixels in (("gt", crop.pixels), ("lq", lq)):
                    _write_png(out / task / split / side / name, pixels)
                provenance[f"{task}/{split}/gt/{name}"] = {
                    "source": crop.source, "domain": domain, "kind": crop.kind, "subject": crop.subject
                }  # fmt: skip
            counts[split] = f"{wanted} {split} pairs from {len({crop.source for crop in chosen})} sources"
        lines.append(f"  {task}: {counts['train']}, {counts['val']}")
    _write(out / "sources.json", json.dumps(provenance, indent=1, sort_keys=True).encode())
    return lines


def _degraded(crop, degradation: dict, rng: np.random.Generator) -> np.ndarray:
    """uint8 lq in the gt's own mode; ranges are drawn, and CT gets its own noise."""
    drawn = {
        key: float(rng.uniform(*value)) if isinstance(value, tuple) else value for key, value in degradation.items()
    }
    if crop.kind == "ct" and drawn["kind"] == "rician_noise":
        drawn["kind"] = "low_dose_noise"
    gray = crop.pixels.ndim == 2
    gt = np.repeat(crop.pixels[..., None], 3, axis=2) if gray else crop.pixels
    lq = degrade(gt.astype(np.float32) / 255, DegradationSpec(**drawn), rng)
    lq = (lq * 255).round().astype(np.uint8)
    return lq[..., 0] if gray else lq


def _generator(*key: object) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big"))


def _write_png(path: Path, pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=6)
    _write(path, buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:  # else time and cached hash stay
        write_file(path, content)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.samples",
        description="Write the sample data: real photographs, brain scans and satellite images, 3 domains x 2 tasks.",
        epilog="example: python -m pipeline.samples --set samples.val_pairs=6",
    )
    add_params_arguments(parser)
    args = parser.parse_args(argv)
    started = time.monotonic()
    try:
        params = load_all(args.params, args.overrides)
        out = Path(params.paths.samples)
        lines = make_samples(params.samples, out)
    except (ParamsError, OSError) as error:
        print(f"samples: {error}" if not str(error).startswith("samples") else error, file=sys.stderr)
        return 1
    print("\n".join(lines))
    print(f"samples: {len(TASKS)} tasks in {out}, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
