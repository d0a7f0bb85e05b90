"""The tuned lens: its regression against least squares, and what it has to recover."""

import numpy as np
import pytest
import torch

from causal_interventions import tuned_lens as module
from causal_interventions.logit_lens import logit_lens
from causal_interventions.tuned_lens import tuned_lens
from mamba_mixers.sites import find_mixers


def ids(seed: int, length: int = 96) -> torch.Tensor:
    return torch.randint(0, 64, (1, length), generator=torch.Generator().manual_seed(seed))


def test_ridge_is_least_squares_with_rows_for_the_penalty():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    (found,) = module._ridges(x, y, [0.3])
    centred = (x - x.mean(0)).numpy()
    strength = 0.3 * np.trace(centred.T @ centred) / 5
    rows = np.concatenate([centred, np.sqrt(strength) * np.eye(5)])
    targets = np.concatenate([(y - y.mean(0)).numpy(), np.zeros((5, 5))])
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0]
    np.testing.assert_allclose(found.weight.numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(
        found.bias.numpy(), y.mean(0).numpy() - x.mean(0).numpy() @ expected, atol=1e-10
    )


def test_streams_that_are_a_rotation_apart_are_translated():
    """The map is applied to the stream divided by its root mean square, of any size."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    (found,) = module._ridges(module._scaled(x), module._scaled(x @ rotation), [1e-9])
    torch.testing.assert_close(found(7.0 * x), module._scaled(x @ rotation), rtol=0, atol=1e-6)


def test_maps_lower_the_divergence_on_text_held_out(tiny_model):
    """Each mixer writes a fixed vector, as large as the stream, which the plain lens of an earlier
    layer does not know of and a bias does."""
    with torch.no_grad():
        for site in find_mixers(tiny_model).values():
            site.mixer.out_proj.weight.zero_()
            site.mixer.out_proj.bias = torch.nn.Parameter(torch.linspace(-0.1, 0.1, 32))
    lens = tuned_lens(tiny_model, [ids(0), ids(1)], [ids(2)])
    table = lens.to_dataframe()
    assert (lens.num_fitted, lens.num_held_out) == (192, 96)
    assert list(table["layer"]) == ["embedding", 0, 1, 2, 3]
    earlier = table.iloc[:-1]
    assert (earlier["kl_tuned"] < 0.5 * earlier["kl_plain"]).all()
    assert table["kl_plain"].iloc[-1] == pytest.approx(0.0, abs=1e-6)
    plain = logit_lens(tiny_model, ids(2)).to_dataframe()
    plain = plain[plain["stream"] == "residual"]["kl"]
    np.testing.assert_allclose(table["kl_plain"], plain, rtol=1e-3, atol=1e-6)


def test_too_few_tokens_are_refused(tiny_model):
    with pytest.raises(ValueError, match="a tuned lens needs 8 or more"):
        tuned_lens(tiny_model, [ids(0, 7)], [ids(1)])
