"""Speed, memory and agreement of restoration: whole against tiled at 0.25, 2 and 24 megapixels, and ONNX on the CPU.

    python benchmarks/bench_restore.py                                    # the published size, random weights
    python benchmarks/bench_restore.py --model artifacts/student --record
    python benchmarks/bench_restore.py --device cuda --record             # the same on a GPU
    python benchmarks/bench_restore.py --agreement --sizes 0.25           # how tiles agree on unlike pictures

Tiles have the side that `--tile auto` takes on a CPU when an image does not fit (512), 0.25 megapixels half of it.

Every row is a process of its own, so that its peak memory is its own. Long rows stop after --seconds: their speed is
that of the tiles done by then ("12 of 2646 forwards"), and their memory is complete, since all buffers exist from the
first tile on. "agreement" is the PSNR between the tiled and the whole output of the same image.
It depends on the image: --agreement measures it on five, two of them made to mislead a sample (a haze that grows to the
right, two thirds in black), for --refine 0, 1 and 2.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tables import show

SIZES = {"0.25": (512, 512), "2": (1184, 1776), "24": (4000, 6000)}
TILES = {"0.25": 256, "2": 512, "24": 512}
WHOLE_SIZES = ("0.25", "2")
"""Sizes that are restored whole too: 2 megapixels whole peak at 8.3 GB on a CPU at the published size."""


class Enough(Exception):
    """The row has run for long enough to know its speed."""


def mirrored(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    """A photograph [512, 512, 3], mirrored out to the size."""
    photo = photo.astype(np.float32).transpose(2, 0, 1) / 255
    rows, columns = (-(-side // 512) for side in (height, width))
    return np.block([[[photo[c, :: 1 - 2 * (i % 2), :: 1 - 2 * (j % 2)] for j in range(columns)] for i in range(rows)]
                     for c in range(3)])[:, :height, :width]  # fmt: skip


def photograph(height: int, width: int) -> np.ndarray:
    """A real photograph with light noise."""
    from skimage import data

    clean = mirrored(data.astronaut(), height, width)
    noise = np.random.default_rng(0).normal(0, 0.05, clean.shape).astype(np.float32)
    return (clean + noise).clip(0, 1)


def pictures(height: int, width: int) -> dict[str, np.ndarray]:
    from skimage import data

    clean, across = mirrored(data.astronaut(), height, width), np.linspace(0, 1, width, dtype=np.float32)
    return {
        "photograph with noise": photograph(height, width),
        "photograph": clean,
        "tissue under a microscope": mirrored(data.immunohistochemistry(), height, width),
        "photograph, haze growing to the right": 0.5 * clean + 0.5 * across,
        "photograph, black but for a third": clean * (across < 1 / 3),
    }


def student_of(model: str):
    import torch

    from student.model import Student
    from student.network.config import ModelConfig

    if model != "published-size":
        return Student.from_pretrained(model)
    torch.manual_seed(0)
    return Student(ModelConfig(zero_init_output=False))


def one_row(args: argparse.Namespace) -> dict:
    """Measure one case in this process."""
    import torch

    torch.set_num_threads(args.threads)
    height, width = SIZES[args.row]
    lq = photograph(height, width)
    if args.case == "onnx":
        return onnx_row(args, lq)
    from student.restoration.restorer import Restorer

    tile = "off" if args.case == "whole" else args.tile or TILES[args.row]
    refine = 0 if args.case == "unrefined" else 1
    restorer = Restorer(student_of(args.model), args.device, tile=tile, batch=args.batch, refine=refine)
    restorer(lq[:, :64, :64])  # warm up
    done, begun = [0, 1], time.perf_counter()

    def on_tile(finished: int, total: int) -> None:
        done[:] = finished, total
        if time.perf_counter() - begun > args.seconds and finished < total:
            raise Enough

    result = None
    try:
        result = restorer(lq, on_tile=on_tile)
    except Enough:
        pass
    seconds = time.perf_counter() - begun
    if args.save and result is not None:
        np.save(args.save, result.image)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if restorer.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    share = "" if done[0] == done[1] else f", {done[0]} of {done[1]} forwards"
    return {"seconds": seconds, "mpx_per_s": height * width * done[0] / done[1] / 1e6 / seconds, "peak": peak,
            "note": f"{done[1] // (1 + refine)} tiles, --refine {refine}{share}" if done[1] > 1 else "whole"
           }  # fmt: skip


def onnx_row(args: argparse.Namespace, lq: np.ndarray) -> dict:
    import onnxruntime

    from student.export import export

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "student.onnx"
        size, difference, _ = export(student_of(args.model), file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        session.run(None, {"lq": lq[None, :, :64, :64]})
        begun = time.perf_counter()
        session.run(None, {"lq": lq[None]})
        seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    note = f"whole; equal within {difference:.0e}, file {size / 1e6:.0f} MB"
    return {"seconds": seconds, "mpx_per_s": lq[0].size / 1e6 / seconds, "peak": peak, "note": note}


def compared(args: argparse.Namespace) -> list[dict[str, object]]:
    """Each case in a process of its own."""
    rows: list[dict[str, object]] = []
    for name in args.sizes:
        cases = ["whole"] if name in WHOLE_SIZES else []
        cases += ["tiled", "unrefined"] + (["onnx"] if name == "0.25" and args.device == "cpu" else [])
        with tempfile.TemporaryDirectory() as folder:
            for case in cases:
                file = Path(folder) / f"{case}.npy"
                done = child(args, name, case, file)
                if case == "whole":
                    whole = done
                row = {"image": f"{name} Mpx", "method": case, "how": done["note"]}
                row |= {"Mpx/s": f"{done['mpx_per_s']:.4f}", "peak memory": f"{done['peak'] / 1e9:.2f} GB"}
                if case != "whole" and name in WHOLE_SIZES:
                    if file.exists():
                        error = np.mean((np.load(file) - np.load(Path(folder) / "whole.npy")) ** 2)
                        row["agreement"] = f"{10 * np.log10(1 / error):.1f} dB" if error else "equal"
                    row["against whole"] = f"{done['mpx_per_s'] / whole['mpx_per_s']:.2f}x"
                rows.append(row)
                print(row, file=sys.stderr)
    return rows


def agreements(args: argparse.Namespace) -> list[dict[str, object]]:
    """Tiled against whole, for pictures that are alike everywhere and for some that are not."""
    import torch

    from student.restoration.restorer import Restorer

    torch.set_num_threads(args.threads)
    student, rows = student_of(args.model).eval(), []
    for size in args.sizes:
        for name, lq in pictures(*SIZES[size]).items():
            whole, row = Restorer(student, args.device, tile="off")(lq).image, {"picture": name, "size": f"{size} Mpx"}
            for refine in (0, 1, 2):
                restorer = Restorer(student, args.device, tile=args.tile or TILES[size], refine=refine)
                error = whole - restorer(lq).image
                row[f"--refine {refine}"] = f"{-10 * np.log10(np.mean(error**2)):.1f} dB, max {np.abs(error).max():.3f}"
            rows.append(row)
            print(row, file=sys.stderr)
    return rows


def child(args: argparse.Namespace, name: str, case: str, file: Path) -> dict:
    command = [sys.executable, __file__, "--row", name, "--case", case, "--save", str(file), "--model", args.model]
    command += ["--tile", str(args.tile)] if args.tile else []
    command += ["--device", args.device, "--batch", str(args.batch)]
    command += ["--seconds", str(args.seconds), "--threads", str(args.threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="published-size", help="a student's directory (default: published-size)")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES, help="megapixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tile", type=int, help="side of the tiles (default: 256 at 0.25 megapixels, else 512)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120, help="stop a tiled row after so long")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    parser.add_argument("--agreement", action="store_true", help="only how tiles agree with the whole, five pictures")
    for hidden in ("--row", "--case", "--save"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(one_row(args)))
        return 0
    rows = agreements(args) if args.agreement else compared(args)
    show("Restoration: tiled against whole", rows, args.record, args.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
