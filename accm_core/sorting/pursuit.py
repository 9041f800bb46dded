"""Fits of templates to spikes: take out what explains most, again and again, and revise what overlaps.

What is taken out first may be wrong: a large template can explain two spikes at once better than either of
their own does. So each spike, and each two that are close, are held against all other two there.
"""

from typing import NamedTuple

import numba
import numpy as np

from accm_core.signal.snippets import LANCZOS_TAPS, lanczos_kernel

MAX_REVISIONS, MAX_MOVE = 3, 0.1
"""Times that overlapping spikes are taken back and explained anew; samples that a spike may still move by."""
NUM_FIRST, NUM_STEPS = 3, 2
"""Units that fit best, for each of which the best second one is looked for; and steps to either side of where
it fits best at which it is: of two close spikes, each fits best between them."""
MAY_FIRE = np.float32(0.5)
"""Share of the least scale that a unit must fit with, for it to be the second one: the first one's spike may
have made it look smaller."""
MIN_GAINED = np.float32(10.0)
"""Twice the log-likelihood by which two spikes must be more likely than two others, to take their place."""
LEAST_OF_TWO = np.float32(1.5)
"""Sum of the scales of two spikes, at least, to take another's place: two templates that one neuron left are
not to explain its spikes by halves."""
BARRED = np.float32(-np.inf)
"""Stands for the fit of a unit that must not fire."""
MAX_SCALE = 10.0
"""Times its template that is taken out at most: what is larger is no spike of the unit, and where taking out
leaves more than there was, it does not grow without bound."""
MIN_EDGE = 4
"""Samples around a spike at which fits are looked up, for its time between samples and its rivals."""


class Model(NamedTuple):
    """What matching knows of the units, in the form that numba takes; see `describe_units`.

    ``cost`` is what a spike's gain is diminished by, whatever its size.
    """

    energy: np.ndarray
    prior: np.ndarray
    cost: np.ndarray
    pair_row: np.ndarray
    correlations: np.ndarray
    threshold: np.float32
    min_scale: np.float32
    reach: int
    refractory: int
    edge: int


@numba.njit(cache=True, nogil=True)
def pursue(fits, blocked, model, until):  # type: ignore[no-untyped-def]
    """Take out all spikes, then revise them until none moves.

    ``fits`` and ``blocked`` (how many spikes of the unit itself forbid one here) are changed in place. Spikes
    from ``until`` on serve to explain what comes before; when there are no others, none is revised.
    Returns what `Matches` holds, in order of time, then unit.
    """
    num_samples = fits.shape[1]
    best_gain = np.zeros(num_samples, dtype=np.float32)
    best_unit = np.zeros(num_samples, dtype=np.int32)
    _refresh(fits, blocked, model, 0, num_samples, best_gain, best_unit)
    samples = [np.int64(0) for _ in range(0)]
    units = [np.int64(0) for _ in range(0)]
    values = [(np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)) for _ in range(0)]
    for revision in range(MAX_REVISIONS + 1):
        _take_all(fits, blocked, model, best_gain, best_unit, samples, units, values)
        if revision == MAX_REVISIONS or len(samples) == 0 or min(samples) >= until:
            break
        if not _revise(fits, blocked, model, best_gain, best_unit, samples, units, values, until, revision):
            break
    return in_order(samples, units, values, len(model.energy))


@numba.njit(cache=True, nogil=True)
def take_known(fits, blocked, model, samples, units, offsets, scales):  # type: ignore[no-untyped-def]
    """Take spikes out of the fits, and let their units rest around them; samples may be negative."""
    for k in range(len(samples)):
        t, unit = samples[k], units[k]
        _subtract(fits, model, unit, t, offsets[k], scales[k])
        last = t + model.refractory + 1
        if last > 0:
            blocked[unit, max(t - model.refractory, 0) : last] += np.uint8(1)


