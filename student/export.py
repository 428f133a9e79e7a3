"""Export a student to ONNX with dynamic height and width, checked against PyTorch before it counts as done.

    python -m student.export artifacts/student student.onnx
    python -m student.export DIR_OR_HUB_ID student.onnx --opset 20

The network's input `lq` is [batch, 3, height, width] float32 RGB in [0, 1], height and width of at least 8; `restored`
has the same shape and is not clamped. Sides are mirrored to what the network divides by, as `student.restore` does. The
exported network is run by onnxruntime at four sizes; a difference above 1e-4 is an error and nothing is written. The
file names no path of this machine. Needs the extra `export`: onnx, onnxscript, onnxruntime.
"""

import argparse
import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from student.files import write_file

if TYPE_CHECKING:
    from torch import nn

    from student.model import Student

OPSET = 18
TOLERANCE = 1e-4
PRODUCER = "teachonce"
SIZES = ((1, 64, 64), (2, 72, 136), (1, 101, 67), (1, 8, 40))
"""Batch, height and width of the checks: square, two wide ones, no multiple of anything, the smallest height."""


class ExportError(ValueError):
    """The student cannot be exported as asked; the message is one line and names the remedy."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m student.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a student's directory or hub id")
    parser.add_argument("output", type=Path, help="the file to write, *.onnx")
    parser.add_argument("--opset", type=int, default=OPSET, help=f"ONNX operator set (default: {OPSET})")
    args = parser.parse_args(argv)
    from student.restoration.restorer import RestoreError, load_student

    try:
        size, difference, opset = export(load_student(args.model), args.output, args.opset)
    except (ExportError, RestoreError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    sizes = ", ".join(f"{width}x{height}" for _, height, width in SIZES)
    asked = "" if opset == args.opset else f" (torch.onnx cannot write {args.opset})"
    print(
        f"exported {args.model} → {args.output}: opset {opset}{asked}, {size / 1e6:.2f} MB, "
        f"equal to PyTorch within {difference:.1e} at {sizes}"
    )
    return 0


def export(student: "Student", output: Path, opset: int = OPSET) -> tuple[int, float, int]:
    """Write `output` (whole or not at all); returns its bytes, the largest difference to PyTorch, and its operator set.

    That may be another than `opset`: torch.onnx writes 18, and where that cannot be converted, it stays. Raises
    `ExportError` when a package is missing, the operator set does not do, or the outputs differ.
    """
    import torch

    if missing := [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]:
        raise ExportError(f"needs {missing[0]}: pip install 'teachonce[export]'")
    _check_output(output)
    network, dynamic = _mirroring(student.eval().cpu()), torch.export.Dim.DYNAMIC
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                network,
                (torch.rand(2, 3, 72, 88),),
                input_names=["lq"],
                output_names=["restored"],
                dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            model = program.model_proto
        except Exception as error:  # the exporter wraps whatever went wrong in errors of its own
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ExportError(f"torch.onnx could not export it at opset {opset}: {reason}") from error
    # Without where each line of our code lay, which the exporter writes beside every operation.
    inner = [node for function in model.functions for node in function.node]
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions, *inner):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.producer_name = PRODUCER
    content = model.SerializeToString()
    difference = largest_difference(network, content)
    if not difference <= TOLERANCE:
        raise ExportError(f"onnxruntime and PyTorch differ by {difference:.1e} (allowed: {TOLERANCE:.0e})")
    write_file(output, content)
    return len(content), difference, next(entry.version for entry in model.opset_import if not entry.domain)


def _check_output(output: Path) -> None:
    """Raises `ExportError`, before the work, where `output` is somebody else's: only what this wrote is replaced."""
    if output.is_dir():
        raise ExportError(f"{output} is a folder; name a file, such as {output / 'student.onnx'}")
    if output.exists():
        with output.open("rb") as file:
            if PRODUCER.encode() not in file.read(64):  # the second field of every ONNX file
                raise ExportError(
                    f"{output} exists and was not exported from a student; name another file or remove it"
                )
    output.parent.mkdir(parents=True, exist_ok=True)


def _mirroring(student: "Student") -> "nn.Module":
    """`student` behind a layer that mirrors the last rows and columns; black ones would cost them 2 to 5 dB."""
    import torch

    class Mirroring(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = student

        def forward(self, lq: torch.Tensor) -> torch.Tensor:
            stride, (height, width) = student.config.stride, lq.shape[2:]
            for axis, size in ((2, height), (3, width)):
                at = torch.arange((size + stride - 1) // stride * stride, device=lq.device)
                lq = lq.index_select(axis, torch.where(at < size, at, 2 * size - 1 - at))
            return student(lq)[:, :, :height, :width]

    return Mirroring().eval()


def largest_difference(network: "nn.Module", content: bytes) -> float:
    """Largest absolute difference between the ONNX `content` run by onnxruntime and `network`, over `SIZES`."""
    import numpy as np
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    worst, generator = 0.0, np.random.default_rng(0)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for batch, height, width in SIZES:
            lq = generator.random((batch, 3, height, width), np.float32)
            (ours,) = session.run(None, {"lq": lq})
            with torch.inference_mode():
                theirs = network(torch.from_numpy(lq)).numpy()
            worst = float(np.maximum(worst, np.abs(ours - theirs).max()))  # unlike max(), keeps a NaN
    except Exception as error:  # onnxruntime's errors share no base class of their own
        reason = str(error).splitlines()[0][:300]
        raise ExportError(f"onnxruntime cannot run it: {reason}; try --opset {OPSET}") from None
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports on its own progress and on PyTorch's internals: nothing that a user can act on."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
