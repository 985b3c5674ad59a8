from __future__ import annotations

import hashlib
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data.eval_windows import CHUNK_TOKENS, EvalRange
from data.loader import ORDER_BLOCK, Loader, permuted
from data.shards import Component, Split, open_corpus
from device.distributed import World
from tests.data.helpers import make, refused, texts, write_jsonl


def split_of_sizes(sizes: list[int]) -> Split:
    """Return a split whose tokens are their positions: 0, 1, 2 ... through all shards."""
    ends = np.cumsum(sizes)
    shards = [np.arange(end - size, end, dtype=np.uint32) for end, size in zip(ends, sizes, strict=True)]
    starts = [np.array([0]) for _ in sizes]
    return Split("train", shards, starts, [np.array([i % 2]) for i in range(len(sizes))], ["a", "b"])


def brute_force_windows(split: Split, block: int) -> set[tuple[int, ...]]:
    out = set()
    for shard in split.shards:
        start = 0
        while start + block + 1 <= len(shard):
            out.add(tuple(shard[start : start + block + 1].tolist()))
            start += block
    return out


def rows(loader: Loader, step: int) -> list[tuple[int, ...]]:
    batch = loader.batch(step)
    x, y = batch.inputs, batch.targets
    assert x.dtype == y.dtype == np.int64
    assert (x[:, 1:] == y[:, :-1]).all()
    return [(*a, b[-1]) for a, b in zip(x.tolist(), y.tolist(), strict=True)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 97, 256, 257, 1009, 4099])
def test_the_order_is_a_permutation_that_differs_by_seed_and_epoch(n: int) -> None:
    orders = [permuted(np.arange(n), n, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (-1, 0)]]
    for order in orders:
        assert sorted(order.tolist()) == list(range(n))
    if n > 16:
        assert len({tuple(order.tolist()) for order in orders}) == len(orders)


def test_the_order_is_as_scattered_as_a_random_one() -> None:
    n = 10_007
    order = permuted(np.arange(n), n, 3, 5)
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.04
    assert abs(np.mean(np.abs(np.diff(order))) / (n / 3) - 1) < 0.05


