"""Which unit fired: one head a unit on what the encoder makes of a snippet."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


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
