"""Parts of a user's model, found by the values that pass through it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from own_model_cases import WIDTH, BareLM, Cell, Mamba, MixerLM, Scale, TinyLM, make_own
from torch import Tensor, nn

from mamba_mixers.own_structure import (
    FunctionalRMSNorm,
    find_structure,
    logits_of,
    own_mixers,
    same,
    traced,
    written_scale,
)
from mamba_mixers.sites import UnsupportedModelError

IDS = torch.tensor([[1, 4, 7, 2, 9]])


def test_what_is_the_same_up_to_rounding():
    x = torch.ones(3)
    assert same(x, x * (1 + 1e-6))
    assert not same(x, x * (1 + 1e-4))
    assert not same(x, torch.ones(1, 3))
    assert same(x.bfloat16(), x * 1.01)
    assert not same(x.double(), x.double() * (1 + 1e-6))


class Giving(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, ids: Tensor) -> Any:
        return self.output


def test_logits_come_in_many_forms():
    logits = torch.zeros(1, 5, 8)
    for output in (logits, (logits, None), {"logits": logits}, SimpleNamespace(logits=logits)):
        assert logits_of(Giving(output), IDS) is logits
    for output in ({"scores": logits}, logits[0], None, ()):
        with pytest.raises(UnsupportedModelError, match=r"Giving gives .* for ids \(1, 5\)"):
            logits_of(Giving(output), IDS)
    with pytest.raises(UnsupportedModelError, match=r"Linear cannot be called .*RuntimeError"):
        logits_of(nn.Linear(2, 2), IDS)


@torch.no_grad()
@pytest.mark.parametrize("make", [TinyLM, BareLM])
def test_the_users_modules_are_found_whatever_their_names(make):
    mixers: list[Any] = [Mamba(WIDTH), Mamba(WIDTH)]
    cells = [Cell(Scale, mixer) for mixer in mixers]
    model: Any = TinyLM(list(cells)) if make is TinyLM else BareLM(mixers)
    found = find_structure(model, IDS)
    assert list(found.mixers.values()) == mixers
    if make is TinyLM:
        assert (found.embedding, found.final_norm, found.head) == (
            model.words, model.calm, model.guess,
        )  # fmt: skip
        assert [(part.module, part.norm, part.adds) for part in found.layers] == [
            (cell, None, "inside") for cell in cells
        ]
        return
    assert (found.embedding, found.final_norm, found.head) == (model.tok, model.last, model.out)
    assert [(part.module, part.norm, part.adds) for part in found.layers] == [
        (mixer, norm, "outside") for mixer, norm in zip(mixers, model.norms, strict=True)
    ]


@torch.no_grad()
def test_a_tied_head_without_a_module_is_the_embedding():
    model = make_own("cells of Mamba-2, tied")
    head: Any = find_structure(model, IDS).head
    assert head.weight is model.words.weight


class FusedLM(MixerLM):
    """Reads its last norm's weight without calling it, as fused kernels do."""

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden, residual = self.embedding(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        x = hidden + residual
        return self.lm_head(Scale.forward(self.norm_f, x))


@torch.no_grad()
def test_a_norm_that_no_module_calls_is_found_by_its_weight():
    model = FusedLM([Mamba(WIDTH), Mamba(WIDTH)])
    norm = find_structure(model, IDS).final_norm
    assert isinstance(norm, FunctionalRMSNorm)
    assert norm.weight is model.norm_f.weight


@torch.no_grad()
def test_what_scales_a_mixers_output_is_read_off_the_stream():
    model = make_own("both mixers, scaled").double()
    seen, parts = traced(model, IDS), find_structure(model, IDS)
    scales = [
        written_scale(seen, part, mixer)
        for part, mixer in zip(parts.layers, own_mixers(model).values(), strict=True)
    ]
    assert scales == [pytest.approx(0.5, rel=1e-12), 1.0]
    beside = make_own("MLPs and LayerNorms").double()
    seen, parts = traced(beside, IDS), find_structure(beside, IDS)
    assert written_scale(seen, parts.layers[0], next(iter(parts.mixers.values()))) is None


class Twice(TinyLM):
    """The stream is doubled between its cells."""

    def forward(self, tokens: Tensor) -> Tensor:
        first, second = self.trunk["cells"]  # pyright: ignore
        return self.end(second(2 * first(self.words(tokens))))


def test_a_stream_that_breaks_off_is_named_by_its_layer():
    model = Twice([Cell(Scale, Mamba(WIDTH)) for _ in range(2)])
    with pytest.raises(UnsupportedModelError, match="beyond the layer around trunk.cells.0.core"):
        find_structure(model, IDS)
