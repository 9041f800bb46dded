"""The density of a Gaussian is that of scipy."""

import numpy as np
from scipy.stats import multivariate_normal

from accm_core.sorting.gaussian import log_density


def test_log_density_is_that_of_scipy():
    rng = np.random.default_rng(0)
    mixing = rng.normal(0, 1, (4, 4))
    covariance, mean, points = mixing @ mixing.T, rng.normal(0, 3, 4), rng.normal(0, 3, (50, 4))
    expected = multivariate_normal(mean, covariance).logpdf(points)
    np.testing.assert_allclose(log_density(points - mean, covariance), expected)
