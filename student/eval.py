"""Evaluate a student: PSNR and SSIM of its output and of the degraded input, tables, intervals and panels.

    python -m student.eval                                       # as params.yaml says: paths.student on eval.split
    python -m student.eval --model input                         # the degraded input as its own baseline
    python -m student.eval --model DIR_OR_HUB_ID --split test --set eval.variant=promptir
    torchrun --nproc_per_node 4 -m student.eval                  # images shared out over 4 processes

Writes paths.metrics and, into paths.evaluation, results.json, table.md, datasets.csv, per_image.csv and panels/*.png:
what params.yaml asks for. Measured otherwise (another model, split or setting given on the command line), everything
goes to a folder beside, evaluation-input, or to --out DIR, metrics.json included.
A stopped run goes on where it was: finished images are kept in the folder's finished/.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from student.evaluation.config import EvalConfig
from student.evaluation.output_folder import place
from student.files import write_file
from student.params import ParamsError, Paths, add_params_arguments, load_sections, read_params
from student.progress import progress
from student.sections import StudentParams


class EvalError(ValueError):
    """The evaluation cannot go on; the message is one line and names the remedy."""


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
        config = checked.eval
        paths = place(checked.paths, config, read_params(args.params), args.out)
    except ParamsError as error:
        print(f"eval: {error}", file=sys.stderr)
        return 1
    # Heavy imports wait until --help and a typo have been answered.
    from accelerate import PartialState

    from student.data.pairs import TrainDataError
    from student.evaluation.metrics import MetricError
    from student.restoration.restorer import RestoreError

    try:
        evaluate(paths, config, args.device, started)
        # The threads of a process group that is left open can abort the process at its very end, after its work.
        PartialState().destroy_process_group()
    except (EvalError, TrainDataError, MetricError, RestoreError) as error:
        print(f"eval: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("eval: stopped; finished images are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def evaluate(paths: Paths, config: EvalConfig, device: str = "auto", started: float | None = None) -> dict[str, Any]:
    """Measure and write everything; returns the content of paths.metrics (on the main process)."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from student.evaluation.extra_metrics import check_extra_metrics
    from student.evaluation.tables import metrics_json

    started = time.perf_counter() if started is None else started
    state = PartialState(cpu=device == "cpu")
    check_extra_metrics(config.extra_metrics)
    _check_baselines(config)  # before any image is restored
    dataset, rows = _select(paths, config)
    model = _Model(config.model or paths.student, config, state.device if state.num_processes > 1 else device)
    folder = Path(paths.evaluation)
    known = _finished(folder, model.identity) if config.resume else {}
    state.wait_for_everyone()  # nobody appends before everybody has read
    mine = rows[state.process_index :: state.num_processes]
    measured = _measure(dataset, mine, model, config, known, folder, state)
    merged = {record["row"]: record for part in gather_object([measured]) for record in part}
    if not state.is_main_process:
        return {}
    records = [merged[row] for row in rows]
    metrics = metrics_json(records, config.variant)
    _write(paths, config, metrics, records, dataset, model, started)
    return metrics


def _check_baselines(config: EvalConfig) -> None:
    from student.evaluation.baselines import missing_package

    for name in config.baselines:
        if remedy := missing_package(name):
            raise EvalError(f"the baseline {name} needs a package: {remedy}; or name the others in eval.baselines")


def _select(paths: Paths, config: EvalConfig) -> tuple[Any, list[int]]:
    """The dataset of the split and the rows to measure."""
    from student.data.dataset import PairDataset
    from student.data.pairs import read_pairs

    pairs = read_pairs(paths.index, config.split)
    rows = [row for row in range(len(pairs)) if config.tasks is None or pairs.task[row] in config.tasks]
    if config.tasks and (unknown := set(config.tasks) - set(pairs.task)):
        have = ", ".join(sorted(set(pairs.task))) or "none"
        raise EvalError(f"eval.tasks names {', '.join(sorted(unknown))}; split '{config.split}' has: {have}")
    if not rows:
        raise EvalError(f"{paths.index} has no usable row of split '{config.split}'; set eval.split or run the index")
    return PairDataset(pairs, None, patch_size=1, seed=0), rows


class _Model:
    """What is measured: a student, or the identity for "input". `identity` changes whenever a result could."""

    def __init__(self, name: str, config: EvalConfig, device: Any):
        from student.restoration.restorer import Restorer, load_student

        self.restorer, weights = None, ""
        if name != "input":
            student = load_student(name)
            weights = hashlib.sha256(student.config.model_dump_json().encode())
            for key, tensor in sorted(student.state_dict().items()):
                weights.update(key.encode() + tensor.contiguous().numpy().tobytes())
            weights = weights.hexdigest()
            self.restorer = Restorer(student, device, tile=config.tile)
        self.about = {"name": name, "weights_sha256": weights or None}
        settings = [config.variant, config.crop_border, config.tile, config.extra_metrics, config.baselines]
        measured = [weights, *settings, _code(), version("torch")]
        self.identity = hashlib.sha256(json.dumps(measured).encode()).hexdigest()[:16]

    def __call__(self, lq: Any) -> Any:
        return lq if self.restorer is None else self.restorer(lq).image