@numba.njit(cache=True, nogil=True)
def in_order(samples, units, values, num_units):  # type: ignore[no-untyped-def]
    """The spikes that are left, as `pursue` returns them."""
    kept = np.array([k for k in range(len(samples)) if samples[k] >= 0], dtype=np.int64)
    place = np.array([samples[k] * num_units + units[k] for k in kept], dtype=np.int64)
    kept = kept[np.argsort(place)]
    kept_samples, kept_units = np.zeros(len(kept), dtype=np.int64), np.zeros(len(kept), dtype=np.int64)
    table = np.zeros((4, len(kept)), dtype=np.float32)
    for row in range(len(kept)):
        k = kept[row]
        kept_samples[row], kept_units[row] = samples[k], units[k]
        table[0, row], table[1, row], table[2, row], table[3, row] = values[k]
    return kept_samples, table[0], kept_units, table[1], table[2], table[3]


@numba.njit(cache=True, nogil=True)
def _gain(model, unit, fit):  # type: ignore[no-untyped-def]
    """Gain of a spike of ``unit``, as `match_templates` has it; 0 if it would be too small."""
    energy, prior = model.energy[unit], model.prior[unit]
    if fit < model.min_scale * energy:
        return np.float32(0.0)
    return (fit + prior) * (fit + prior) / (energy + prior) - model.cost[unit]


@numba.njit(cache=True, nogil=True)
def _refresh(fits, blocked, model, first, last, best_gain, best_unit):  # type: ignore[no-untyped-def]
    """Best unit at each sample from ``first`` to ``last``, except at the edges."""
    first, last = max(first, model.edge), min(last, fits.shape[1] - model.edge)
    if first >= last:
        return
    gains, units = best_gain[first:last], best_unit[first:last]
    gains[:] = 0.0
    for unit in range(len(model.energy)):
        p, cost = model.prior[unit], model.cost[unit]
        scale = np.float32(1.0) / (model.energy[unit] + p)
        least = model.min_scale * model.energy[unit]
        left, barred = fits[unit, first:last], blocked[unit, first:last]
        for t in range(len(gains)):
            # without a branch: the compiler makes vectors of it
            gain = (left[t] + p) * (left[t] + p) * scale - cost
            is_better = (left[t] >= least) & (barred[t] == 0) & (gain > gains[t])
            gains[t] = gain if is_better else gains[t]
            units[t] = unit if is_better else units[t]


@numba.njit(cache=True, nogil=True)
def _take_all(fits, blocked, model, best_gain, best_unit, samples, units, values):  # type: ignore[no-untyped-def]
    """Take out the best match again and again until none exceeds the threshold; appends to the lists."""
    found = True
    while found:
        found = False
        for t in range(model.edge, fits.shape[1] - model.edge):
            if best_gain[t] <= model.threshold or not _is_largest(best_gain, t, model.reach):
                continue
            found = True
            unit = best_unit[t]
            values.append(_take_out(fits, blocked, model, unit, t))
            samples.append(np.int64(t))
            units.append(unit)
            _refresh(fits, blocked, model, t - model.reach, t + model.reach + 1, best_gain, best_unit)


@numba.njit(cache=True, nogil=True)
def _revise(  # type: ignore[no-untyped-def]
    fits, blocked, model, best_gain, best_unit, samples, units, values, until, revision
):
    """Explain spikes anew, by two others or by one, if it overlaps another; whether any has changed.

    A sample of -1 means that nothing is left of a spike.
    """
    changed = False
    order = np.argsort(np.array(samples, dtype=np.int64), kind="mergesort")
    for rank in range(len(order)):
        k = order[rank]
        if samples[k] < 0:
            continue
        rival = _find_rival(samples, units, order, rank, model)
        # without a rival it is still as it was the first time
        if samples[k] < until and (rival >= 0 or revision == 0):
            is_close = rival >= 0 and abs(samples[rival] - samples[k]) <= _pair_reach(model)
            j = rival if is_close else -1
            if _explain_by_two(fits, blocked, model, best_gain, best_unit, samples, units, values, k, j):
                changed = True
                continue
        if rival < 0:
            continue
        t, unit, old_offset = samples[k], units[k], values[k][0]
        _put_back(fits, blocked, model, unit, t, values[k])
        new_unit, new_t, gain = _find_best(fits, blocked, model, unit, t)
        if gain <= model.threshold:
            changed = True
            samples[k] = np.int64(-1)
        else:
            values[k] = _take_out(fits, blocked, model, new_unit, new_t)
            moved = abs(new_t + values[k][0] - t - old_offset)
            changed = changed or new_unit != unit or moved > MAX_MOVE
            samples[k], units[k] = np.int64(new_t), np.int64(new_unit)
        first, last = min(t, new_t) - model.reach, max(t, new_t) + model.reach + 1
        _refresh(fits, blocked, model, first, last, best_gain, best_unit)
    return changed


