"""Effective rank of features, without what probes need: training watches it on machines where little is installed."""

import numpy as np
import numpy.typing as npt

from probes.statistics.checks import finite_features


def effective_rank(features: npt.ArrayLike) -> float:
    """Exp of the entropy of the normalized singular values, 1 .. min(N, D); 0 for features that are all zero.

    Source: RankMe, Garrido et al. 2023, arXiv:2210.02885.
    """
    values = np.linalg.svd(finite_features(features), compute_uv=False)
    if values[0] <= 1e-12:
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
