"""Section "teacher": what the vision-language model said about the clean images."""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from pipeline.reporting import style as style
from pipeline.reporting.blocks import Block, Card, Figure, Missing, Table, listed, pretty
from pipeline.reporting.data import SIDE, centre
from pipeline.reporting.inputs import EMBED, Inputs
from pipeline.reporting.words import count, log_odds
from student.images.files import read_8_bit
from student.images.picture import ImageFileError, read_file

SHOWN_WORDS = 8
LEFT_OUT = frozenset({"image", "images", "picture"})
"""Beside wordcloud's stop words: every caption has them."""


def perspectives(inputs: Inputs) -> Iterator[Block]:
    """One row a perspective: the question, failures, lengths, truncation."""
    stats = inputs.caption_stats
    columns = ["perspective", "question", "captions", "failed", "tokens, mean", "cut: length limit", "cut: embedder"]
    try:
        rows = [
            [
                pretty(name),
                p["prompt"],
                str(p.get("ok", 0)),
                str(sum(p.get(status, 0) for status in ("empty", "bad_image", "error"))),
                f"{p['mean_tokens']:.1f}",
                str(p["cut_by_max_new_tokens"]),
                str(p["cut_by_embedder"]),
            ]
            for name, p in stats["perspectives"].items()
        ]
        images, kept = stats["images"], stats["rows"]
    except (KeyError, TypeError, AttributeError) as error:
        raise Missing(f"{inputs.paths.caption_stats} has another form: {error!r}", EMBED) from None
    captions, failed, cut = (sum(int(row[column]) for row in rows) for column in (2, 3, 5))
    yield Table(
        "Questions and failures",
        f"{kept} of {images} images have captions that can be used; {failed} of {captions + failed} questions failed "
        f"and {cut} answers were cut at the length limit.",
        columns,
        rows,
    )


def lengths(inputs: Inputs) -> Iterator[Block]:
    """Distribution of caption lengths by perspective."""
    found: dict[str, list[int]] = defaultdict(list)
    for captions in inputs.captions:
        for name, text in captions.items():
            found[name].append(len(text.split()))
    names = sorted(found)
    figure, axes = style.canvas(1.2 + 0.5 * len(names))
    parts = axes[0, 0].boxplot(
        [found[name] for name in names], orientation="horizontal", whis=(5, 95),
        showfliers=False, patch_artist=True, tick_labels=[pretty(name) for name in names], widths=0.6,
    )  # fmt: skip
    for box in parts["boxes"]:
        box.set(facecolor="#cfe3f1", edgecolor=style.GOOD)
    for line in parts["medians"]:
        line.set(color=style.BAD, linewidth=2)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlim(left=0)
    axes[0, 0].set_xlabel("words (box: half of the captions; whiskers: 5 to 95 %)")
    medians = {name: np.median(found[name]) for name in names}
    longest, shortest = max(medians, key=medians.get), min(medians, key=medians.get)
    yield Figure(
        "teacher-lengths",
        "Caption length by perspective",
        f"Half of all captions have {np.median(np.concatenate(list(found.values()))):.0f} words or fewer; "
        f"{pretty(longest)} gets the longest answers (median {medians[longest]:.0f}), "
        f"{pretty(shortest)} the shortest ({medians[shortest]:.0f}).",
        style.png(figure),
        "Box plots of the number of words in a caption, one for each perspective.",
    )


def vocabulary(inputs: Inputs) -> Iterator[Block]:
    """Per domain a word cloud and the words that tell it from the others."""
    from wordcloud import STOPWORDS, WordCloud

    idle = STOPWORDS | LEFT_OUT
    texts: dict[str, list[str]] = defaultdict(list)
    for domain, captions in zip(inputs.sample.domains, inputs.captions, strict=True):
        texts[domain] += captions.values()
    counts = {domain: count(texts[domain]) for domain in sorted(texts)}
    color = style.colors(counts)
    telling = log_odds(counts)
    for domain, words in counts.items():
        shown = Counter({word: n for word, n in words.items() if word not in idle})
        if not shown:
            continue
        cloud = WordCloud(
            width=900, height=520, background_color="white", random_state=inputs.config.seed, prefer_horizontal=0.95,
            max_words=80, color_func=lambda *_, hue=color[domain], **__: hue,
        ).generate_from_frequencies(shown)  # fmt: skip
        top = [f"“{word}”" for word, _ in shown.most_common(3)]
        yield Figure(
            f"teacher-cloud-{domain}",
            f"Words: {pretty(domain)}",
            f"{len(texts[domain])} captions of {pretty(domain)} images use {len(words)} different words, most often "
            f"{listed(top)} (“the”, “image” and the like left out).",
            style.picture(cloud.to_image()),
            f"Word cloud of the captions of {pretty(domain)} images.",
        )
    if len(counts) < 2:
        return
    for domain, scores in telling.items():
        best = [(word, z) for word, z in scores if word not in idle and z > 1.96][:SHOWN_WORDS]
        if not best:
            continue
        figure, axes = style.canvas(0.9 + 0.34 * len(best))
        axes[0, 0].barh([word for word, _ in best], [z for _, z in best], color=color[domain])
        axes[0, 0].invert_yaxis()
        axes[0, 0].grid(axis="y", visible=False)
        axes[0, 0].set_xlabel("z of the log-odds against the other domains")
        yield Figure(
            f"teacher-telling-{domain}",
            f"Telling words: {pretty(domain)}",
            f"“{best[0][0]}” tells {pretty(domain)} from the other domains most clearly (z = {best[0][1]:.1f}; "
            "above 1.96 is more than chance).",
            style.png(figure),
            f"Bars: the words most typical of {pretty(domain)} captions, by the z of their log-odds.",
        )


def answers(inputs: Inputs) -> Iterator[Block]:
    """One image of every domain with all that was said about it."""
    unreadable = []
    for domain in sorted(set(inputs.sample.domains)):
        place = int(np.flatnonzero(inputs.sample.domains == domain)[0])
        sha256 = inputs.sample.sha256s[place]
        try:
            image = centre(read_8_bit(read_file(inputs.image_paths[sha256])), SIDE)
        except (ImageFileError, OSError, KeyError) as error:
            unreadable.append(f"{sha256}: {error}")
            continue
        pairs = [(pretty(name), text) for name, text in inputs.captions[place].items()]
        yield Card(pretty(domain), style.picture(image), f"A clean {pretty(domain)} image.", pairs)
    if unreadable:
        raise Missing(f"{len(unreadable)} captioned images are not in the index or on disk ({unreadable[0]})", EMBED)


BLOCKS = (perspectives, answers, lengths, vocabulary)
