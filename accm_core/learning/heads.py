"""Which unit fired: one head a unit on what the encoder makes of a snippet."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from accm_core.learning.encoder import EMBED_BATCH, SpikeEncoder, one_thread, to_tensor

CALIBRATION_STEPS = 50
"""Of Newton's method for one slope and one offset a head; a handful are needed."""
MIN_SLOPE, MAX_SLOPE = 0.05, 20.0
"""Of a calibrated head: one that is never wrong on the examples must not become infinitely sure."""
ADDED_STEPS, ADDED_RATE = 300, 0.02
"""Steps and learning rate with which one more head is trained on features that stay as they are."""


@dataclass(frozen=True)
class HeadsConfig:
    """What decides the shapes of the heads' weights, and what they are called.

    Parameters
    ----------
    kind : {'binary', 'softmax'}
        A yes or no for each unit, of which several may be yes; or one choice among the units and none.
    num_features : int
        Of the encoder's representation.
    unit_names : tuple of str
        One a head.
    """

    kind: Literal["binary", "softmax"]
    num_features: int
    unit_names: tuple[str, ...]


class Heads(nn.Module):
    """Linear heads on the encoder's representation; what calibrates them is folded into their weights.

    Parameters
    ----------
    config : HeadsConfig
    """

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        num_outputs = len(config.unit_names) + (config.kind == "softmax")  # the last one: none of them
        self.linear = nn.Linear(config.num_features, num_outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Log odds of each unit, (n, n_outputs), from features of shape (n, n_features)."""
        logits: torch.Tensor = self.linear(features)
        return logits

    def probability(self, features: torch.Tensor) -> torch.Tensor:
        """Of each unit to have fired, (n, n_units)."""
        logits = self(features)
        if self.config.kind == "binary":
            return torch.sigmoid(logits)
        return torch.softmax(logits, dim=1)[:, :-1]

    def loss(self, features: torch.Tensor, fired: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Cross entropy of the heads' answers, mean over the snippets.

        Parameters
        ----------
        features : Tensor of shape (n, n_features)
        fired : Tensor of shape (n, n_units)
            1 where the unit fired.
        counts : Tensor of shape (n, n_units)
            0 where a head is not asked.
        """
        logits = self(features)
        if self.config.kind == "binary":
            each = nn.functional.binary_cross_entropy_with_logits(logits, fired, counts, reduction="sum")
            return each / len(features)
        asked = fired * counts
        target = torch.cat([asked, (asked.sum(dim=1, keepdim=True) == 0).float()], dim=1)
        return nn.functional.cross_entropy(logits, target / target.sum(dim=1, keepdim=True))

    def calibrate(self, features: torch.Tensor, fired: torch.Tensor, counts: torch.Tensor) -> None:
        """Change slope and offset of each head so that probabilities are shares (Platt 1999).

        Softmax heads get one slope for all (Guo et al. 2017). Parameters as for `loss`, of examples that
        the heads were not trained on.
        """
        with torch.no_grad():
            if self.config.kind == "softmax":
                self._calibrate_together(features, fired, counts)
                return
            logits = self(features).double()
            weight, bias = self.linear.weight, self.linear.bias
            for unit in range(logits.shape[1]):
                rows = counts[:, unit] > 0
                slope, offset = _fit_line(logits[rows, unit], fired[rows, unit].double())
                weight[unit] = slope * weight[unit]
                bias[unit] = slope * bias[unit] + offset

    def _calibrate_together(self, features: torch.Tensor, fired: torch.Tensor, counts: torch.Tensor) -> None:
        best, least = 1.0, float("inf")
        for slope in np.geomspace(0.1, 10.0, 81).tolist():
            logits = slope * self(features)
            asked = fired * counts
            target = torch.cat([asked, (asked.sum(dim=1, keepdim=True) == 0).float()], dim=1)
            loss = float(nn.functional.cross_entropy(logits, target / target.sum(dim=1, keepdim=True)))
            if loss < least:
                best, least = slope, loss
        self.linear.weight.mul_(best)
        self.linear.bias.mul_(best)

    def add(self, name: str, features: torch.Tensor, fired: torch.Tensor, *, seed: int) -> "Heads":
        """Binary heads with one more, trained one against the rest; those that were there stay as they are.

        Parameters
        ----------
        name : str
            Of the new unit.
        features : Tensor of shape (n, n_features)
            Of snippets with and without the unit, from the same encoder.
        fired : Tensor of shape (n,)
            1 where the unit fired.
        seed : int
            Of the new head's first weights.

        Raises
        ------
        ValueError
            If the heads are softmax heads, which share one denominator, or the name is taken.
        """
        if self.config.kind != "binary":
            raise ValueError("only binary heads can be added to; a softmax has to be trained anew")
        if name in self.config.unit_names:
            raise ValueError(f"there is a head {name!r} already")
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            one = Heads(replace(self.config, unit_names=(name,))).to(features.device)
            optimizer = torch.optim.AdamW(one.parameters(), lr=ADDED_RATE)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, ADDED_RATE, total_steps=ADDED_STEPS)
            for _ in range(ADDED_STEPS):
                loss = one.loss(features, fired[:, None], torch.ones_like(fired)[:, None])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            more = Heads(replace(self.config, unit_names=(*self.config.unit_names, name)))
        more.to(features.device)
        with torch.no_grad():
            more.linear.weight.copy_(torch.cat([self.linear.weight, one.linear.weight]))
            more.linear.bias.copy_(torch.cat([self.linear.bias, one.linear.bias]))
        return more


