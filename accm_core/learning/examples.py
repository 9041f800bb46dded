"""Snippets of which it is known who fired: labelled units put into the recording's own traces."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import resample

from accm_core.learning.labelled import LabelledUnits, Stretches
from accm_core.params import HeadsParams, to_samples

STEPS_PER_SAMPLE = 4
"""Fineness of a unit's shift between samples."""
NEAR_MS, FAR_MS = 0.4, 1.5
"""Half of the colliding spikes fall within the first, the others within the second (ms), early or late."""
SILENT_SHARE = 0.15
"""Of the examples, in which no unit fires at the centre."""
PEAK_SHARE = 0.1
"""Of the examples in which the unit is where detection would have put its peak; else, where its label is."""
EVEN_SHARE = 0.3
"""Of the units drawn without regard to how often they fire, so that rare ones are learned."""
FLOOR = 0.15
"""White noise added (noise units): above the band, where the recording has none, templates are not exact."""
VISIBLE = 1.0
"""Noise levels that a unit must reach on the channels of a place to be put there."""


@dataclass(frozen=True)
class Examples:
    """Some snippets and who fired at their centre.

    Attributes
    ----------
    waveforms : Tensor of shape (n, n_slots, n_samples)
        Noise units.
    fired : Tensor of shape (n, n_units), float32
        1 where the unit fired at the centre.
    counts : Tensor of shape (n, n_units), float32
        1 where the unit's head is to answer: on its own channels, and not half a sample from yes.
    """

    waveforms: torch.Tensor
    fired: torch.Tensor
    counts: torch.Tensor


