"""Evaluate a student: PSNR and SSIM of its output and of the degraded input, tables, intervals and panels.

    python -m student.eval                                       # as params.yaml says: paths.student on eval.split
    python -m student.eval --model input                         # the degraded input as its own baseline
    python -m student.eval --model DIR_OR_HUB_ID --split test --set eval.variant=promptir
    torchrun --nproc_per_node 4 -m student.eval                  # images shared out over 4 processes

Writes paths.metrics and, into paths.evaluation, results.json, table.md, datasets.csv, per_image.csv and panels/*.png.
With --model or --split everything goes to a folder beside, evaluation-input, or to --out DIR, metrics.json included.
A stopped run goes on where it was: until the end, finished images are kept in the folder's finished/.
"""

import argparse
import hashlib
import os
import re
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from student.params import ParamsError, add_params_arguments, load_sections, read_params
from student.sections import StudentParams

if TYPE_CHECKING:
    from student.evaluation.run import Model


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # docs/decisions.md, before torch is imported
    started = time.perf_counter()
    parser = argparse.ArgumentParser(
        prog="python -m student.eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_params_arguments(parser)
    parser.add_argument("--model", metavar="DIR|ID|input", help="what to measure (eval.model; default: paths.student)")
    parser.add_argument("--baselines", action="store_true", help="measure simple methods beside it (eval.baselines)")
    parser.add_argument("--split", help="split of the index (eval.split)")
    parser.add_argument("--out", metavar="DIR", help="write everything there (default: see above)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    args = parser.parse_args(argv)
    try:
        params = read_params(args.params, args.overrides)
        given = {key: value for key in ("model", "split") if (value := getattr(args, key)) is not None}
        if args.baselines:
            from student.evaluation.baselines import BASELINES, missing_package

            given["baselines"] = [name for name in BASELINES if not missing_package(name)]
            for name in set(BASELINES) - set(given["baselines"]):
                print(f"eval: without the baseline {name}: {missing_package(name)}", file=sys.stderr)
        params["eval"] = (params.get("eval") or {}) | given
        checked = load_sections(StudentParams, params)
        config, paths = checked.eval, checked.paths
        named = [given[key] for key in ("model", "split") if key in given]
        beside = "-".join(re.sub(r"[^\w.-]+", "-", value).strip("-.") for value in named)
        if args.out or beside:
            folder = args.out or f"{paths.evaluation.rstrip('/')}-{beside[-100:]}"
            paths = paths.model_copy(update={"evaluation": folder, "metrics": str(Path(folder, "metrics.json"))})
    except ParamsError as error:
        print(f"eval: {error}", file=sys.stderr)
        return 1
    # Heavy imports wait until --help and a typo have been answered.
    from accelerate import PartialState

    from student.data.pairs import TrainDataError
    from student.evaluation.metrics import MetricError
    from student.evaluation.run import EvalError, evaluate
    from student.restoration.restorer import RestoreError

    try:
        state = PartialState(cpu=args.device == "cpu", timeout=timedelta(days=7))  # one share may be far slower
        model = _model(
            config.model or paths.student, config.tile, state.device if state.num_processes > 1 else args.device
        )
        evaluate(paths, config, model, state, started)
        # The threads of a process group that is left open can abort the process at its very end, after its work.
        state.destroy_process_group()
    except (EvalError, TrainDataError, MetricError, RestoreError, OSError) as error:
        print(f"eval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("eval: stopped; finished images are kept, the same command resumes", file=sys.stderr)
        return 130
    return 0


def _model(name: str, tile: Literal["off", "auto"] | int, device: Any) -> "Model":
    from student.evaluation.run import Model
    from student.restoration.restorer import Restorer, load_student

    if name == "input":
        return Model(name, None, lambda lq: lq)
    student = load_student(name)
    weights = hashlib.sha256(student.config.model_dump_json().encode())
    for key, tensor in sorted(student.state_dict().items()):
        weights.update(key.encode() + tensor.contiguous().numpy().tobytes())
    restorer = Restorer(student, device, tile=tile)
    return Model(name, weights.hexdigest(), lambda lq: restorer(lq).image)


if __name__ == "__main__":
    sys.exit(main())
