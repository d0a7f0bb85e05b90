"""The names for notebooks are all there."""

import analysis_utils
from result_views.figures import drawing
from token_statistics import association, cka, description


def test_every_name_is_there_and_is_that_of_its_module():
    for name in analysis_utils.__all__:
        assert hasattr(analysis_utils, name)
    assert analysis_utils.summarise is description.summarise
    assert analysis_utils.spearman is association.spearman
    assert analysis_utils.linear_cka is cka.linear_cka
    assert analysis_utils.draw_heatmap is drawing.draw_heatmap
