"""How good the captions of a release look, before anyone trains on them. Reads the sealed release, bounded in size.

Empty captions, failures and cut ones are counted where they are made (`rows.stats`); here are faults of the text.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from unicodedata import name as unicode_name

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.indexing.table import Index
from shards import Release

LOOKED_AT = 50_000
"""Images, at even steps through the hashes: of a random sample of so many a share is known to half a percent."""
WORST = 20
FAR = 4.0
"""Robust deviations from the median distance to the mean of a data set, beyond which an image does not seem to fit."""
LEAST_SPREAD = 0.02
"""Of cosine distances: where many captions are equal, none would be close enough else."""
FEWEST = 20
"""Images of a data set below which its spread says nothing."""
REFUSAL = re.compile(
    r"\b(i'?m sorry|i am sorry|i apologi[sz]e|as an ai\b|i(?:'?m| am) (?:unable|not able) to |"
    r"i (?:can ?not|can'?t) (?:see|view|provide|assist|describe|identify|determine|process|answer|access)\b)",
    re.IGNORECASE,
)
LOOP = re.compile(r"(?<!\w)(\w+(?:\W+\w+){1,11})(?:\W+\1){2,}(?!\w)|(?<!\w)(\w+)(?:\W+\2){3,}(?!\w)", re.IGNORECASE)
"""Two words or more said three times on end, or one word four times."""
TOLD = {
    "refusal": "refuse to answer",
    "repeats_question": "repeat the question",
    "loop": "say a phrase over and over",
    "other_language": "are in another language than most",
}
USUAL = 0.1
"""Share of the different captions that have a word which is usual."""
LEAST_USUAL = 0.15
"""Share of usual words in a sentence of the same language (English by LLaVA: 0.2 and more; eight others: 0 to 0.11)."""
SENTENCE = 5
"""Different words below which there is no telling."""
TOKEN = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]|[^\W\d_\u2e80-\u9fff\uac00-\ud7af]+")
"""A word, or a sign of a script that writes no spaces."""
WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = set("image main categ objec this that with the and are its for from pictu photo".split())


def faults_of(text: str, question: str) -> list[str]:
    """Which of `TOLD` a caption has, but for its script."""
    asked = question.partition("?")[0].strip().lower()
    found = ["refusal"] if REFUSAL.search(text.replace("’", "'")) else []
    found += ["repeats_question"] if len(asked) > 15 and asked in text.lower() else []
    words = text.lower().split()
    pairs = list(zip(words, words[1:], strict=False))
    # The expression is slow, and whatever it finds says two words on end twice.
    return found + (["loop"] if len(set(pairs)) < len(pairs) and LOOP.search(text) else [])


def script_of(text: str) -> str | None:
    """The script of most letters, such as LATIN, CJK or CYRILLIC; None without a letter."""
    if text.isascii():
        return "LATIN" if any(map(str.isalpha, text)) else None
    scripts = Counter(unicode_name(c, "").partition(" ")[0] for c in text[:200] if c.isalpha())
    return max(scripts, key=scripts.get) if scripts else None


def in_another_language(texts: Collection[str]) -> set[str]:
    """Those of some different texts in another script than most, or with next to none of the words that a tenth of all
    have: in sentences of one language a quarter to a half of the words are among those, of another hardly one.

    No list of languages, so it serves whatever the teacher speaks. A sentence of catchwords is told, too.
    """
    scripts = Counter(script_of(text) for text in texts)
    del scripts[None]
    most = max(scripts, key=scripts.get, default=None)
    common = Counter(word for text in texts for word in _tokens(text))
    usual = {word for word, times in common.items() if times >= USUAL * len(texts)}
    found = {
        text
        for text in texts
        if script_of(text) not in (None, most)
        or (len(words := _tokens(text)) >= SENTENCE and len(words & usual) < LEAST_USUAL * len(words))
    }
    # Where hardly a word is usual, as in a script without spaces, the words tell nothing.
    return found if len(found) < len(texts) / 2 else set()


def audit(release: Release, index: Index, questions: Mapping[str, str]) -> dict:
    """The entry `audit` of caption_stats.json: equal releases give equal numbers.

    `perspectives`: of each the captions looked at, how many are the most frequent text, how many different texts there
    are, and how many have each fault of `TOLD`. `no_common_word`: images whose `content` and `object` share no word.
    `far`: images beyond `FAR`. `worst`: at most `WORST` images, each with its captions and what
    is wrong: faults of text first.
    """
    rows = np.unique(np.linspace(0, len(release) - 1, min(len(release), LOOKED_AT)).astype(int))
    chosen = release.sha256s(rows)
    texts: dict[str, Counter] = {name: Counter() for name in questions}
    counts: dict[str, Counter] = {name: Counter() for name in questions}
    faults: dict[str, list[str]] = {}
    apart = []
    for sha256 in chosen:
        said = release.captions(sha256)
        for name, text in said.items():
            texts[name][text] += 1
            for fault in faults_of(text, questions[name]):
                counts[name][fault] += 1
                faults.setdefault(sha256, []).append(f"{name}: {fault}")
        if said.keys() >= {"content", "object"} and not _words(said["content"]) & _words(said["object"]):
            apart.append(sha256)
    strange = {name: in_another_language(of_name) for name, of_name in texts.items()}
    for sha256 in chosen if any(strange.values()) else ():
        for name, text in release.captions(sha256).items():
            if text in strange[name] and not any(fault.startswith(f"{name}: ") for fault in faults.get(sha256, ())):
                counts[name]["other_language"] += 1
                faults.setdefault(sha256, []).append(f"{name}: other_language")
    far = sorted(_far(release, index, chosen), reverse=True)
    worst = sorted(faults.items(), key=lambda item: (-len(item[1]), item[0]))
    worst += [(sha256, [why]) for _, sha256, why in far if sha256 not in faults]
    return {
        "images": len(chosen),
        "perspectives": {
            name: {
                "captions": texts[name].total(),
                "most_frequent": max(texts[name].values(), default=0),
                "different": len(texts[name]),
                **{fault: counts[name][fault] for fault in TOLD},
            }
            for name in sorted(questions)
        },
        "no_common_word": len(apart) if {"content", "object"} <= questions.keys() else None,
        "far": len(far),
        "worst": [
            {"image_sha256": sha256, "why": why, "captions": release.captions(sha256)} for sha256, why in worst[:WORST]
        ],
    }


def warnings(found: Mapping) -> list[str]:
    """What to say before anyone trains: a fault in more than one caption of a hundred, or one answer to nearly all."""
    said = []
    for name, of_name in found["perspectives"].items():
        n = of_name["captions"]
        said += [
            f"{of_name[fault] / n:.0%} of the captions of {name} {told}"
            for fault, told in TOLD.items()
            if of_name[fault] > 0.01 * n
        ]
        if n >= FEWEST and of_name["most_frequent"] > 0.9 * n:
            said.append(f"{of_name['most_frequent'] / n:.0%} of the captions of {name} are one and the same text")
    return said


def _tokens(text: str) -> set[str]:
    return set(TOKEN.findall(text.lower()))


def _words(text: str) -> set[str]:
    return {word[:5] for word in WORD.findall(text.lower())} - _COMMON


def _far(release: Release, index: Index, chosen: list[str]) -> Iterator[tuple[float, str, str]]:
    """(robust deviations, sha256, what is told) of images whose prior lies far from the mean of their data set's."""
    wanted, members = pa.array(chosen), dict[str, list[int]]()
    for block in index.blocks():
        places = pc.fill_null(pc.index_in(block.images, wanted), -1).to_numpy()
        for place, dataset in zip(places.tolist(), block.first("dataset").to_pylist(), strict=True):
            if place >= 0:
                members.setdefault(dataset, []).append(place)
    for dataset, places in sorted(members.items()):
        if len(places) < FEWEST:
            continue
        mean = _mean(release, chosen, places)
        distance = np.concatenate(
            [1 - release.lookup([chosen[p] for p in part])[0] @ mean for part in _parts(places)]
        ).astype(np.float64)
        middle = np.median(distance)
        spread = max(1.4826 * np.median(np.abs(distance - middle)), LEAST_SPREAD)
        for i in np.flatnonzero(distance > middle + FAR * spread):
            why = f"unlike the rest of {dataset}: similarity {1 - distance[i]:.2f}, usual {1 - middle:.2f}"
            yield float((distance[i] - middle) / spread), chosen[places[i]], why


def _mean(release: Release, chosen: list[str], places: list[int]) -> np.ndarray:
    total = sum(release.lookup([chosen[p] for p in part])[0].sum(0, dtype=np.float64) for part in _parts(places))
    return total / max(np.linalg.norm(total), 1e-12)


def _parts(places: list[int], size: int = 4096) -> Iterator[list[int]]:
    return (places[start : start + size] for start in range(0, len(places), size))
