"""Which words of the captions tell one domain from the others: arithmetic only."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import log, sqrt

_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


def words(text: str) -> list[str]:
    """Lower-case words of two letters or more; numbers and punctuation are left out."""
    return [word for word in _WORD.findall(text.lower()) if len(word) > 1]


def count(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs."""
    return Counter(word for text in texts for word in words(text))


def log_odds(counts: Mapping[str, Counter[str]]) -> dict[str, list[tuple[str, float]]]:
    """Per group, (word, z) of the words that it uses more than the other groups do, most telling first.

    z of the log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, eq. 22): the words of
    all groups together are the prior, with the weight of 1 % of the text, so that a rare word is not "telling" by
    chance. |z| > 1.96 is significant at 5 %.
    """
    everything = sum(counts.values(), Counter())
    total = everything.total()
    prior = {word: 0.01 * n for word, n in everything.items()}
    telling = {}
    for group, mine in counts.items():
        n_mine, n_other, n_prior = mine.total(), total - mine.total(), 0.01 * total
        scores = []
        for word, n in mine.items():
            a, b = n + prior[word], everything[word] - n + prior[word]
            delta = log(a / (n_mine + n_prior - a)) - log(b / (n_other + n_prior - b)) if len(everything) > 1 else 0.0
            scores.append((word, delta / sqrt(1 / a + 1 / b)))
        telling[group] = sorted((s for s in scores if s[1] > 0), key=lambda s: (-s[1], s[0]))
    return telling
