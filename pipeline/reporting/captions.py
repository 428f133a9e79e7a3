"""Section "Captions": what the teacher said about the clean images."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.reporting.blocks import Block, Card, Missing, Table, pretty
from pipeline.reporting.data import UNREADABLE, pixels, png
from pipeline.reporting.inputs import EMBED, Inputs

CARDS = 6


def answers(inputs: Inputs) -> Iterator[Block]:
    """Some images of every domain with all that was said about them."""
    sample, unreadable = inputs.sample, []
    domains = sorted(set(sample.domains))[: inputs.config.max_datasets]
    for domain in domains:
        members = np.flatnonzero(sample.domains == domain)
        for place in members[np.linspace(0, len(members) - 1, min(max(1, CARDS // len(domains)), len(members)), dtype=int)]:
            sha256 = sample.sha256s[place]
            try:
                row = inputs.clean[sha256]
                image = png(pixels(row, row["gt_path"]))
            except (*UNREADABLE, KeyError) as error:
                unreadable.append(f"{sha256[:12]}: {error}")
                continue
            yield Card(pretty(domain), image, [(pretty(name), text) for name, text in sample.captions[place].items()])
    if unreadable:
        raise Missing(f"{len(unreadable)} captioned image(s) not in the index or on disk ({unreadable[0]})", EMBED)


def questions(inputs: Inputs) -> Iterator[Block]:
    """One row a perspective: the question, failures, cut answers, and how different the answers are."""
    stats = inputs.json(inputs.paths.caption_stats, EMBED)
    rows = []
    try:
        for name, asked in stats["perspectives"].items():
            texts = Counter(captions[name] for captions in inputs.sample.captions if name in captions)
            failed = sum(asked.get(status, 0) for status in ("empty", "bad_image", "error"))
            usual, times = texts.most_common(1)[0] if texts else ("", 0)
            numbers = [asked.get("ok", 0), failed, asked["cut_by_max_new_tokens"] + asked["cut_by_embedder"], len(texts)]
            rows.append([pretty(name), asked["prompt"], *map(str, numbers), f"“{usual}” ({times})"])
        told = f"{stats['rows']} of {stats['images']} images have captions that can be used. "
    except (KeyError, TypeError, AttributeError) as error:
        raise Missing(f"{inputs.paths.caption_stats} has another form: {error!r}", EMBED) from None
    columns = ["perspective", "question", "answers", "failed", "cut", "different", "most frequent (times)"]
    yield Table("Questions", f"{told}Different and most frequent: {inputs.sample.rule}", columns, rows, frozenset({0, 1, 6}))


BLOCKS = (answers, questions)
