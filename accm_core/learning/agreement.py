"""How well an embedding tells, among many, which two views are of one spike."""

import numpy as np
from scipy.special import logsumexp

RIDGE = 1e-6
"""Share of the mean variance added before the covariance is inverted."""


def measure_agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Mutual information that embeddings of two views are seen to share.

    Parameters
    ----------
    first, second : ndarray of shape (n, n_dims)
        Row k of both are views of one spike.

    Returns
    -------
    float
        Nats, from about 0 to log(n). Does not change when both are mapped by the same invertible matrix.

    Notes
    -----
    The bound of InfoNCE (van den Oord et al., 2018, arXiv 1807.03748) with the critic that suits clustering
    by Gaussians: minus half the squared difference of the views, in units of the covariance that such
    differences have. Unlike the loss, it can be compared between embeddings of any kind.
    """
    difference = (first - second).astype(np.float64)
    covariance = difference.T @ difference / len(difference)
    covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    root = np.linalg.cholesky(np.linalg.inv(covariance))
    left, right = first @ root, second @ root
    critic = left @ right.T - 0.5 * (left**2).sum(axis=1)[:, None] - 0.5 * (right**2).sum(axis=1)
    own = np.diag(critic).mean()
    others = 0.5 * (logsumexp(critic, axis=0).mean() + logsumexp(critic, axis=1).mean())
    return float(np.log(len(first)) + own - others)