def classify_snippets(
    encoder: SpikeEncoder, heads: Heads, waveforms: np.ndarray, device: torch.device
) -> np.ndarray:
    """Probability of each unit to have fired at the centre of each snippet.

    Parameters
    ----------
    encoder : SpikeEncoder
    heads : Heads
    waveforms : ndarray of shape (n_spikes, n_samples, n_channels), float32
        Noise units.
    device : torch.device

    Returns
    -------
    ndarray of shape (n_spikes, n_units), float32
    """
    probability = np.zeros((len(waveforms), len(heads.config.unit_names)), dtype=np.float32)
    encoder.eval()
    with torch.inference_mode(), one_thread():
        for start in range(0, len(waveforms), EMBED_BATCH):
            batch = to_tensor(waveforms[start : start + EMBED_BATCH], device)
            answer = heads.probability(encoder.represent(batch))
            probability[start : start + EMBED_BATCH] = answer.cpu().numpy()
    return probability


def _fit_line(logits: torch.Tensor, fired: torch.Tensor) -> tuple[float, float]:
    """Slope and offset of the logistic regression of what fired on the logits, by Newton's method.

    The targets are drawn in by one example of each kind, as Platt does.
    """
    num_yes, num_no = float(fired.sum()), float((1 - fired).sum())
    target = torch.where(fired > 0, (num_yes + 1) / (num_yes + 2), 1 / (num_no + 2))
    design = torch.stack([logits, torch.ones_like(logits)], dim=1)
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, device=logits.device)
    ridge = 1e-6 * torch.eye(2, dtype=torch.float64, device=logits.device)
    loss = _log_loss(design @ line, target)
    for _ in range(CALIBRATION_STEPS):
        answer = torch.sigmoid(design @ line)
        gradient = design.T @ (answer - target)
        curvature = (design * (answer * (1 - answer))[:, None]).T @ design + ridge
        step = torch.linalg.solve(curvature, gradient)
        while True:  # shorten a step that leads up
            tried = _log_loss(design @ (line - step), target)
            if tried <= loss or float(step.abs().max()) < 1e-9:
                break
            step = step / 2
        line, gained, loss = line - step, float(loss - tried), tried
        if gained < 1e-9:
            break
    slope = min(max(float(line[0]), MIN_SLOPE), MAX_SLOPE)
    return slope, float(line[1])


def _log_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