@numba.njit(cache=True, nogil=True)
def _explain_by_two(  # type: ignore[no-untyped-def]
    fits, blocked, model, best_gain, best_unit, samples, units, values, k, j
):
    """Put two other spikes in place of ``k``, and of ``j`` if that is one, where they explain more.

    Looked for with the units' fits at whole samples; then both are taken out, each at its own time and scale.
    """
    t, unit = samples[k], units[k]
    first = max(t - _pair_reach(model), model.edge)
    last = min(t + _pair_reach(model) + 1, fits.shape[1] - model.edge)
    near = np.flatnonzero(model.pair_row[unit] >= 0)
    before = _fits_without(fits, blocked, model, near, first, last, samples, units, values, k, j)
    here, there = np.searchsorted(near, unit), -1
    if j < 0:
        least = model.threshold
        now = _gain(model, unit, before[here, t - first])
    else:
        least = MIN_GAINED
        there = np.searchsorted(near, units[j])
        gains = np.zeros(last - first, dtype=np.float32)
        _gain_of_two(before, model, near, here, t - first, there, gains)
        now = gains[samples[j] - first]
    one, s, two, e, gain = _find_two(before, model, near)
    if gain <= now + least or (one == here and two == there) or (one == there and two == here):
        return False

    _put_back(fits, blocked, model, unit, t, values[k])
    now = _explained(fits, model, unit, t, values[k])
    if j >= 0:
        _put_back(fits, blocked, model, units[j], samples[j], values[j])
        now += _explained(fits, model, units[j], samples[j], values[j])
    c, d, s, e = near[one], near[two], s + first, e + first
    value_c = _take_out(fits, blocked, model, c, s)
    value_d = _take_out(fits, blocked, model, d, e)
    # each once more, with the other taken out
    _put_back(fits, blocked, model, c, s, value_c)
    value_c = _take_out(fits, blocked, model, c, s)
    _put_back(fits, blocked, model, d, e, value_d)
    value_d = _take_out(fits, blocked, model, d, e)
    _put_back(fits, blocked, model, c, s, value_c)
    gain = _explained(fits, model, c, s, value_c)
    _put_back(fits, blocked, model, d, e, value_d)
    gain += _explained(fits, model, d, e, value_d)
    is_better = gain > now + least and min(value_c[2], value_d[2]) > model.threshold
    if not is_better or value_c[1] + value_d[1] < LEAST_OF_TWO:
        _take(fits, blocked, model, unit, t, values[k][0], values[k][1])
        if j >= 0:
            _take(fits, blocked, model, units[j], samples[j], values[j][0], values[j][1])
        return False

    _take(fits, blocked, model, c, s, value_c[0], value_c[1])
    _take(fits, blocked, model, d, e, value_d[0], value_d[1])
    first, last = min(t, s, e), max(t, s, e)
    samples[k], units[k], values[k] = np.int64(s), np.int64(c), value_c
    if j >= 0:
        first, last = min(first, samples[j]), max(last, samples[j])
        samples[j], units[j], values[j] = np.int64(e), np.int64(d), value_d
    else:
        samples.append(np.int64(e))
        units.append(np.int64(d))
        values.append(value_d)
    _refresh(fits, blocked, model, first - model.reach, last + model.reach + 1, best_gain, best_unit)
    return True


