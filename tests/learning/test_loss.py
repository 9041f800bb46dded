"""NT-Xent against its definition, written out as two loops, and against its closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from accm_core.learning.loss import nt_xent

PAIRS = st.tuples(st.integers(1, 6), st.integers(1, 5)).flatmap(
    lambda shape: hnp.arrays(np.float64, (2, *shape), elements=st.floats(0.25, 4) | st.floats(-4, -0.25))
)
TEMPERATURES = st.floats(0.05, 5)


def nt_xent_slowly(first, second, temperature):
    """Mean over rows of -log(e^(own pair) / sum of e^(all others))."""
    rows = [*first, *second]
    num_rows, total = len(rows), 0.0
    for i in range(num_rows):
        partner = (i + len(first)) % num_rows
        cosines = [
            float(rows[i] @ rows[k]) / np.linalg.norm(rows[i]) / np.linalg.norm(rows[k])
            for k in range(num_rows)
        ]
        denominator = sum(np.exp(cosines[k] / temperature) for k in range(num_rows) if k != i)
        total -= np.log(np.exp(cosines[partner] / temperature) / denominator)
    return total / num_rows


def loss(pair, temperature):
    return float(nt_xent(torch.from_numpy(pair[0]), torch.from_numpy(pair[1]), temperature))


@given(pair=PAIRS, temperature=TEMPERATURES)
def test_equals_the_definition(pair, temperature):
    assert loss(pair, temperature) == pytest.approx(nt_xent_slowly(*pair, temperature), abs=1e-9)


@pytest.mark.parametrize("num_spikes", [1, 2, 7, 256])
def test_all_alike_give_log_of_the_number_of_others(num_spikes):
    same = torch.ones(num_spikes, 3, dtype=torch.float64)
    assert float(nt_xent(same, 2 * same, 0.2)) == pytest.approx(np.log(2 * num_spikes - 1), abs=1e-12)


def test_perfect_pairs_of_orthogonal_spikes():
    """Cosine 1 to the partner, 0 to the 2n - 2 others."""
    views = torch.eye(5, dtype=torch.float64)
    expected = np.log(1 + 8 * np.exp(-1 / 0.2))
    assert float(nt_xent(views, views, 0.2)) == pytest.approx(expected, abs=1e-12)


@given(pair=PAIRS, temperature=TEMPERATURES)
def test_the_views_may_be_swapped(pair, temperature):
    assert loss(pair[::-1], temperature) == pytest.approx(loss(pair, temperature), abs=1e-9)


@given(pair=PAIRS, temperature=TEMPERATURES, seed=st.integers(0, 99))
def test_order_of_the_spikes_and_length_do_not_matter(pair, temperature, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(pair.shape[1])
    lengths = rng.uniform(0.1, 10, (2, pair.shape[1], 1))
    changed = np.ascontiguousarray((pair * lengths)[:, order])
    assert loss(changed, temperature) == pytest.approx(loss(pair, temperature), abs=1e-9)


def test_wrong_partners_cost_more():
    views = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert nt_xent(views, views, 0.2) < nt_xent(views, views.roll(1, 0), 0.2) - 1


def test_gradient():
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 0.5), (first, second))


def test_in_single_precision_small_temperatures_stay_finite():
    first, second = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    first.requires_grad_()
    value = nt_xent(first, second, 0.01)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(first.grad).all()
