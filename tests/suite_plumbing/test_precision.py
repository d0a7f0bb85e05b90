"""Mixed precision is lifted around the suite's own products, and put back."""

import torch

from suite_plumbing.precision import autocast_dtypes, full_precision, in_full_precision


def product(x: torch.Tensor) -> torch.Tensor:
    return x @ x


def test_a_product_is_taken_in_float32_under_autocast():
    x = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(x).dtype == torch.bfloat16
        with full_precision():
            lifted = product(x)
        assert product(x).dtype == torch.bfloat16
    assert lifted.dtype == torch.float32
    assert torch.equal(lifted, product(x))


def test_autocast_is_put_back_after_an_exception():
    def fail() -> None:
        raise RuntimeError

    with torch.autocast("cpu", dtype=torch.bfloat16):
        try:
            in_full_precision(fail)()
        except RuntimeError:
            assert autocast_dtypes() == [torch.bfloat16]
    assert autocast_dtypes() == []
