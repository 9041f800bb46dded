"""The contrastive loss."""

import torch


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """Normalised temperature-scaled cross entropy between two views of the same spikes.

    Row k of ``first`` and of ``second`` are the positives; the other 2 n - 2 rows are negatives. It is
    a lower bound on the mutual information of the two views, which is what the sorter maximises.

    Parameters
    ----------
    first, second : Tensor of shape (n, n_dims)
        Projections of the two views, of any length.
    temperature : float
        Divides the cosine similarity, > 0.

    Returns
    -------
    Tensor of shape ()
        Mean over the 2 n rows; log(2 n - 1) when all projections coincide.

    References
    ----------
    Chen et al., A simple framework for contrastive learning of visual representations, 2020,
    arXiv 2002.05709, equation 1. Qian et al., ACCM, 2022, arXiv 2205.11914, for spikes.
    """
    views = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    similarity = views @ views.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    num_rows = len(first)
    partner = torch.arange(2 * num_rows, device=views.device).roll(num_rows)
    return torch.nn.functional.cross_entropy(similarity, partner)
