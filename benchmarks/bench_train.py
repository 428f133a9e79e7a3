"""What does distillation cost a training step, does the data keep up, and do two processes help?

    no align loss            the same step with train.losses.align: 0, and no release to look priors up in
    cached priors            ours: the prior comes from the release, looked up by the loader
    text tower in the loop   what the release saves: encoding the batch's captions in every step (the text tower of CLIP
                             ViT-B/32, random weights: time does not hang on them; 5 captions of 77 tokens an image)

    python benchmarks/bench_train.py --record                                     # CPU, a small student
    python benchmarks/bench_train.py --student published --patch 128 --device cuda --workers 8 --record
    torchrun --nproc_per_node 2 benchmarks/bench_train.py --device cuda           # scaling: images/s of all processes

The variants take turns within each round, so that other load on the machine falls on all of them; medians are shown.
"""

import argparse
import datetime
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader

from shards import write_release
from student.data.cache import open_images
from student.data.dataset import PairDataset, whole
from student.data.pairs import read_pairs, read_release
from student.data.sampler import BalancedBatches
from student.model import Student
from student.network.config import ModelConfig
from student.training.config import LossWeights, TrainConfig
from student.training.losses import compute_losses

STUDENTS = {
    "small": ModelConfig(
        width=16, encoder_blocks=(1, 1, 1), latent_blocks=1, decoder_blocks=(1, 1, 1), refinement_blocks=1
    ),
    "published": ModelConfig(),
}
DATASETS, PERSPECTIVES, TOKENS = 6, 5, 77


def make_data(folder: Path, images: int, side: int, dim: int) -> None:
    """`images` noise-on-waves PNG pairs in six datasets, their index and their release."""
    rng, rows, releases = np.random.default_rng(0), [], []
    y, x = (axis[..., None] for axis in np.mgrid[:side, :side])
    for i in range(images):
        waves = 0.5 + 0.3 * np.sin(x * rng.uniform(0.02, 0.3, 3) + y * rng.uniform(0.02, 0.3, 3))
        paths = [str(folder / f"{kind}{i}.png") for kind in ("gt", "lq")]
        for path, noise in zip(
            paths, (0.02, 0.1), strict=True
        ):  # a little noise: photographs do not compress to nothing
            pixels = (waves + noise * rng.standard_normal(waves.shape)).clip(0, 1)
            Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(path)
        sha256 = hashlib.sha256(Path(paths[0]).read_bytes()).hexdigest()
        name = f"set{i % DATASETS}"
        rows.append(
            {"dataset": name, "domain": name[:-1] + str(i % 3), "task": name, "split": "train", "gt_path": paths[0],
             "lq_path": paths[1], "degradation": None, "gt_sha256": sha256, "width": side, "height": side,
             "status": "ok"}
        )  # fmt: skip
        captions = [{"perspective": "content", "text": "waves", "n_tokens": 1, "finish_reason": "eos"}]
        vector = rng.standard_normal(dim)
        releases.append(
            {"image_sha256": sha256, "width": side, "height": side, "captions": captions,
             "embedding": vector / np.linalg.norm(vector)}
        )  # fmt: skip
    table = pa.Table.from_pylist(rows)
    position = table.schema.get_field_index("degradation")
    parquet.write_table(
        table.set_column(position, "degradation", pa.nulls(images, pa.string())), folder / "index.parquet"
    )
    releases.sort(key=lambda row: row["image_sha256"])
    write_release(
        folder / "release", releases, [], teacher={"model": "none"}, embedder={"model": "none"},
        fingerprints={"content": "0" * 64}, teacher_fingerprint="0" * 64, dim=dim,
    )  # fmt: skip


