"""Heads on planted features: they learn, fire together, say shares, and can be added to."""

import numpy as np
import pytest
import torch

from accm_core.learning.encoder import EncoderConfig, SpikeEncoder, one_thread
from accm_core.learning.heads import Heads, HeadsConfig, classify_snippets

CPU = torch.device("cpu")
NAMES = ("a", "b", "c")


def make_features(num=4000, seed=0, spread=0.6):
    """Each unit lights its own three features; a fifth of the rows hold two units, a fifth none."""
    generator = torch.Generator().manual_seed(seed)
    fired = torch.zeros(num, 3)
    rows = torch.arange(num)
    first = torch.randint(3, (num,), generator=generator)
    kind = torch.rand(num, generator=generator)
    fired[rows[kind >= 0.2], first[kind >= 0.2]] = 1
    fired[rows[kind >= 0.8], ((first + 1) % 3)[kind >= 0.8]] = 1
    clean = torch.repeat_interleave(fired, 3, dim=1)
    return clean + spread * torch.randn(num, 9, generator=generator), fired


def make_heads(kind="binary", names=NAMES):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Heads(HeadsConfig(kind, 9, names))


def train(heads, features, fired, steps=150):
    optimizer = torch.optim.AdamW(heads.parameters(), lr=0.05)
    with one_thread():
        for _ in range(steps):
            loss = heads.loss(features, fired, torch.ones_like(fired))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return heads


def answers(heads, features):
    with torch.inference_mode():
        return heads.probability(features)


def test_binary_heads_fire_together_and_softmax_cannot():
    features, fired = make_features(spread=0.2)
    both = fired.sum(dim=1) == 2
    binary = answers(train(make_heads(), features, fired), features)
    assert ((binary > 0.5) == (fired > 0.5)).float().mean() > 0.99
    assert (binary[both] > 0.5).sum(dim=1).float().mean() > 1.95
    softmax = answers(train(make_heads("softmax"), features, fired), features)
    assert softmax.shape == (len(features), 3)
    assert (softmax.sum(dim=1) <= 1 + 1e-5).all()
    assert (softmax[fired.sum(dim=1) == 0].max(dim=1).values < 0.5).float().mean() > 0.95
    single = fired.sum(dim=1) == 1
    assert (softmax[single].argmax(dim=1) == fired[single].argmax(dim=1)).float().mean() > 0.99


def test_shuffled_labels_teach_nothing():
    features, fired = make_features(spread=0.2)
    order = torch.randperm(len(fired), generator=torch.Generator().manual_seed(0))
    found = answers(train(make_heads(), features, fired[order]), features)
    assert ((found > 0.5) == (fired > 0.5)).float().mean() < 0.8


@pytest.mark.parametrize("kind", ["binary", "softmax"])
def test_loss_is_the_slow_sum(kind):
    features, fired = make_features(40)
    counts = (torch.rand(fired.shape, generator=torch.Generator().manual_seed(1)) < 0.7).float()
    heads = make_heads(kind)
    with torch.inference_mode():
        logits, total = heads(features), 0.0
        for row in range(len(features)):
            asked = [u for u in range(3) if counts[row, u] and fired[row, u]]
            if kind == "binary":
                for unit in np.flatnonzero(counts[row].numpy()):
                    yes = 1 / (1 + np.exp(-float(logits[row, unit])))
                    total -= np.log(yes if fired[row, unit] else 1 - yes)
            else:
                shares = np.exp(logits[row].numpy()) / np.exp(logits[row].numpy()).sum()
                total -= np.mean([np.log(shares[u]) for u in (asked or [3])])
        assert float(heads.loss(features, fired, counts)) == pytest.approx(total / 40, rel=1e-4)


@pytest.mark.parametrize("kind", ["binary", "softmax"])
def test_calibrated_probabilities_are_shares(kind):
    features, fired = make_features(spread=1.0)
    if kind == "softmax":  # one choice has no right answer where two fired
        features, fired = features[fired.sum(dim=1) < 2], fired[fired.sum(dim=1) < 2]
    heads = train(make_heads(kind), features, fired)
    with torch.no_grad():
        heads.linear.weight.mul_(4.0)
        heads.linear.bias.mul_(4.0)  # far too sure of itself
    fresh, truth = make_features(20_000, seed=1, spread=1.0)
    if kind == "softmax":
        fresh, truth = fresh[truth.sum(dim=1) < 2], truth[truth.sum(dim=1) < 2]
    before = worst_gap(answers(heads, fresh), truth)
    heads.calibrate(features, fired, torch.ones_like(fired))
    after = worst_gap(answers(heads, fresh), truth)
    assert before > 0.15
    assert after < 0.05


def worst_gap(probability, truth):
    """Largest difference between probability and share in a decile of 500 answers or more."""
    decile = (10 * probability).long().clamp(max=9)
    gaps = [
        abs(float(probability[decile == k].mean() - truth[decile == k].mean()))
        for k in range(10)
        if (decile == k).sum() >= 500
    ]
    assert len(gaps) >= 2
    return max(gaps)


def test_a_head_that_is_never_wrong_stays_finite():
    features, fired = make_features(200, spread=0.0)
    heads = train(make_heads(), features, fired)
    heads.calibrate(features, fired, torch.ones_like(fired))
    found = answers(heads, features)
    assert torch.isfinite(heads.linear.weight).all()
    assert ((found > 0.5) == (fired > 0.5)).all()
    heads.calibrate(features, torch.zeros_like(fired), torch.ones_like(fired))
    assert torch.isfinite(heads.linear.weight).all()


def test_an_added_head_touches_no_other():
    features, fired = make_features()
    heads = train(make_heads(names=("a", "b")), features, fired[:, :2])
    more = heads.add("c", features, fired[:, 2], seed=0)
    assert more.config.unit_names == NAMES
    assert torch.equal(more.linear.weight[:2], heads.linear.weight)
    assert torch.equal(more.linear.bias[:2], heads.linear.bias)
    fresh, truth = make_features(seed=1)
    assert ((answers(more, fresh) > 0.5) == (truth > 0.5)).float().mean(dim=0).min() > 0.9
    again = heads.add("c", features, fired[:, 2], seed=0)
    assert torch.equal(again.linear.weight, more.linear.weight)


def test_what_cannot_be_added():
    features, fired = make_features(50)
    with pytest.raises(ValueError, match="trained anew"):
        make_heads("softmax").add("d", features, fired[:, 0], seed=0)
    with pytest.raises(ValueError, match="head 'b' already"):
        make_heads().add("b", features, fired[:, 0], seed=0)


def test_snippets_are_classified_row_for_row(monkeypatch):
    from accm_core.learning import heads as module

    snippets = np.random.default_rng(0).normal(size=(20, 60, 4)).astype(np.float32)
    encoder = SpikeEncoder(EncoderConfig(4, 60, 8, width=4), 1.0)
    heads = Heads(HeadsConfig("binary", 16, NAMES))
    whole = classify_snippets(encoder, heads, snippets, CPU)
    assert whole.shape == (20, 3)
    assert ((whole > 0) & (whole < 1)).all()
    monkeypatch.setattr(module, "EMBED_BATCH", 7)
    np.testing.assert_allclose(classify_snippets(encoder, heads, snippets, CPU), whole, atol=1e-6)
    assert classify_snippets(encoder, heads, snippets[:0], CPU).shape == (0, 3)