@pytest.mark.parametrize("sizes", [[9], [17], [41, 8, 9, 100], [1000, 3, 1000]])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_every_window_once_per_epoch_also_across_epochs(sizes: list[int], batch: int) -> None:
    split = split_of_sizes(sizes)
    loader = Loader(split, 8, batch, seed=1)
    expected = brute_force_windows(split, 8)
    assert loader.n_windows == len(expected)
    epochs = 3
    steps = -(-epochs * loader.n_windows // batch)
    seen = [row for step in range(steps) for row in rows(loader, step)]
    for epoch in range(epochs):
        here = Counter(seen[epoch * len(expected) : (epoch + 1) * len(expected)])
        assert set(here) == expected
        assert set(here.values()) == {1}


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    split = split_of_sizes([500, 500])
    first, second = Loader(split, 8, 6, seed=1), Loader(split, 8, 6, seed=1)
    forward = [rows(first, step) for step in range(40)]
    EvalRange(split, 8).windows(0, 3)
    assert [rows(second, step) for step in reversed(range(40))] == forward[::-1]
    assert rows(Loader(split, 8, 6, seed=2), 0) != forward[0]
    half = Loader(split, 8, 3, seed=1)
    assert rows(half, 0) + rows(half, 1) == forward[0]


def test_every_window_once_per_epoch_also_beyond_one_order_block() -> None:
    loader = Loader(split_of_sizes([8 * 5000 + 1]), 8, 7, seed=3)
    seen = [tuple(row) for step in range(2 * 5000 // 7) for row in loader.batch(step).inputs.tolist()]
    assert len(set(seen[:5000])) == 5000
    assert len(set(seen[5000:])) == len(seen) - 5000


def test_a_corpus_without_weights_keeps_the_batches_of_earlier_versions() -> None:
    """A run that an earlier version began goes on with the batches that it would have had: never change the hash here."""
    loader, digest = Loader(split_of_sizes([8 * 5000 + 1, 300]), 8, 7, seed=3), hashlib.sha256()
    for step in (0, 1, 584, 585, 1500):
        digest.update(loader.batch(step).inputs.astype("<i8").tobytes())
    assert digest.hexdigest() == "ea39c7c41b0fc0e0a033935be2ca6ba81789e226f28fa3a5f0fba406353c5367"


def mix_of(sources: dict[str, tuple[float, list[int]]]) -> Split:
    """Return the training split of a mix: weight and sizes of shards of each source. A token is its own position."""
    plain = split_of_sizes([size for _, sizes in sources.values() for size in sizes])
    total = sum(weight for weight, _ in sources.values())
    parts = [Component(name, weight / total, len(sizes), sum(sizes), name) for name, (weight, sizes) in sources.items()]
    return Split("train", plain.shards, plain.starts, plain.source_ids, list(sources), tuple(parts))


def drawn(split: Split, windows: int, block: int = 8, seed: int = 1) -> list[tuple[int, int]]:
    """Return the source and the first token of the first windows of the training order."""
    loader = Loader(split, block, windows, seed)
    ends = np.cumsum([part.tokens for part in split.mix])
    first = loader.batch(0).inputs[:, 0]
    return list(zip(np.searchsorted(ends, first, side="right").tolist(), first.tolist(), strict=True))


MIXES = {
    "two": {"a": (0.8, [801, 90]), "b": (0.2, [333])},
    "tiny weight": {"a": (1.0, [500]), "b": (1e-6, [100]), "c": (0.001, [40_000])},
    "sixty-four": {f"s{i}": (1.0, [9 + 8 * i]) for i in range(64)},
    "uneven": {f"s{i}": (1 + i % 7 / 3, [100]) for i in range(63)},
}


@pytest.mark.parametrize("name", MIXES)
def test_every_block_of_a_mix_has_each_source_in_proportion_to_its_weight(name: str) -> None:
    split, blocks = mix_of(MIXES[name]), 5
    sources = [source for source, _ in drawn(split, blocks * ORDER_BLOCK)]
    exact = [Fraction(part.weight) for part in split.mix]
    largest = exact.index(max(exact))
    for end in range(ORDER_BLOCK, len(sources) + 1, ORDER_BLOCK):
        so_far, in_block = Counter(sources[:end]), Counter(sources[end - ORDER_BLOCK : end])
        for source, weight in enumerate(exact):
            tolerance = len(exact) - 1 if source == largest else 1  # the largest takes what the others leave
            assert abs(so_far[source] - weight * end) <= tolerance
            assert abs(in_block[source] - weight * ORDER_BLOCK) <= tolerance
    assert Loader(split, 8, ORDER_BLOCK, 1).tokens_by_source(blocks) == [
        8 * Counter(sources)[s] for s in range(len(exact))
    ]


def test_the_sources_of_a_block_are_mixed_and_not_one_after_the_other() -> None:
    sources = [source for source, _ in drawn(mix_of(MIXES["two"]), 2 * ORDER_BLOCK)]
    changes = sum(a != b for a, b in pairwise(sources))
    assert abs(changes / len(sources) - 2 * 0.8 * 0.2) < 0.03
    assert sources[:ORDER_BLOCK] != sources[ORDER_BLOCK:]
    other = [source for source, _ in drawn(mix_of(MIXES["two"]), 2 * ORDER_BLOCK, seed=2)]
    assert other != sources


@pytest.mark.parametrize("name", MIXES)
def test_each_source_of_a_mix_has_epochs_of_its_own(name: str) -> None:
    split = mix_of(MIXES[name])
    expected: dict[int, set[int]] = {}
    position = 0
    shards = iter(split.shards)
    for source, part in enumerate(split.mix):
        for shard in [next(shards) for _ in range(part.shards)]:
            starts = range(position, position + len(shard) - 8, 8)
            expected.setdefault(source, set()).update(starts)
            position += len(shard)
    seen: dict[int, list[int]] = {}
    for source, first in drawn(split, 6 * ORDER_BLOCK):
        seen.setdefault(source, []).append(first)
    for source, firsts in seen.items():
        windows = expected[source]
        counts = Counter(firsts)
        assert set(counts) <= windows
        # At the end of a block, the epochs before the last are complete, and the last has each window at most once.
        assert max(counts.values()) - min(counts[window] for window in windows) <= 1


def test_sources_of_the_same_size_have_orders_of_their_own() -> None:
    first: dict[int, list[int]] = {0: [], 1: []}
    for source, token in drawn(mix_of({"a": (1, [801]), "b": (1, [801])}), ORDER_BLOCK):
        first[source].append(token - 801 * source)
    # 2048 windows of each are 20 epochs of 100 and a part of another, whose windows are used once more.
    assert sum((Counter(first[0]) & Counter(first[1])).values()) < 2048


def test_a_batch_of_a_mix_depends_on_seed_and_step_alone() -> None:
    split = mix_of(MIXES["two"])
    loader, other = Loader(split, 8, 6, seed=1), Loader(split, 8, 6, seed=1)
    steps = [*range(30), *range(680, 690), 5000]  # step 682 spans two blocks
    forward = [rows(loader, step) for step in steps]
    assert [rows(other, step) for step in reversed(steps)] == forward[::-1]
    half = Loader(split, 8, 3, seed=1)
    assert [rows(half, 2 * step) + rows(half, 2 * step + 1) for step in steps] == forward
    shares = [Loader(split, 8, 6, 1, share) for share in (slice(0, 2), slice(2, 6))]
    assert [rows(shares[0], step) + rows(shares[1], step) for step in steps] == forward
    assert rows(Loader(split, 8, 6, seed=2), 0) != forward[0]


def test_a_window_of_a_mix_lies_within_one_source() -> None:
    split = mix_of({"a": (1, [21, 30]), "b": (1, [19])})
    ends = [21, 51, 70]
    for row in Loader(split, 8, 500, seed=4).batch(0).inputs.tolist():
        assert np.searchsorted(ends, row[0], side="right") == np.searchsorted(ends, row[-1] + 1, side="right")


def test_a_source_of_a_mix_that_is_too_short_is_named() -> None:
    split = mix_of({"long": (1, [500]), "short": (1, [8, 7])})
    refused(lambda: Loader(split, 8, 1, 0), "short of data.mix", "15 training tokens", "9")


def test_an_epoch_of_a_mix_is_that_of_its_most_repeated_source() -> None:
    split = mix_of({"web": (0.9, [9000]), "code": (0.1, [500])})
    assert split.epoch_tokens == pytest.approx(5000)
    assert split.most_repeated is not None
    assert split.most_repeated.name == "code"
    assert split_of_sizes([30, 40]).epoch_tokens == 70


def test_a_corpus_shorter_than_a_block_is_refused() -> None:
    refused(lambda: Loader(split_of_sizes([8, 8]), 8, 1, 0), "8 tokens", "9", "model.block_size")
    refused(lambda: Loader(split_of_sizes([]), 8, 1, 0), "0 tokens")


@pytest.mark.parametrize("sizes", [[5], [8], [30], [8, 8], [3, 1, 20, 7]])
@pytest.mark.parametrize("limit", [None, 1, 7, 8, 9, 10_000])
def test_evaluation_predicts_each_token_once_in_order(sizes: list[int], limit: int | None) -> None:
    split = split_of_sizes(sizes)
    evaluation = EvalRange(split, 8, limit)
    n = min(limit or 10_000, sum(sizes))
    assert (evaluation.n_tokens, evaluation.n_windows) == (n, -(-n // 8))
    x, y, sources = evaluation.windows(0, evaluation.n_windows)
    assert x.shape == y.shape == sources.shape == (evaluation.n_windows, 8)
    stream = np.concatenate(split.shards).astype(int)
    assert y.ravel()[:n].tolist() == stream[:n].tolist()
    assert x.ravel()[:n].tolist() == [int(split.shards[0][-1]), *stream[: n - 1].tolist()]
    assert (y.ravel()[n:] == -1).all()
    assert (sources.ravel()[n:] == -1).all()
    owner = np.repeat(np.arange(len(sizes)) % 2, sizes)
    assert sources.ravel()[:n].tolist() == owner[:n].tolist()
    one_by_one = [
        np.concatenate(each)
        for each in zip(*(evaluation.windows(i, i + 1) for i in range(evaluation.n_windows)), strict=True)
    ]
    for single, together in zip(one_by_one, (x, y, sources), strict=True):
        assert (single == together).all()


def predicted(evaluation: EvalRange) -> list[int]:
    """The targets of a range; in `split_of_sizes` a token is its own position."""
    targets = evaluation.windows(0, evaluation.n_windows)[1]
    return targets[targets != -1].tolist()


@pytest.mark.parametrize("limit", [1, CHUNK_TOKENS, 1000, 16_384, 50_000, 100_001])
def test_a_limited_evaluation_is_spread_evenly_over_the_split(limit: int) -> None:
    split = split_of_sizes([30_000, 1, 30_000, 40_000])
    places = predicted(EvalRange(split, 64, limit))
    assert len(set(places)) == len(places) == limit
    assert places == sorted(places)
    taken = -(-limit // CHUNK_TOKENS)
    gaps = np.diff([*places, split.n_tokens])
    assert max(places[0], *gaps) <= 4 * split.n_tokens / taken + CHUNK_TOKENS


def test_a_larger_evaluation_contains_every_smaller_one() -> None:
    split = split_of_sizes([30_000, 1, 30_000, 40_000])
    smaller: set[int] = set()
    for limit in (1, 100, 5 * CHUNK_TOKENS, 5 * CHUNK_TOKENS + 100, 16_384, 16_385, 77_777, 100_000, 100_001):
        larger = set(predicted(EvalRange(split, 64, limit)))
        assert smaller < larger
        smaller = larger


@pytest.mark.parametrize("block", [48, 256, 1000, 5000])
def test_models_of_different_block_sizes_are_scored_on_the_same_tokens(block: int) -> None:
    split = split_of_sizes([30_000, 1, 30_000, 40_000])  # sources a, b, a, b
    evaluation, usual = EvalRange(split, block, 5 * CHUNK_TOKENS + 100), EvalRange(split, 64, 5 * CHUNK_TOKENS + 100)
    assert predicted(evaluation) == predicted(usual)
    assert evaluation.fingerprint == usual.fingerprint
    x, y, sources = evaluation.windows(0, evaluation.n_windows)
    assert (y != -1).any(axis=1).all(), "no window is scored for nothing"
    for inputs, targets, labels in zip(x, y, sources, strict=True):
        last = max(targets)
        start = last // block * block  # the same context as in an evaluation of the whole split
        assert inputs[max(0, 1 - start) : last - start + 1].tolist() == list(range(max(0, start - 1), last))
        assert [label for label in labels if label != -1] == [
            int(t == 30_000 or t >= 60_001) for t in targets if t != -1
        ]


def test_the_evaluation_fingerprint_depends_on_tokens_alone() -> None:
    tokens = np.arange(100)
    first = EvalRange.from_tokens(tokens, np.zeros(100, int), ["a"], 8)
    narrow = EvalRange.from_tokens(tokens.astype(np.uint16), np.zeros(100, int), ["a"], 16)
    assert first.fingerprint == narrow.fingerprint == EvalRange(split_of_sizes([50, 50]), 8).fingerprint
    tokens[99] = 5
    assert EvalRange.from_tokens(tokens, np.zeros(100, int), ["a"], 8).fingerprint != first.fingerprint
    assert EvalRange(split_of_sizes([50, 50]), 8, 99).fingerprint != first.fingerprint


def test_from_tokens_keeps_the_source_of_every_token() -> None:
    ids = np.array([1, 1, 1, 0, 0, 2, 2, 2, 2, 1])
    evaluation = EvalRange.from_tokens(np.arange(10), ids, ["a", "b", "c"], 4)
    assert evaluation.windows(0, 1)[0][0].tolist() == [9, 0, 1, 2]
    assert EvalRange.from_tokens(np.arange(10), ids, ["a"], 4, eot=7).windows(0, 1)[0][0].tolist() == [7, 0, 1, 2]
    assert evaluation.windows(0, 3)[2].ravel()[:10].tolist() == ids.tolist()
    refused(lambda: EvalRange.from_tokens(np.zeros(0, int), np.zeros(0, int), [], 4), "no tokens")


def test_on_a_prepared_corpus_sources_are_those_of_the_documents(tmp_path: Path) -> None:
    records = [{"text": t, "meta": {"redpajama_set_name": f"s{i % 3}"}} for i, t in enumerate(texts(300))]
    corpus = open_corpus(make(tmp_path, write_jsonl(tmp_path / "a.jsonl", records)).folder)
    evaluation = EvalRange(corpus.val, 64)
    _, y, sources = evaluation.windows(0, evaluation.n_windows)
    documents: dict[str, str] = {row["text"]: row["meta"]["redpajama_set_name"] for row in reversed(records)}
    ids, labels = y.ravel()[: evaluation.n_tokens], sources.ravel()[: evaluation.n_tokens]
    ends = np.flatnonzero(ids == corpus.tokenizer.eot)
    assert len(ends) > 10
    start = 0
    for end in ends:
        label = documents[corpus.tokenizer.decode(ids[start:end])]
        assert {corpus.sources[i] for i in labels[start : end + 1]} == {label}
        start = end + 1
    assert start == evaluation.n_tokens


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_slices_of_all_processes_are_the_batch(world_size: int) -> None:
    split = split_of_sizes([3000, 2000, 700])
    whole = Loader(split, 8, 10, seed=1)
    ranks = [Loader(split, 8, 10, seed=1, share=World(rank, world_size).share(10)) for rank in range(world_size)]
    for step in (0, 7, 500):
        batch, parts = whole.batch(step), [loader.batch(step) for loader in ranks]
        assert np.array_equal(np.concatenate([part.inputs for part in parts]), batch.inputs)
        assert np.array_equal(np.concatenate([part.targets for part in parts]), batch.targets)
        assert max(len(part.inputs) for part in parts) - min(len(part.inputs) for part in parts) <= 1


@pytest.mark.parametrize("block_size", [64, 256, 512, 1024])
@pytest.mark.parametrize("limit", [16_384, 131_072])
def test_a_sample_has_tokens_from_every_place_of_a_window(block_size: int, limit: int) -> None:
    """Otherwise the loss would be that of short contexts, and a model with a longer context could not show it."""
    sample = EvalRange(split_of_sizes([1_000_000, 700_001]), block_size, limit)
    _, targets, _ = sample.windows(0, sample.n_windows)
    places = np.nonzero(targets != -1)[1]
    assert places.mean() == pytest.approx((block_size - 1) / 2, rel=0.15)
    quarters = np.bincount(4 * places // block_size, minlength=4) / len(places)
    assert quarters == pytest.approx(np.full(4, 0.25), abs=0.1)