def _code() -> str:
    """sha256 of this package's source: scores of an earlier version are not taken for this one's."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def load_pair(dataset: Any, row: int, config: EvalConfig) -> tuple[Any, Any]:
    """(lq, gt) of one row, [3, H, W], as the variant compares them."""
    from student.evaluation.metrics import centre_crop

    lq, gt = dataset.whole_image(row)
    if lq.shape != gt.shape:
        sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (lq, gt)]
        raise EvalError(f"{dataset.pairs.describe(row)}: {sizes[0]}, its gt {sizes[1]}; run the index stage again")
    return (centre_crop(lq), centre_crop(gt)) if config.variant == "promptir" else (lq, gt)


def _measure(
    dataset: Any, rows: list[int], model: _Model, config: EvalConfig, known: dict, folder: Path, state: Any
) -> list[dict]:
    """One record an image; every finished one is on disk before the next begins."""
    folder = folder / "finished"
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    with (
        open(folder / f"{model.identity}-{state.process_index}.jsonl", "a", encoding="utf-8") as log,
        progress("evaluating", len(rows), shown=state.is_main_process) as advance,
    ):
        for row in rows:
            lq, gt = load_pair(dataset, row, config)
            key = hashlib.sha256(lq.tobytes() + gt.tobytes()).hexdigest()
            record = known.get(key)
            if record is None:
                spec = dataset.specs.get(dataset.pairs.degradation[row])
                record = {"key": key} | _score(lq, gt, model, config, spec, dataset.pairs.describe(row))
                log.write(json.dumps(record) + "\n")
                log.flush()
            pairs = dataset.pairs
            names = {column: str(getattr(pairs, column)[row]) for column in ("dataset", "task", "domain")}
            image = str(pairs.lq_path[row] or pairs.gt_path[row])
            records.append({"row": row, **names, "image": image, **record})
            advance()
    return records


def _score(lq: Any, gt: Any, model: _Model, config: EvalConfig, spec: Any, name: str) -> dict[str, Any]:
    from student.evaluation.baselines import BASELINES, applies
    from student.evaluation.extra_metrics import extra_metric
    from student.evaluation.metrics import SMALLEST_SSIM, MetricError, psnr, ssim

    restored = model(lq)
    scores: dict[str, Any] = {"height": gt.shape[1], "width": gt.shape[2]}
    large_enough = min(gt.shape[1:]) - 2 * config.crop_border >= SMALLEST_SSIM[config.variant]
    for suffix, image in (("", restored), ("_input", lq)):
        try:
            scores["psnr" + suffix] = psnr(image, gt, config.variant, config.crop_border)
            found = ssim(image, gt, config.variant, config.crop_border) if large_enough else None
        except MetricError as error:
            raise EvalError(f"{name}: {error}") from None
        scores["ssim" + suffix] = found
        for extra in config.extra_metrics:
            scores[extra + suffix] = extra_metric(extra, image, gt, config.crop_border)
    for baseline in config.baselines:
        image = BASELINES[baseline](lq, gt, spec) if applies(baseline, spec) else None
        scores[f"psnr_{baseline}"] = None if image is None else psnr(image, gt, config.variant, config.crop_border)
    return scores


def _finished(folder: Path, identity: str) -> dict[str, dict]:
    """Records of an earlier run of the same identity, by the sha256 of the pixels that went in."""
    records = {}
    for file in sorted((folder / "finished").glob(f"{identity}-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                records[record["key"]] = record
            except (json.JSONDecodeError, KeyError):  # the line that a kill cut short is measured again
                continue
    return records


def _write(
    paths: Paths, config: EvalConfig, metrics: dict, records: list, dataset: Any, model: _Model, started: float
) -> None:
    from student.evaluation.panels import write_panels
    from student.evaluation.summary import markdown, summary
    from student.evaluation.tables import per_image_csv, per_set_csv, results_json, to_json

    folder = Path(paths.evaluation)
    ours = (folder / "results.json").exists()
    results = results_json(records, metrics, config, model.about)
    for name, text in (
        ("results.json", to_json(results)),
        ("table.md", markdown(results)),
        ("datasets.csv", per_set_csv(results)),
        ("per_image.csv", per_image_csv(records, config)),
    ):
        write_file(folder / name, text.encode())
    if ours:  # pictures of another run would stand among this one's; a folder panels/ of something else is not touched
        shutil.rmtree(folder / "panels", ignore_errors=True)
    if config.panels:
        kind = config.variant + f", without {config.crop_border} pixels at the border" * bool(config.crop_border)
        write_panels(folder / "panels", records, lambda row: load_pair(dataset, row, config), model, kind)
    Path(paths.metrics).parent.mkdir(parents=True, exist_ok=True)
    write_file(Path(paths.metrics), to_json(metrics).encode())
    print(markdown(results))
    interval = results["overall"]["psnr_gain_ci95"]
    print(summary(metrics, config.split, interval, time.perf_counter() - started, f"{paths.metrics}, {folder}/"))


if __name__ == "__main__":
    sys.exit(main())