def text_tower(device: torch.device):
    """Five captions an image → one prior, as an in-loop teacher would do it."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tower = CLIPTextModelWithProjection(CLIPTextConfig()).to(device).eval()

    @torch.no_grad()
    def encode(images: int) -> torch.Tensor:
        tokens = torch.randint(0, 49000, (images * PERSPECTIVES, TOKENS), device=device)
        return tower(tokens).text_embeds.unflatten(0, (images, PERSPECTIVES)).mean(1)

    return encode


def loader_rate(dataset: PairDataset, options, workers: int, seconds: float) -> float:
    """Images/s that the loader alone delivers to this process."""
    batches = BalancedBatches(dataset.pairs.by_dataset, options.batch, 0)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=whole, num_workers=workers)
    stream = iter(loader)
    for _ in range(2 * workers + 2):  # workers start, and their queue fills
        next(stream)
    begun, count = perf_counter(), 0
    while perf_counter() - begun < seconds:
        count += len(next(stream)["row"])
    return count / (perf_counter() - begun)


def measure_steps(
    dataset: PairDataset, bare: PairDataset, options, accelerator: Accelerator
) -> tuple[dict[str, float], float]:
    """Median seconds of a step by variant, and the share of an ordinary one that waits for data; `bare`: no release."""
    device = accelerator.device
    student = Student(STUDENTS[options.student]).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(student.parameters(), lr=4e-4, fused=device.type == "cuda")
    model, optimizer = accelerator.prepare(student, optimizer)
    values = {name: pool.values_NLD for name, pool in student.pools().items()}
    encode = text_tower(device)

    def batches(dataset: PairDataset):
        sampler = BalancedBatches(
            dataset.pairs.by_dataset, options.batch, 0, part=accelerator.process_index, parts=accelerator.num_processes
        )
        pin, workers = device.type == "cuda", options.workers
        return iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=whole, num_workers=workers, pin_memory=pin))

    with_priors, without_priors, config = batches(dataset), batches(bare), TrainConfig()
    without = TrainConfig(losses=LossWeights(align=0))
    times: dict[str, list[float]] = {"no align loss": [], "cached priors": [], "text tower in the loop": []}
    waits: list[float] = []
    for round_ in range(options.rounds + 2):
        for name in times:
            stream = without_priors if name == "no align loss" else with_priors
            begun = perf_counter()
            batch = {key: rows.to(device, non_blocking=True) for key, rows in next(stream).items()}
            waited = perf_counter() - begun
            if name == "text tower in the loop":
                with accelerator.autocast():
                    encoded = encode(len(batch["row"])).float()
                batch["prior"] = torch.nn.functional.pad(encoded, (0, batch["prior"].shape[1] - 512))
            restored, prompts = model(batch["lq"].to(memory_format=torch.channels_last), return_prompts=True)
            losses = compute_losses(
                restored, batch["gt"], prompts, values, {"task": batch["task"], "domain": batch["domain"]},
                batch["prior"], batch["has_prior"], without if name == "no align loss" else config, accelerator.gather,
            )  # fmt: skip
            accelerator.backward(losses.total)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.total.item()
            if round_ >= 2:
                times[name].append(perf_counter() - begun)
                if name == "cached priors":
                    waits.append(waited / times[name][-1])
    return {name: statistics.median(seconds) for name, seconds in times.items()}, statistics.mean(waits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=STUDENTS, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), help="default: bf16 on cuda, no on cpu")
    parser.add_argument("--batch", type=int, default=12, help="crops per step, over all processes")
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--side", type=int, default=320, help="side of the stored images in pixels")
    parser.add_argument("--rounds", type=int, default=8, help="timed steps of each variant")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", choices=("none", "memory", "memmap"), default="none")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda: torch sees no GPU here; use --device cpu")
    precision = options.precision or ("bf16" if options.device == "cuda" else "no")
    accelerator = Accelerator(cpu=options.device == "cpu", mixed_precision=precision)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder, options.images, options.side, STUDENTS[options.student].prompt_dim)
        pairs, release = read_pairs(folder / "index.parquet", "train"), read_release(folder / "release")
        rates = []
        for cache in ("none", "memmap", "memory"):
            images = open_images(cache, pairs.files, folder / "cache", "bench")
            dataset = PairDataset(pairs, release, options.patch, 0, images=images)
            for workers in sorted({0, options.workers}):
                rates.append(
                    (f"loader, cache_images: {cache}, {workers} workers", loader_rate(dataset, options, workers, 3))
                )
        images = open_images(options.cache, pairs.files, folder / "cache", "bench")
        with_priors, bare = (PairDataset(pairs, r, options.patch, 0, images=images) for r in (release, None))
        steps, wait = measure_steps(with_priors, bare, options, accelerator)
    if accelerator.is_main_process:
        report(options, precision, accelerator.num_processes, rates, steps, wait)


def report(options, precision: str, processes: int, rates: list, steps: dict[str, float], wait: float) -> None:
    device = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPU cores (AMD EPYC, no GPU)"
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    base = steps["no align loss"]

    def share(seconds: float) -> str:
        return f"{seconds / base - 1:+.1%}"

    lines = [
        f"\n## bench_train: {options.student} student, {options.batch} crops of {options.patch}², "
        f"precision {precision}, {processes} process{'es' if processes > 1 else ''}, images of {options.side}²",
        f"{datetime.date.today()}, commit {commit or 'unknown'}, {device}, {torch.get_num_threads()} threads; "
        f"`python benchmarks/bench_train.py {' '.join(sys.argv[1:])}`\n",
        "| method | images/s | of a step without the align loss |",
        "|---|---|---|",
        *(f"| {name} | {rate:.1f} | {rate / options.batch * base:.2f}x |" for name, rate in rates),
        *(f"| step, {name} | {options.batch / s:.2f} | {base / s:.3f}x |" for name, s in steps.items()),
        "",
        f"Distillation with cached priors costs {share(steps['cached priors'])} of a step, with the text tower in the "
        f"loop {share(steps['text tower in the loop'])}. Waiting for data (cache_images: {options.cache}, "
        f"{options.workers} workers): {wait:.1%} of a step.",
        "",
    ]
    print("\n".join(lines))
    if options.record:
        with Path(__file__).with_name("RESULTS.md").open("a") as file:
            file.write("\n".join(lines))


if __name__ == "__main__":
    main()
