"""One evaluation: every image of a split restored and measured once, then all tables and pictures."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from student.data.dataset import PairDataset
from student.data.degradations import DegradationSpec
from student.data.pairs import read_pairs
from student.evaluation.baselines import BASELINES, applies, missing_package
from student.evaluation.config import EvalConfig
from student.evaluation.extra_metrics import check_extra_metrics, extra_metric
from student.evaluation.metrics import IDENTICAL_DB, SMALLEST_SSIM, MetricError, centre_crop, psnr, ssim
from student.evaluation.panels import file_name, write_panels
from student.evaluation.summary import markdown, summary
from student.evaluation.tables import metrics_json, per_image_csv, per_set_csv, results_json, to_json
from student.files import printable, write_file
from student.params import Paths
from student.progress import progress


class EvalError(ValueError):
    """The evaluation cannot continue; the message is one line and names the remedy."""


class Model(NamedTuple):
    """What is measured: its name, the sha256 of its configuration and weights (None: the input itself), and how it
    restores `[3, H, W]` float32 in [0, 1]."""

    name: str
    weights_sha256: str | None
    restore: Callable[[np.ndarray], np.ndarray]


def evaluate(paths: Paths, config: EvalConfig, model: Model, state: PartialState, started: float) -> None:
    """Measure and write everything; images are shared out over the processes of `state`."""
    check_extra_metrics(config.extra_metrics)
    for name in config.baselines:  # before any image is restored
        if remedy := missing_package(name):
            raise EvalError(f"the baseline {name} needs a package: {remedy}; or name the others in eval.baselines")
    dataset, rows = _select(paths, config)
    settings = [config.variant, config.crop_border, config.tile, config.extra_metrics, config.baselines]
    measured = json.dumps([model.weights_sha256, *settings, version("torch"), state.device.type])
    identity = hashlib.sha256(measured.encode()).hexdigest()[:16]  # changes whenever a result could
    finished = Path(paths.evaluation, "finished")
    known = _known(finished, identity)
    state.wait_for_everyone()  # nobody appends before everybody has read
    mine = rows[state.process_index :: state.num_processes]
    log = finished / f"{identity}-{state.process_index}.jsonl"
    found = _measure(dataset, mine, model.restore, config, known, log, state.is_main_process)
    merged = {record["row"]: record for part in gather_object([found]) for record in part}
    if not merged:
        raise EvalError(f"no image of split '{config.split}' can be measured in variant {config.variant}; see above")
    if state.is_main_process:
        _write(paths, config, [merged[row] for row in rows if row in merged], dataset, model, started)
        for file in finished.glob(f"{identity}-*.jsonl"):
            file.unlink()  # for a stopped run alone: scores of this version are not taken for those of a later one


def _select(paths: Paths, config: EvalConfig) -> tuple[PairDataset, list[int]]:
    """The dataset of the split and the rows to measure."""
    pairs = read_pairs(paths.index, config.split)
    rows = [row for row in range(len(pairs)) if config.tasks is None or pairs.task[row] in config.tasks]
    if config.tasks and (unknown := set(config.tasks) - set(pairs.task)):
        have = ", ".join(sorted(set(pairs.task))) or "none"
        raise EvalError(f"eval.tasks names {', '.join(sorted(unknown))}; split '{config.split}' has: {have}")
    if not rows:
        raise EvalError(f"{paths.index} has no usable row of split '{config.split}'; set eval.split or run the index")
    return PairDataset(pairs, None, patch_size=1, seed=0), rows


def load_pair(dataset: PairDataset, row: int, config: EvalConfig) -> tuple[np.ndarray, np.ndarray]:
    """(lq, gt) of one row, [3, H, W], as the variant compares them."""
    lq, gt = dataset.whole_image(row)
    if lq.shape != gt.shape:
        sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (lq, gt)]
        raise EvalError(f"{dataset.pairs.describe(row)}: {sizes[0]}, its gt {sizes[1]}; run the index stage again")
    return (centre_crop(lq), centre_crop(gt)) if config.variant == "promptir" else (lq, gt)


def _measure(
    dataset: PairDataset, rows: list[int], restore: Callable, config: EvalConfig, known: dict, log: Path, shown: bool
) -> list[dict]:
    """One record an image; every finished one is on disk before the next begins."""
    log.parent.mkdir(parents=True, exist_ok=True)
    records, pairs = [], dataset.pairs
    with open(log, "a", encoding="utf-8") as file, progress("evaluating", len(rows), shown=shown) as advance:
        for row in rows:
            try:
                lq, gt = load_pair(dataset, row, config)
            except MetricError as error:  # too small for the variant
                print(f"eval: left out {printable(pairs.describe(row))}: {error}", file=sys.stderr)
                advance()
                continue
            key = hashlib.sha256(lq.tobytes() + gt.tobytes()).hexdigest()
            record = known.get(key)
            if record is None:
                spec = dataset.specs.get(pairs.degradation[row])
                record = {"key": key} | _score(lq, gt, restore, config, spec, pairs.describe(row))
                file.write(json.dumps(record) + "\n")
                file.flush()
            names = {column: str(getattr(pairs, column)[row]) for column in ("dataset", "task", "domain")}
            records.append({"row": row, **names, "image": str(pairs.lq_path[row] or pairs.gt_path[row]), **record})
            advance()
    return records


def _score(
    lq: np.ndarray, gt: np.ndarray, restore: Callable, config: EvalConfig, spec: DegradationSpec | None, name: str
) -> dict[str, Any]:
    restored = restore(lq)
    scores: dict[str, Any] = {"height": gt.shape[1], "width": gt.shape[2]}
    large_enough = min(gt.shape[1:]) - 2 * config.crop_border >= SMALLEST_SSIM[config.variant]
    try:
        for suffix, image in (("", restored), ("_input", lq)):
            scores["psnr" + suffix] = psnr(image, gt, config.variant, config.crop_border)
            scores["ssim" + suffix] = ssim(image, gt, config.variant, config.crop_border) if large_enough else None
            for extra in config.extra_metrics:
                scores[extra + suffix] = extra_metric(extra, image, gt, config.crop_border)
        for baseline in config.baselines:
            image = BASELINES[baseline](lq, gt, spec) if applies(baseline, spec) else None
            found = None if image is None else psnr(image, gt, config.variant, config.crop_border)
            scores[f"psnr_{baseline}"] = found and min(found, IDENTICAL_DB)  # JSON has no infinity
    except ValueError as error:  # MetricError, and what scikit-image says of a picture one pixel high
        raise EvalError(f"{name}: {error}") from None
    return scores


def _known(finished: Path, identity: str) -> dict[str, dict]:
    """Records of an earlier run of the same identity, by the sha256 of the pixels that went in."""
    records = {}
    for file in sorted(finished.glob(f"{identity}-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                records[record["key"]] = record
            except (json.JSONDecodeError, KeyError):  # the line that a kill cut short is measured again
                continue
    return records


def _write(
    paths: Paths, config: EvalConfig, records: list[dict], dataset: PairDataset, model: Model, started: float
) -> None:
    folder = Path(paths.evaluation)
    metrics = metrics_json(records, config.variant)
    results = results_json(records, metrics, config, {"name": model.name, "weights_sha256": model.weights_sha256})
    earlier = _tasks_before(folder / "results.json")
    for name, text in (
        ("results.json", to_json(results)),
        ("table.md", markdown(results)),
        ("datasets.csv", per_set_csv(results)),
        ("per_image.csv", per_image_csv(records, config)),
    ):
        write_file(folder / name, text)
    if earlier:  # pictures of another run would stand among this one's; what is not ours is not touched
        for task in ("overview", *earlier):
            (folder / "panels" / f"{file_name(task)}.png").unlink(missing_ok=True)
        shutil.rmtree(folder / "curves", ignore_errors=True)
    curves = Path(model.name, "curves")  # of the training, for `student.compare`
    if model.weights_sha256 and curves.is_dir():
        shutil.copytree(curves, folder / "curves", dirs_exist_ok=True)
    if config.panels:
        kind = config.variant + f", without {config.crop_border} pixels at the border" * bool(config.crop_border)
        write_panels(folder / "panels", records, lambda row: load_pair(dataset, row, config), model.restore, kind)
    # As few numbers as people compare, for `dvc metrics` and `dvc exp show`; everything is in results.json.
    gains = {name: {"psnr_gain": values["psnr_gain"]} for name, values in metrics["tasks"].items()}
    write_file(Path(paths.metrics), to_json({key: metrics[key] for key in ("variant", "overall")} | {"tasks": gains}))
    print(markdown(results))
    interval = results["overall"]["psnr_gain_ci95"]
    print(summary(metrics, config.split, interval, time.perf_counter() - started, f"{paths.metrics}, {folder}/"))


def _tasks_before(results: Path) -> list[str]:
    """The tasks of the evaluation that stands there; none where there is none of ours."""
    try:
        return [str(row["task"]) for row in json.loads(results.read_text(encoding="utf-8"))["datasets"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