@numba.njit(cache=True, nogil=True)
def _pair_reach(model):  # type: ignore[no-untyped-def]
    """Samples around a spike in which two are looked for; their correlations are known as far apart."""
    return min(model.refractory, model.reach - 1) // 2


@numba.njit(cache=True, nogil=True)
def _fits_without(  # type: ignore[no-untyped-def]
    fits, blocked, model, near, first, last, samples, units, values, k, j
):
    """Fits of the units ``near``, from ``first`` to ``last``, as they would be without spikes k and j."""
    before = np.zeros((len(near), last - first), dtype=np.float32)
    barred = np.zeros(before.shape, dtype=np.uint8)
    for row in range(len(near)):
        before[row], barred[row] = fits[near[row], first:last], blocked[near[row], first:last]
    for spike in (k, j):
        if spike < 0:
            continue
        t, unit, scale = samples[spike], units[spike], values[spike][1]
        # as in _subtract, but all units in one row: the window is too short for vectors
        lags = np.zeros((len(near), last - first + 2 * LANCZOS_TAPS - 1), dtype=np.float32)
        kernel, start, low, high = _place_lags(model, first, lags.shape[1], t, values[spike][0])
        for row in range(len(near)):
            pair = model.pair_row[unit, near[row]]
            if pair >= 0:
                lags[row, low:high] = model.correlations[pair, start + low : start + high]
        flat = lags.ravel()
        added = np.zeros(len(flat), dtype=np.float32)
        for n in range(len(flat) - 2 * LANCZOS_TAPS + 1):
            value = np.float32(0.0)
            for tap in range(2 * LANCZOS_TAPS):
                value += kernel[tap] * flat[n + tap]
            added[n] = scale * value
        before += added.reshape(lags.shape)[:, : last - first]
        rest, end = max(t - model.refractory, first), min(t + model.refractory + 1, last)
        barred[np.searchsorted(near, unit), rest - first : end - first] -= np.uint8(1)
    return np.where(barred > 0, BARRED, before)


