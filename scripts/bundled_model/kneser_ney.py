"""Interpolated modified Kneser-Ney n-gram model over token ids (Chen & Goodman, 1998).

The highest order uses plain counts; every lower order uses continuation counts, i.e. the number of distinct tokens
seen before an n-gram.  Each order has three discounts (for counts of one, two, and three or more), estimated from that
order's counts of counts.  The unigram is interpolated with the uniform distribution, so every token of the
vocabulary has a probability above zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Gram = tuple[int, ...]


def estimate_discounts(counts: Iterable[int]) -> tuple[float, float, float]:
    """Chen and Goodman's closed-form discounts for counts of one, two, and three or more."""
    of = Counter(min(count, 5) for count in counts)
    n1, n2, n3, n4 = of[1], of[2], of[3], of[4]
    if min(n1, n2) == 0:
        # Too few rare n-grams to estimate from (a tiny text): one half is the usual absolute discount.
        return 0.5, 0.5, 0.5
    single = n1 / (n1 + 2 * n2)
    if n3 == 0:
        return single, single, single
    raw = (1 - 2 * single * n2 / n1, 2 - 3 * single * n3 / n2, 3 - 4 * single * n4 / n3)
    # A discount above its count would give a negative probability, one below zero a negative back-off weight.
    first, second, third = (min(max(value, 0.0), float(count)) for count, value in enumerate(raw, start=1))
    return first, second, third


class _Order:
    """Discounted counts of the n-grams of one length, with each context's total and back-off weight."""

    def __init__(self, counts: Counter[Gram]) -> None:
        self.discounts = estimate_discounts(counts.values())
        self.counts = counts
        self.totals: Counter[Gram] = Counter()
        removed: dict[Gram, float] = {}
        for gram, count in counts.items():
            context = gram[:-1]
            self.totals[context] += count
            removed[context] = removed.get(context, 0.0) + self._discount(count)
        self.backoff = {context: removed[context] / total for context, total in self.totals.items()}

    def _discount(self, count: int) -> float:
        return self.discounts[min(count, 3) - 1]

    def probability(self, gram: Gram, lower: float) -> float:
        """P(last token | the tokens before it), given the shorter context's probability of the same token."""
        context = gram[:-1]
        total = self.totals.get(context, 0)
        if total == 0:
            return lower
        count = self.counts.get(gram, 0)
        kept = (count - self._discount(count)) / total if count else 0.0
        return kept + self.backoff[context] * lower


class KneserNey:
    """An n-gram model of the given order (3: a trigram) estimated from one stream of token ids."""

    def __init__(self, tokens: Sequence[int], vocab_size: int, order: int = 3) -> None:
        if order < 1:
            raise ValueError("the order must be at least 1")
        if len(tokens) < order:
            raise ValueError(f"{len(tokens)} tokens are too few for order {order}")
        if not all(0 <= token < vocab_size for token in tokens):
            raise ValueError("a token id lies outside the vocabulary")
        self.order = order
        self.vocab_size = vocab_size
        counts: Counter[Gram] = Counter(zip(*(tokens[start:] for start in range(order)), strict=False))
        orders = [_Order(counts)]
        for _ in range(order - 1):
            # The keys are distinct n-grams, so counting their tails counts the distinct tokens before each tail.
            counts = Counter(gram[1:] for gram in counts)
            orders.append(_Order(counts))
        self._orders = orders[::-1]

    @property
    def discounts(self) -> list[tuple[float, float, float]]:
        """The discounts of each order, the unigram's first."""
        return [order.discounts for order in self._orders]

    def probability(self, context: Sequence[int], token: int) -> float:
        """P(token | context); of a longer context only the last ``order - 1`` tokens count."""
        history = tuple(context[max(0, len(context) - self.order + 1) :])
        result = 1.0 / self.vocab_size
        for length in range(len(history) + 1):
            gram = (*history[len(history) - length :], token)
            result = self._orders[length].probability(gram, result)
        return result

    def perplexity(self, tokens: Sequence[int], scored: Iterable[int]) -> float:
        """Perplexity of ``tokens`` at the positions ``scored``, each in the context of the tokens before it."""
        total = 0.0
        number = 0
        for position in scored:
            context = tokens[max(0, position - self.order + 1) : position]
            total -= math.log(self.probability(context, tokens[position]))
            number += 1
        if number == 0:
            raise ValueError("no token to score")
        return math.exp(total / number)


def check_sums_to_one(model: KneserNey, tokens: Sequence[int], tolerance: float = 1e-9) -> int:
    """Raise unless the probabilities over the vocabulary sum to one; return how many contexts were tried.

    The contexts are the empty one, one shorter than the order allows, full ones from several places of ``tokens``
    and made-up ones, which the training text most likely does not hold.
    """
    length = model.order - 1
    places = range(length, len(tokens), max(1, len(tokens) // 6))
    contexts = [tuple(tokens[place - length : place]) for place in places]
    contexts += [(), tuple(tokens[:1])]
    contexts += [tuple((start + 7 * step) % model.vocab_size for step in range(length)) for start in (0, 1, 2)]
    for context in contexts:
        total = math.fsum(model.probability(context, token) for token in range(model.vocab_size))
        if abs(total - 1.0) > tolerance:
            raise AssertionError(f"the probabilities after {context} sum to {total}, not to one")
    return len(contexts)
