"""How far behind the newest sample a spike is decided, and what that time is spent on."""

from dataclasses import dataclass

from accm_core.params import to_samples

STEP_MS = 1.0
"""Grid of the arithmetic: whatever comes in is worked on in steps of this length."""
FILTER_MS = 1.0
"""After a sample, which its band-passed value is computed from; see `design_filter`."""
HISTORY_MS = 10.0
"""Before a sample, which its band-passed value is computed from."""
AFTER_MS = 1.5
"""After the peak, on which templates are compared with the traces."""
DECIDE_MS = 1.5
"""After a spike, within which larger spikes are explained first."""


@dataclass(frozen=True)
class LookAhead:
    """Sample counts of the times above; ``after`` is at most what the templates have.

    Attributes
    ----------
    step, filter, history, after, decide : int
    """

    step: int
    filter: int
    history: int
    after: int
    decide: int

    @property
    def decided(self) -> int:
        """Samples from the last one for which spikes are decided to the newest that is worked on."""
        return self.filter + self.after + self.decide

    @property
    def total(self) -> int:
        """Samples after a spike's peak that must have arrived for it to be reported, at most."""
        return self.decided + self.step


def make_lookahead(sampling_frequency: float, num_after: int) -> LookAhead:
    """For a stream of this rate (Hz) and templates with ``num_after`` samples after the peak."""
    fs = sampling_frequency
    return LookAhead(
        step=to_samples(STEP_MS, fs),
        filter=to_samples(FILTER_MS, fs),
        history=to_samples(HISTORY_MS, fs),
        after=min(to_samples(AFTER_MS, fs), num_after),
        decide=to_samples(DECIDE_MS, fs),
    )