@numba.njit(cache=True, nogil=True)
def _find_two(before, model, near):  # type: ignore[no-untyped-def]
    """The two of the units ``near`` that explain most together, each with its sample; and how much."""
    alone, times = np.zeros(len(near), dtype=np.float32), np.zeros(len(near), dtype=np.int64)
    may_fire = np.zeros(len(near), dtype=np.bool_)
    for row in range(len(near)):
        times[row] = np.argmax(before[row])
        fit, energy = before[row, times[row]], model.energy[near[row]]
        alone[row] = _gain(model, near[row], fit)
        may_fire[row] = fit >= MAY_FIRE * model.min_scale * energy
    seconds = np.flatnonzero(may_fire)
    best_one, best_two, best_s, best_e, best = 0, 0, 0, 0, np.float32(0.0)
    gains = np.zeros(before.shape[1], dtype=np.float32)
    step = max(_pair_reach(model) // 6, 1)
    for one in np.argsort(-alone)[:NUM_FIRST]:
        if alone[one] == 0.0:
            break
        for s in range(times[one] - NUM_STEPS * step, times[one] + NUM_STEPS * step + 1, step):
            if s < 0 or s >= before.shape[1] or before[one, s] == BARRED:
                continue
            for two in seconds:
                if two != one:
                    _gain_of_two(before, model, near, one, s, two, gains)
                    e = int(np.argmax(gains))
                    if gains[e] > best:
                        best_one, best_two, best_s, best_e, best = int(one), int(two), s, e, gains[e]
    return best_one, best_s, best_two, best_e, best


@numba.njit(cache=True, nogil=True)
def _gain_of_two(before, model, near, one, s, two, gains):  # type: ignore[no-untyped-def]
    """What unit ``one`` at s and unit ``two`` at each sample explain together, into ``gains``.

    With the scales that are best for both; 0 where one of them would be too small.
    """
    c, d = near[one], near[two]
    pair, first, least = model.pair_row[c, d], model.correlations.shape[1] // 2 - s, model.min_scale
    touches = np.float32(pair >= 0)
    shared, left = model.correlations[max(pair, 0), first : first + before.shape[1]], before[two]
    prior_c, prior_d = model.prior[c], model.prior[d]
    cost = model.cost[c] + model.cost[d]
    own_c, own_d, fit_c = model.energy[c] + prior_c, model.energy[d] + prior_d, before[one, s] + prior_c
    for e in range(len(gains)):
        # without a branch: the compiler makes vectors of it
        fit_d, x = left[e] + prior_d, touches * shared[e]
        det = own_c * own_d - x * x
        scale_c, scale_d = own_d * fit_c - x * fit_d, own_c * fit_d - x * fit_c
        is_large = (det > 0) & (scale_c >= least * det) & (scale_d >= least * det)
        gain = (scale_c * fit_c + scale_d * fit_d) / (det if is_large else np.float32(1.0))
        gains[e] = gain - cost if is_large else np.float32(0.0)


@numba.njit(cache=True, nogil=True)
def _explained(fits, model, unit, t, value):  # type: ignore[no-untyped-def]
    """Gain of a spike at its own offset and scale, before it is taken out."""
    before, middle, after = fits[unit, t - 1], fits[unit, t], fits[unit, t + 1]
    offset, scale, prior = value[0], value[1], model.prior[unit]
    fit = middle + 0.5 * offset * (after - before + offset * (before - 2.0 * middle + after))
    return scale * (2.0 * (fit + prior) - scale * (model.energy[unit] + prior)) - model.cost[unit]


@numba.njit(cache=True, nogil=True)
def _take_out(fits, blocked, model, unit, t):  # type: ignore[no-untyped-def]
    """Explain a spike of ``unit`` at ``t``: its offset, scale, gain and probability."""
    energy, prior = model.energy[unit], model.prior[unit]
    offset, fit = _between_samples(fits[unit], t)
    gain = _gain(model, unit, fits[unit, t])
    scale = min((fit + prior) / (energy + prior), MAX_SCALE)
    probability = _posterior(fits, blocked, model, unit, t, gain)
    _take(fits, blocked, model, unit, t, offset, scale)
    return np.float32(offset), np.float32(scale), np.float32(gain), np.float32(probability)


@numba.njit(cache=True, nogil=True)
def _take(fits, blocked, model, unit, t, offset, scale):  # type: ignore[no-untyped-def]
    """Take a spike out of the fits, and let its unit rest around it."""
    _subtract(fits, model, unit, t, offset, scale)
    blocked[unit, max(t - model.refractory, 0) : t + model.refractory + 1] += np.uint8(1)


@numba.njit(cache=True, nogil=True)
def _put_back(fits, blocked, model, unit, t, value):  # type: ignore[no-untyped-def]
    """Undo ``_take_out``."""
    _subtract(fits, model, unit, t, value[0], -value[1])
    blocked[unit, max(t - model.refractory, 0) : t + model.refractory + 1] -= np.uint8(1)


@numba.njit(cache=True, nogil=True)
def _find_best(fits, blocked, model, unit, t):  # type: ignore[no-untyped-def]
    """Best explanation, within the refractory time of ``t``, by a unit that touches ``unit``."""
    first = max(t - model.refractory, model.edge)
    last = min(t + model.refractory + 1, fits.shape[1] - model.edge)
    best_unit, best_t, best_gain = unit, first, np.float32(0.0)
    for other in range(len(model.energy)):
        if model.pair_row[unit, other] < 0:
            continue
        for s in range(first, last):
            if blocked[other, s] == 0:
                gain = _gain(model, other, fits[other, s])
                if gain > best_gain:
                    best_unit, best_t, best_gain = other, s, gain
    return best_unit, best_t, best_gain


@numba.njit(cache=True, nogil=True)
def _find_rival(samples, units, order, rank, model):  # type: ignore[no-untyped-def]
    """The nearest other spike within reach that touches this one's unit; -1 if there is none."""
    k, nearest, distance = order[rank], -1, model.reach + 1
    for step in (-1, 1):
        other = rank + step
        while 0 <= other < len(order):
            j = order[other]
            if samples[j] >= 0:
                apart = abs(samples[j] - samples[k])
                if apart > 2 * model.reach:
                    break
                if apart < distance and model.pair_row[units[k], units[j]] >= 0:
                    nearest, distance = j, apart
            other += step
    return nearest


@numba.njit(cache=True, nogil=True)
def _is_largest(best_gain, t, reach):  # type: ignore[no-untyped-def]
    """Whether nothing within reach is better; of equals, the earliest."""
    for s in range(max(t - reach, 0), t):
        if best_gain[s] >= best_gain[t]:
            return False
    for s in range(t + 1, min(t + reach + 1, len(best_gain))):  # noqa: SIM110  numba compiles no generator
        if best_gain[s] > best_gain[t]:
            return False
    return True


@numba.njit(cache=True, nogil=True)
def _between_samples(fit, t):  # type: ignore[no-untyped-def]
    """Vertex of the parabola through the fit at t - 1, t, t + 1: its offset and height."""
    before, middle, after = fit[t - 1], fit[t], fit[t + 1]
    curvature = before - 2.0 * middle + after
    if curvature >= 0.0:
        return 0.0, middle
    offset = min(0.5, max(-0.5, 0.5 * (before - after) / curvature))
    return offset, middle - 0.25 * (before - after) * offset


@numba.njit(cache=True, nogil=True)
def _posterior(fits, blocked, model, unit, t, gain):  # type: ignore[no-untyped-def]
    """Probability of the chosen unit against noise and against the units it could be taken for."""
    total = 1.0 + np.exp(-0.5 * gain)
    for other in range(len(model.energy)):
        if other == unit or model.pair_row[unit, other] < 0:
            continue
        rival = np.float32(0.0)
        for s in range(t - 3, t + 4):
            if blocked[other, s] == 0:
                gained = _gain(model, other, fits[other, s])
                rival = max(rival, gained)
        if rival > 0.0:
            total += np.exp(min(0.0, 0.5 * (rival - gain)))
    return 1.0 / total


@numba.njit(cache=True, nogil=True)
def _subtract(fits, model, unit, t, offset, scale):  # type: ignore[no-untyped-def]
    """Take a spike out of the fits of all units that it touches."""
    first, last = max(t - model.reach, 0), min(t + model.reach + 1, fits.shape[1])
    if first >= last:
        return
    # with zeros around what is known, every sample has all taps: the compiler makes vectors of it
    lags = np.zeros(last - first + 2 * LANCZOS_TAPS - 1, dtype=np.float32)
    kernel, start, low, high = _place_lags(model, first, len(lags), t, offset)
    for other in range(fits.shape[0]):
        row = model.pair_row[unit, other]
        if row < 0:
            continue
        lags[low:high] = model.correlations[row, start + low : start + high]
        left = fits[other, first:last]
        for s in range(len(left)):
            value = np.float32(0.0)
            for k in range(2 * LANCZOS_TAPS):
                value += kernel[k] * lags[s + k]
            left[s] -= scale * value


@numba.njit(cache=True, nogil=True)
def _place_lags(model, first, num_wanted, t, offset):  # type: ignore[no-untyped-def]
    """Weights of lags around a sample; where those wanted from sample ``first`` on start; which are known."""
    # lag of sample s is s - t - offset; row index of lag 0 is num_lags // 2
    base, num_lags = int(np.floor(-offset)), model.correlations.shape[1]
    start = first - t + base + num_lags // 2 - (LANCZOS_TAPS - 1)
    return lanczos_kernel(-offset - base), start, max(0, -start), min(num_wanted, num_lags - start)
