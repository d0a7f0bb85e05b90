"""Figure of one set of neurons: importance by rank, and values at the tokens."""

import numpy as np
import torch
from matplotlib.figure import Figure

from result_views.figures import neuron_figures as figures
from ssm_measures.neuron_sets import neuron_set


def test_importance_by_rank_leaves_out_zeros():
    ax = Figure().subplots()
    figures.plot_importance(np.array([4.0, 2.0, 0.0]), ax)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 4], [2, 2], [3, np.nan]])
    assert np.asarray(ax.lines[1].get_ydata()).tolist() == [2, 2]
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_importance_of_nothing_says_so():
    ax = Figure().subplots()
    figures.plot_importance(np.zeros(3), ax)
    assert "importance of every neuron is zero" in ax.texts[0].get_text().replace("\n", " ")


def test_values_have_a_row_a_neuron_and_a_column_a_token():
    ax = Figure().subplots()
    values = np.array([[1.0, -2.0], [3.0, 0.0], [0.5, 4.0]])
    figures.plot_activations(np.array([7, 5]), values, ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), values.T)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["7", "5"]


def test_a_set_of_neurons_draws_its_first_text_without_padding():
    activations = torch.tensor([[[9.0, 9.0], [1.0, -1.0], [2.0, 0.5]]])
    mask = torch.tensor([[0, 1, 1]])
    neurons = neuron_set(
        "rollout", 3, activations, torch.zeros(1, 3, 3), torch.tensor([0.25, 1.0]),
        torch.zeros(1, 3, dtype=torch.long), mask,
    )  # fmt: skip
    figure = neurons.figure()
    assert figure.get_suptitle() == "Neurons by rollout, layer 3"
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), [[-1.0, 0.5], [1.0, 2.0]])
