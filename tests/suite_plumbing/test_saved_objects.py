"""Objects in files come back as they were, to the bit; other kinds and files are refused."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from suite_plumbing.saved_objects import load_object, save_object


@dataclass(frozen=True, eq=False)
class Inner:
    values: Tensor
    lags: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Outer:
    name: str
    inner: Inner
    weights: Tensor
    missing: Tensor | None = None
    tokens: tuple[tuple[str, ...], ...] | None = None
    target: dict | None = None


def test_an_object_comes_back_as_it_was(tmp_path):
    x = torch.arange(6, dtype=torch.float64).reshape(2, 3).T  # not contiguous
    outer = Outer("n", Inner(x, (1.5, 2.0)), torch.tensor([float("nan"), 1e-40]),
                  tokens=(("a", "Ġ<b>"), ()), target={"token_ids": [1, 2]})  # fmt: skip
    save_object(outer, tmp_path / "o.safetensors")
    found = load_object(Outer, tmp_path / "o.safetensors")
    assert (found.name, found.inner.lags, found.tokens) == ("n", (1.5, 2.0), (("a", "Ġ<b>"), ()))
    assert found.target == {"token_ids": [1, 2]}
    assert found.missing is None
    assert torch.equal(found.inner.values, x)
    assert found.inner.values.dtype == torch.float64
    assert torch.equal(found.weights.view(torch.int32), outer.weights.view(torch.int32))
    assert set(load_file(tmp_path / "o.safetensors")) == {"inner.values", "weights"}


def test_another_kind_and_another_file_are_refused(tmp_path):
    path = tmp_path / "i.safetensors"
    save_object(Inner(torch.ones(2)), path)
    with pytest.raises(ValueError, match="holds Inner; this reads Outer"):
        load_object(Outer, path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="holds no result object; this reads Inner"):
        load_object(Inner, path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        load_object(Inner, path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_object(Inner, tmp_path / "none")
