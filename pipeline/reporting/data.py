"""Section "data": what the student sees."""

import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.reporting import style as style
from pipeline.reporting.blocks import Block, Figure, Missing, Table, listed, pretty
from pipeline.reporting.inputs import INDEX, Inputs
from student.images.files import read_8_bit
from student.images.picture import ImageFileError, read_file

SIDE = 256
"""Longest side of an example picture; larger ones are cut to their centre, never scaled, so that noise stays noise."""


def counts(inputs: Inputs) -> Iterator[Block]:
    """Usable pairs per data set and split, and everything in the index that is not usable."""
    pairs = inputs.pairs
    names = sorted(set(zip(pairs["domain"].to_pylist(), pairs["dataset"].to_pylist(), strict=True)))
    domains = sorted({domain for domain, _ in names})
    splits = sorted(set(pairs["split"].to_pylist()), key=lambda split: ("train val test".find(split), split))
    rows = Counter(zip(pairs["dataset"].to_pylist(), pairs["split"].to_pylist(), strict=True))
    figure, axes = style.canvas(1.4 + 0.42 * len(names))
    left = np.zeros(len(names))
    color = style.colors(domains)
    for split, shade in zip(splits, np.linspace(1, 0.35, len(splits)), strict=True):
        widths = np.array([rows[dataset, split] for _, dataset in names], dtype=float)
        labels = [pretty(dataset) for _, dataset in names]
        bars = axes[0, 0].barh(labels, widths, left=left, color=[color[domain] for domain, _ in names], alpha=shade)
        axes[0, 0].bar_label(
            bars, [f"{int(w)} {split}" if w > widths.sum() / 50 else "" for w in widths], label_type="center",
            color="white" if shade > 0.7 else style.INK, fontsize=9,
        )  # fmt: skip
        left += widths
    axes[0, 0].invert_yaxis()
    axes[0, 0].grid(axis="y", visible=False)
    axes[0, 0].xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_xlabel("pairs of a degraded and a clean image")
    images = len(set(pairs["gt_sha256"].to_pylist()))
    sides = np.array([pairs["width"].to_pylist(), pairs["height"].to_pylist()])
    yield Figure(
        "data-counts",
        "Pairs by data set",
        f"{len(pairs)} pairs of {len(set(pairs['task'].to_pylist()))} tasks in {len(domains)} domains "
        f"({listed(map(pretty, domains))}) are made of {images} distinct clean images, "
        f"{sides.min()} to {sides.max()} pixels a side.",
        style.png(figure),
        "Bars: the number of pairs of every data set, by split, coloured by domain.",
    )
    bad = Counter(
        (row["dataset"], row["status"]) for row in inputs.index.select(["dataset", "status"]).to_pylist()
        if row["status"] != "ok"
    )  # fmt: skip
    if bad:
        share = sum(bad.values()) / len(inputs.index)
        yield Table(
            "Rows that are not used",
            f"{sum(bad.values())} of {len(inputs.index)} rows ({share:.1%}) are left out; {INDEX} --check lists them.",
            ["data set", "reason", "rows"],
            [[pretty(dataset), status, str(n)] for (dataset, status), n in sorted(bad.items())],
        )


def examples(inputs: Inputs) -> Iterator[Block]:
    """One pair of every data set, degraded beside clean, a figure a domain."""
    table = inputs.pairs.sort_by([("domain", "ascending"), ("dataset", "ascending"), ("gt_sha256", "ascending")])
    first: dict[str, dict] = {}
    for row in table.to_pylist():
        held = first.get(row["dataset"])
        if held is None or held["split"] == "train" != row["split"]:  # held-out images are what results are about
            first[row["dataset"]] = row
    shown = list(first.values())[: inputs.config.max_datasets]
    unreadable = []
    for domain in dict.fromkeys(row["domain"] for row in shown):
        panels, names = [], []
        for row in shown:
            if row["domain"] == domain:
                try:
                    panels.append(pair_panel(row))
                    names.append(pretty(row["dataset"]))
                except (ImageFileError, OSError, ValueError) as error:
                    unreadable.append(f"{row['gt_path']}: {error}")
        if panels:
            left_out = f" ({len(first) - len(shown)} more data sets are not shown.)" if len(first) > len(shown) else ""
            yield Figure(
                f"data-examples-{domain}",
                f"Examples: {pretty(domain)}",
                f"Left what the student gets, right the clean image: {listed(names)}, from top to bottom.{left_out}",
                style.picture(stack(panels)),
                f"Pairs of images of the domain {pretty(domain)}: {listed(names)}.",
                pixelated=True,
            )
    if unreadable:
        raise Missing(f"{len(unreadable)} example pictures cannot be read, the first is {unreadable[0]}", INDEX)


def pair_panel(row: dict) -> Image.Image:
    """The degraded image beside the clean one; degradations made on the fly are seeded by the file's name."""
    gt = read_8_bit(read_file(row["gt_path"]))
    if row["lq_path"]:
        lq = read_8_bit(read_file(row["lq_path"]))
    else:
        from student.data.degradations import DegradationSpec, degrade  # scipy: only where it is needed

        spec = DegradationSpec.model_validate_json(row["degradation"])
        rng = np.random.default_rng(zlib.crc32(Path(row["gt_path"]).name.encode()))
        lq = degrade(np.asarray(gt, np.float32) / 255, spec, rng)
        lq = Image.fromarray((np.clip(lq, 0, 1) * 255).round().astype(np.uint8))
    lq, gt = centre(lq), centre(gt)
    panel = Image.new("RGB", (lq.width + gt.width + 4, max(lq.height, gt.height)), "white")
    panel.paste(lq, (0, 0))
    panel.paste(gt, (lq.width + 4, 0))
    return panel


def centre(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The middle of an image, at most `side` x `side`."""
    left, top = max(0, (image.width - side) // 2), max(0, (image.height - side) // 2)
    return image.crop((left, top, left + min(side, image.width), top + min(side, image.height)))


def stack(panels: list[Image.Image]) -> Image.Image:
    """Panels below each other, centred."""
    width = max(panel.width for panel in panels)
    sheet = Image.new("RGB", (width, sum(panel.height + 4 for panel in panels) - 4), "white")
    top = 0
    for panel in panels:
        sheet.paste(panel, ((width - panel.width) // 2, top))
        top += panel.height + 4
    return sheet


def captioned(image: Image.Image, text: str) -> Image.Image:
    """The image with one line of text below it."""
    sheet = Image.new("RGB", (image.width, image.height + 16), "white")
    sheet.paste(image, (0, 0))
    ImageDraw.Draw(sheet).text((image.width // 2, image.height + 2), text, fill=style.INK, anchor="ma", font_size=12)
    return sheet


BLOCKS = (counts, examples)