class ExampleMaker:
    """Draws examples without end: background, a unit at the centre, another one that collides.

    The background is any place of the recording, so that its noise, its small spikes and what else
    happens there are as they are.

    Parameters
    ----------
    units : LabelledUnits
        Of one shank.
    num_labels : ndarray of shape (n_units,)
        How often each unit fires, relative to the others.
    stretches : Stretches
    slots : ndarray of shape (n_units, n_slots), int64
        Channels of a snippet around each unit's main channel, -1 where there is none. These, and how long
        after its labelled time its peak is, are the unit's place: there its head is asked.
    num_before, num_samples : int
        Of a snippet.
    sampling_frequency : float
        Hz.
    params : HeadsParams
    generator : torch.Generator
        On ``device``.
    device : torch.device
    """

    def __init__(
        self,
        units: LabelledUnits,
        num_labels: np.ndarray,
        stretches: Stretches,
        slots: np.ndarray,
        *,
        num_before: int,
        num_samples: int,
        sampling_frequency: float,
        params: HeadsParams,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.generator, self.device, self.params = generator, device, params
        self.num_before, self.num_samples = num_before, num_samples
        keys, place_of = np.unique(np.column_stack([slots, units.peak_offset]), axis=0, return_inverse=True)
        places = keys[:, :-1]
        self.places, self.place_offset = torch.from_numpy(places).to(device), torch.from_numpy(keys[:, -1])
        self.place_offset = self.place_offset.to(device)
        self.peak_offset = torch.from_numpy(units.peak_offset).to(device)
        self.is_at_home = torch.from_numpy(place_of.ravel() == np.arange(len(places))[:, None]).to(device)
        # one channel of zeros at the end, for slots without a channel (-1)
        self.traces = torch.from_numpy(np.pad(stretches.traces, ((0, 0), (0, 1)))).to(device)
        self.centers = torch.from_numpy(stretches.centers).to(device)
        self.template_before = units.num_before
        self.templates = torch.from_numpy(_upsample(units.templates)).to(device)
        self.scales = [torch.from_numpy(scale).to(device) for scale in units.scales]
        self.jitter = float(np.sqrt(3.0) * units.jitter)
        self.near, self.far = to_samples(NEAR_MS, sampling_frequency), to_samples(FAR_MS, sampling_frequency)
        height = np.abs(np.pad(units.templates, ((0, 0), (0, 0), (0, 1)))).max(axis=1)[:, places].max(axis=2)
        share = num_labels / num_labels.sum()
        self.natural = torch.from_numpy(share * (height.T >= VISIBLE)).float().to(device)
        even = (1 - EVEN_SHARE) * share + EVEN_SHARE / len(share)
        self.weights = torch.from_numpy(even * (height.T >= VISIBLE)).float().to(device)
        self.place_weights = torch.from_numpy((self.is_at_home.cpu().numpy() * share).sum(axis=1)).to(device)

    def draw(self, num_examples: int, *, as_recorded: bool = False) -> Examples:
        """Draw examples: hard ones to learn from, or ``as_recorded``, without more collisions."""
        place = torch.multinomial(
            self.place_weights, num_examples, replacement=True, generator=self.generator
        )
        waveforms = self._background(place)
        fired = torch.zeros(num_examples, len(self.scales), device=self.device)
        counts = self.is_at_home[place].float()

        rows = torch.arange(num_examples, device=self.device)
        present = self._uniform(num_examples) >= SILENT_SHARE
        weights = (self.natural if as_recorded else self.weights)[place]
        unit = self._draw_units(weights)
        peaked = self._uniform(num_examples) < PEAK_SHARE
        center = -torch.where(peaked, self.peak_offset[unit], self.place_offset[place])
        delay = center + self.jitter * self._symmetric(num_examples)
        waveforms[present] += self._place_units(unit, delay, place)[present]
        fired[rows[present], unit[present]] = 1.0
        if as_recorded:
            return Examples(self._add_floor(waveforms), fired, counts)

        rival = self._draw_units(weights)
        reach = torch.where(self._uniform(num_examples) < 0.5, self.near, self.far)
        late = reach * self._symmetric(num_examples)
        # no unit collides with itself
        hit = (self._uniform(num_examples) < self.params.collision_share) & ~((rival == unit) & present)
        waveforms[hit] += self._place_units(rival, late - self.place_offset[place], place)[hit]
        together, close = late.abs() <= 0.5 + self.jitter, late.abs() <= 1.5 + self.jitter
        fired[rows[hit & together], rival[hit & together]] = 1.0
        unclear = hit & close & ~together
        counts[rows[unclear], rival[unclear]] = 0.0
        return Examples(self._add_floor(waveforms), fired, counts)

    def _add_floor(self, waveforms: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(waveforms.shape, generator=self.generator, device=self.device)
        return waveforms + FLOOR * noise

    def _background(self, place: torch.Tensor) -> torch.Tensor:
        chosen = torch.randint(len(self.centers), (len(place),), generator=self.generator, device=self.device)
        time = torch.arange(-self.num_before, self.num_samples - self.num_before, device=self.device)
        sample = self.centers[chosen][:, None, None] + time
        return self.traces[sample, self.places[place][:, :, None]]

    def _draw_units(self, weights: torch.Tensor) -> torch.Tensor:
        return torch.multinomial(weights, 1, generator=self.generator)[:, 0]

    def _place_units(self, unit: torch.Tensor, delay: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Each unit as it looks ``delay`` samples after the centre, on the channels of the place."""
        time = torch.arange(-self.num_before, self.num_samples - self.num_before, device=self.device)
        step = torch.round((time + self.template_before - delay[:, None]) * STEPS_PER_SAMPLE).long()
        inside = (step >= 0) & (step < self.templates.shape[1])
        step = step.clamp(0, self.templates.shape[1] - 1)
        waveforms = self.templates[unit[:, None, None], step[:, None], self.places[place][:, :, None]]
        scale = torch.empty(len(unit), device=self.device)
        for k, scales in enumerate(self.scales):
            rows = unit == k
            chosen = torch.randint(
                len(scales), (int(rows.sum()),), generator=self.generator, device=self.device
            )
            scale[rows] = scales[chosen]
        return waveforms * (inside * scale[:, None])[:, None]

    def _uniform(self, size: int) -> torch.Tensor:
        return torch.rand(size, generator=self.generator, device=self.device)

    def _symmetric(self, size: int) -> torch.Tensor:
        """Uniform from -1 to 1."""
        return 2 * self._uniform(size) - 1


def _upsample(templates: np.ndarray) -> np.ndarray:
    """Templates at ``STEPS_PER_SAMPLE`` points a sample, with a channel of zeros at the end."""
    num_samples = templates.shape[1]
    # templates have faded out at their ends, so that the padding and the resampling join smoothly
    padded = np.pad(templates, ((0, 0), (num_samples // 2,) * 2, (0, 1)))
    fine = resample(padded, STEPS_PER_SAMPLE * padded.shape[1], axis=1)
    first = STEPS_PER_SAMPLE * (num_samples // 2)
    return np.ascontiguousarray(fine[:, first : first + STEPS_PER_SAMPLE * num_samples], dtype=np.float32)
