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
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

OPSET = 18
TOLERANCE = 1e-4
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
    except (ExportError, RestoreError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"export: {args.output}: {error.strerror or error}", file=sys.stderr)
        return 1
    sizes = ", ".join(f"{width}x{height}" for _, height, width in SIZES)
    asked = "" if opset == args.opset else f" (torch.onnx cannot write {args.opset})"
    print(
        f"exported {args.model} → {args.output}: opset {opset}{asked}, {size / 1e6:.2f} MB, "
        f"equal to PyTorch within {difference:.1e} at {sizes}"
    )
    return 0


def export(student: Any, output: Path, opset: int = OPSET) -> tuple[int, float, int]:
    """Write `output` (whole or not at all); returns its bytes, the largest difference to PyTorch, and its operator set.

    That may be another than `opset`: torch.onnx writes 18, and where that cannot be converted, it stays.

    Raises `ExportError` when a package is missing, the operator set does not do, or the outputs differ.
    """
    import torch

    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise ExportError(f"needs {package}: pip install 'teachonce[export]'") from None
    student = _mirroring(student.eval().cpu())
    dynamic = torch.export.Dim.DYNAMIC
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        file = Path(folder) / "student.onnx"
        with _quiet(), torch.no_grad():
            try:
                torch.onnx.export(
                    student,
                    (torch.rand(2, 3, 72, 88),),
                    file,
                    input_names=["lq"],
                    output_names=["restored"],
                    dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
                    opset_version=opset,
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
            except Exception as error:  # the exporter wraps whatever went wrong in errors of its own
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                raise ExportError(f"torch.onnx could not export it at opset {opset}: {reason}") from error
        _without_paths(file)
        difference = largest_difference(student, file)
        if not difference <= TOLERANCE:
            raise ExportError(f"onnxruntime and PyTorch differ by {difference:.1e} (allowed: {TOLERANCE:.0e})")
        written = _opset(file)
        os.replace(file, output)
    return output.stat().st_size, difference, written


def _mirroring(student: Any) -> Any:
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


def _without_paths(file: Path) -> None:
    """Without where each line of our code lay, which the exporter writes beside every operation."""
    import onnx

    graph = onnx.load(file)
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for function in graph.functions:
        for node in function.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    onnx.save(graph, file)


def _opset(file: Path) -> int:
    import onnx

    return next(entry.version for entry in onnx.load(file).opset_import if entry.domain in ("", "ai.onnx"))


def largest_difference(student: Any, file: Path) -> float:
    """Largest absolute difference between `file` run by onnxruntime and `student`, over `SIZES`."""
    import numpy as np
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class of their own
        reason = str(error).splitlines()[0][:300]
        raise ExportError(f"onnxruntime cannot load it: {reason}; try --opset {OPSET}") from None
    worst, generator = 0.0, np.random.default_rng(0)
    for batch, height, width in SIZES:
        lq = generator.random((batch, 3, height, width), np.float32)
        try:
            (ours,) = session.run(None, {"lq": lq})
        except Exception as error:
            raise ExportError(f"onnxruntime cannot run it at {width}x{height}: {str(error).splitlines()[0]}") from None
        with torch.inference_mode():
            theirs = student(torch.from_numpy(lq)).numpy()
        worst = float(np.maximum(worst, np.abs(ours - theirs).max()))  # unlike max(), keeps a NaN
    return worst


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter reports on its own progress and on PyTorch's internals: nothing that a user can act on."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    sys.exit(main())
