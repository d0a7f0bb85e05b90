"""Names for notebooks: statistics of `token_statistics`, drawing of `result_views.figures`.

No module of the suite imports this one.
"""

from result_views.figures.drawing import (
    PALETTE,
    draw_heatmap,
    draw_lines_with_band,
    draw_null_band,
    token_ticks,
)
from suite_plumbing.texts import clean_token
from token_statistics.association import (
    Discoveries,
    benjamini_hochberg,
    causal_spearman,
    hypergeometric_overlap,
    pearson_matrix,
    pearson_p_values,
    spearman,
    spearman_matrix,
)
from token_statistics.cka import linear_cka
from token_statistics.description import (
    FloatArray,
    Values,
    autocorrelation,
    covariance_participation_ratio,
    entropy,
    kurtosis,
    lagged_products,
    participation_ratio,
    relative_error,
    summarise,
    unit_columns,
)
from token_statistics.intervals import MeanInterval, mean_interval

__all__ = [
    "PALETTE",
    "Discoveries",
    "FloatArray",
    "MeanInterval",
    "Values",
    "autocorrelation",
    "benjamini_hochberg",
    "causal_spearman",
    "clean_token",
    "covariance_participation_ratio",
    "draw_heatmap",
    "draw_lines_with_band",
    "draw_null_band",
    "entropy",
    "hypergeometric_overlap",
    "kurtosis",
    "lagged_products",
    "linear_cka",
    "mean_interval",
    "participation_ratio",
    "pearson_matrix",
    "pearson_p_values",
    "relative_error",
    "spearman",
    "spearman_matrix",
    "summarise",
    "token_ticks",
    "unit_columns",
]
