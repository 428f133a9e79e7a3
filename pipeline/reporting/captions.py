"""Section "Captions": what the teacher said about the clean images, and a map of it as vectors."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.reporting import style
from pipeline.reporting.blocks import Block, Figure, Missing, Table, pretty
from pipeline.reporting.data import clean, pictures
from pipeline.reporting.inputs import EMBED, Inputs

CARDS = 6
FAULTS = {
    "refusal": "refuse",
    "repeats_question": "repeat the question",
    "loop": "repeat themselves",
    "other_language": "in another language",
}
FEWEST = 6
"""Priors below which a map of them says nothing."""
PERPLEXITY = 30
"""Neighbours that t-SNE looks at; of few images at most a third."""


def answers(inputs: Inputs) -> Iterator[Block]:
    """Some images of every domain with all that was said about them."""
    sample, cards = inputs.sample, []
    domains = sorted(set(sample.domains))[: inputs.config.max_datasets]
    for domain in domains:
        members = np.flatnonzero(sample.domains == domain)
        for place in np.unique(np.linspace(0, len(members) - 1, max(1, CARDS // len(domains)), dtype=int)):
            sha256, said = sample.sha256s[members[place]], sample.captions[members[place]]
            texts = [(pretty(name), text) for name, text in said.items()]
            cards.append((lambda sha256=sha256: clean(inputs.row_of(sha256)), pretty(domain), texts))
    yield from pictures("Images and what was said", "", cards)


def questions(inputs: Inputs) -> Iterator[Block]:
    """One row a perspective: the question, failures, cut answers, and how different the answers are."""
    stats, sample, rows = inputs.json(inputs.paths.caption_stats, EMBED), inputs.sample, []
    try:
        for name, asked in stats["perspectives"].items():
            texts = Counter(captions[name] for captions in sample.captions if name in captions)
            failed = sum(asked.get(status, 0) for status in ("empty", "bad_image", "error"))
            cut = asked["cut_by_max_new_tokens"] + asked["cut_by_embedder"]
            usual = "".join(f"“{text}” ({times})" for text, times in texts.most_common(1))
            numbers = map(str, (asked.get("ok", 0), failed, cut, len(texts)))
            rows.append([pretty(name), asked["prompt"], *numbers, usual])
        told = f"{stats['rows']} of {stats['images']} images have captions that can be used."
    except (KeyError, TypeError, AttributeError) as error:
        raise Missing(f"{inputs.paths.caption_stats} has another form: {error!r}", EMBED) from None
    columns = ["perspective", "question", "answers", "failed", "cut", "different", "most frequent (times)"]
    yield Table("Questions", f"{told} {sample.rule} The last two columns are of those.", columns, rows, (0, 1, 6))


def doubts(inputs: Inputs) -> Iterator[Block]:
    """What the audit of the stage `embed` found, and the pictures that look worst."""
    stats, cards = inputs.json(inputs.paths.caption_stats, EMBED), []
    try:
        found = stats["audit"]
        rows = [
            [pretty(name), *(str(of_name[key]) for key in ("captions", "most_frequent", *FAULTS))]
            for name, of_name in found["perspectives"].items()
        ]
        total = sum(of_name[fault] for of_name in found["perspectives"].values() for fault in FAULTS)
        told = (
            f"{total} captions have a fault that a program can see. " if total else "No caption has one of the faults. "
        )
        told += (
            f"{found['images']} images were looked at; {found['far']} are described unlike the rest of their data set. "
        )
        if found["no_common_word"]:
            told += f"Of {found['no_common_word']} images content and object share no word. "
        yield Table("Do they look sound?", told, ["perspective", "captions", "most frequent", *FAULTS.values()], rows)
        for image in found["worst"]:
            if row := inputs.row_of(image["image_sha256"]):
                texts = [
                    ("why", ", ".join(image["why"])),
                    *((pretty(k), text) for k, text in image["captions"].items()),
                ]
                cards.append((lambda row=row: clean(row), pretty(row["dataset"]), texts))
    except (KeyError, TypeError, AttributeError) as error:
        raise Missing(f"{inputs.paths.caption_stats} has another form: {error!r}", EMBED) from None
    yield from pictures("Look at these first", "", cards)


def priors(inputs: Inputs) -> Iterator[Block]:
    """The captions as vectors on a plane, by domain."""
    sample = inputs.sample
    vectors, domains = sample.vectors, sorted(set(sample.domains))
    # Equal priors are one point, the larger the more images share it: t-SNE would lay them out as a ring.
    distinct, number = np.unique(vectors, axis=0, return_inverse=True)
    if len(distinct) < FEWEST:
        raise Missing(f"{len(distinct)} different priors are too few for a map ({FEWEST} at least)", EMBED)
    places = _places(distinct)
    colours = style.colours({*inputs.pairs.domain_of.values(), *domains})
    figure, axes = style.canvas(4.6 + 0.15 * len(domains))
    for place, name in enumerate(domains):
        points, images = np.unique(number[sample.domains == name], return_counts=True)
        look = {"c": colours[name], "marker": style.MARKERS[place % len(style.MARKERS)], "alpha": 0.75, "linewidths": 0}
        axes[0, 0].scatter(*places[points].T, s=22 * np.sqrt(images), label=pretty(name), **look)
    axes[0, 0].set(xticks=[], yticks=[])
    axes[0, 0].spines[:].set_visible(True)
    figure.legend(loc="outside lower center", ncols=2, fontsize=10)
    own = _own(vectors, sample.domains) if len(domains) > 1 else ""
    told = f"{own}{len(distinct)} of {len(vectors)} priors differ; the more images share a point, the larger "
    told += f"it is. Only neighbourhoods mean something on such a map (t-SNE). {sample.rule}"
    yield Figure("Map of the priors", told, style.png(figure), "priors-map")


def _places(vectors: np.ndarray) -> np.ndarray:
    """`[n, dim]` → `[n, 2]`; 50 components before t-SNE are its author's advice."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    reduced = PCA(min(50, *vectors.shape), random_state=0).fit_transform(vectors)
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="random", random_state=0).fit_transform(reduced)


def _own(vectors: np.ndarray, labels: np.ndarray) -> str:
    """How often the nearest other image is of the same group, beside what chance gives."""
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -np.inf)
    hits = float(np.mean(labels[cosine.argmax(1)] == labels))
    sizes = np.unique(labels, return_counts=True)[1]
    chance = float((sizes * (sizes - 1)).sum() / (len(labels) * (len(labels) - 1)))
    return f"{hits:.0%} of the images have their nearest neighbour in their own domain (by chance {chance:.0%}). "


BLOCKS = (answers, questions, doubts, priors)
