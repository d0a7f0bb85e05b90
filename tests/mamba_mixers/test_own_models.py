"""A user's own model, put together for the suite, is the user's model."""

import logging
from collections.abc import Callable
from typing import Any

import own_model_cases
import pytest
import torch
import torch.nn.functional as F
from own_model_cases import (
    MODELS,
    WIDTH,
    Cell,
    Mamba,
    Mamba2,
    RMSNormGated,
    Scale,
    TinyLM,
    loop_scan,
    make_own,
)
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

from causal_interventions.interventions import (
    hide_source,
    patch_state,
    reset_state,
    state_after,
)
from long_memory import read_through
from mamba_mixers import own_model
from mamba_mixers.own_structure import logits_of
from mamba_mixers.recording import record_layers, record_streams
from mamba_mixers.replay import LRP
from mamba_mixers.running import fast_scan, forward_from
from mamba_mixers.sites import UnsupportedModelError, find_mixers
from mamba_mixers.weights import final_norm, input_embeddings, logit_directions
from selective_scan.attention import implicit_attention
from ssm_component_extractor import capture
from ssm_measures.attention_maps import kernel_of
from suite_plumbing.models import resolve_model
from suite_plumbing.provenance import provenance
from token_statistics.description import relative_error

FLOAT64 = 1e-10  # float64 rounding, grown over a scan and two layers

IDS = torch.tensor([[5, 40, 3, 3, 17, 60, 22, 9, 31, 8, 3, 12, 1]])

normed_by_rms = pytest.mark.parametrize(
    "name", [name for name in MODELS if "LayerNorm" not in name], scope="module"
)


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def theirs(name: str) -> Any:
    return make_own(name).double()


@pytest.fixture(scope="module")
def model(theirs: Any) -> Any:
    return own_model(theirs)


@torch.no_grad()
def plain(model: Any, ids: Tensor | None = IDS, **options: Any) -> Tensor:
    return model(input_ids=ids, **options).logits


@torch.no_grad()
def test_it_gives_the_users_logits_by_the_users_code_and_by_the_suites_scan(theirs, model):
    expected = logits_of(theirs, IDS)
    assert relative_error(plain(model), expected) <= FLOAT64
    with fast_scan(model):
        assert relative_error(plain(model), expected) <= FLOAT64
    assert relative_error(plain(model, logits_to_keep=2), expected[:, -2:]) <= FLOAT64
    embedded = input_embeddings(model, IDS)
    assert relative_error(plain(model, None, inputs_embeds=embedded), expected) <= FLOAT64


def test_the_components_and_the_map_rebuild_what_the_users_mixer_gave(theirs, model):
    """The mixer's real output is heard on the user's own module, and rebuilt from the map."""
    found = capture(model, IDS, None, list(find_mixers(model)))
    mixers = [m for m in theirs.modules() if isinstance(m, (Mamba, Mamba2))]
    real: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        real.append(output)

    handles = [m.register_forward_hook(keep) for m in mixers]
    logits_of(theirs, IDS)
    for handle in handles:
        handle.remove()
    records = record_layers(model, list(find_mixers(model)), IDS)
    for layer, record in records.items():
        replay = record.replay
        assert float(record.replay_error) <= FLOAT64
        assert float(found.components[layer].replay_error) <= FLOAT64
        alpha = implicit_attention(**kernel_of(replay))
        u = replay.u[0].unflatten(1, (len(replay.D), -1))
        y = torch.einsum("hts,shp->thp", alpha[0], u) + replay.D[:, None] * u
        gated = y.flatten(1) * F.silu(replay.gate[0])
        if replay.norm_scale is not None:
            gated = y.flatten(1) * F.silu(replay.gate[0]) * replay.norm_scale[0]
        rebuilt = gated @ mixers[layer].out_proj.weight.mT
        assert relative_error(rebuilt.detach(), real[layer][0].detach()) <= FLOAT64


@torch.no_grad()
def test_padding_and_company_change_no_text(model):
    alone = plain(model)
    ids, mask = F.pad(IDS, (4, 0)), F.pad(torch.ones_like(IDS), (4, 0))
    ids = torch.cat([ids, torch.arange(17)[None]])
    mask = torch.cat([mask, torch.ones(1, 17, dtype=torch.long)])
    padded = plain(model, ids, attention_mask=mask)
    assert relative_error(padded[:1, 4:], alone) <= FLOAT64
    with fast_scan(model):
        assert relative_error(plain(model, ids, attention_mask=mask)[:, 4:], padded[:, 4:]) <= 1e-9
    for record in record_layers(model, list(find_mixers(model)), ids, mask).values():
        assert float(record.replay_error.max()) <= FLOAT64


def test_gradients_through_the_scan_are_those_through_the_users_code(theirs, model):
    weight = model.get_input_embeddings().weight
    (expected,) = torch.autograd.grad(logits_of(theirs, IDS)[0, -1, 7], weight)
    with fast_scan(model, recompute=[0]):
        (found,) = torch.autograd.grad(model(input_ids=IDS).logits[0, -1, 7], weight)
    assert relative_error(found, expected) <= 1e-9


@torch.no_grad()
def test_an_intervention_is_the_users_code_changed_likewise(name, theirs, model, monkeypatch):
    """The loop of the user's mixers forgets before token 6; the suite is told to do so."""
    expected_before = logits_of(theirs, IDS)

    def forgetful(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        parts = [
            loop_scan(u[:, p], delta[:, p], A, B[:, p], C[:, p])
            for p in (slice(0, 6), slice(6, None))
        ]
        return torch.cat(parts, 1)

    layers = list(find_mixers(model))
    with fast_scan(model, edits=reset_state(6, layers)):
        found = plain(model)
    monkeypatch.setattr(own_model_cases, "loop_scan", forgetful)
    expected = logits_of(theirs, IDS)
    assert relative_error(found, expected) <= FLOAT64
    assert relative_error(expected, expected_before) > 1e-4


@torch.no_grad()
def test_a_state_of_its_own_put_in_place_and_all_sources_hidden(model):
    captured = capture(model, IDS, None, [0])
    state = state_after(captured.components[0].text(0), 5)
    with fast_scan(model, edits=patch_state(0, 5, state)):
        # What is captured is kept in float32.
        assert relative_error(plain(model), plain(model)) == 0.0
        found = plain(model)
    assert relative_error(found, plain(model)) <= 1e-6
    with fast_scan(model, edits=hide_source(4, 0, 9)):
        hidden = plain(model)
    assert relative_error(hidden[:, :9], plain(model)[:, :9]) <= FLOAT64
    assert relative_error(hidden[:, 9:], plain(model)[:, 9:]) > 1e-9


@torch.no_grad()
def test_a_text_in_chunks_and_a_forward_from_a_layer(model):
    layers = list(find_mixers(model))
    whole = read_through(model, IDS[0], chunk_size=13, layers=[0])
    parts = read_through(model, IDS[0], chunk_size=4, layers=[0])
    assert relative_error(parts.loss, whole.loss) <= 1e-6  # losses are kept in float32
    entered = record_layers(model, layers, IDS)[layers[-1]].block_input
    assert relative_error(forward_from(model, layers[-1], entered), plain(model)) <= FLOAT64


@normed_by_rms
def test_relevance_is_conserved_where_norms_are_of_rms(name):
    theirs = make_own(name).double()
    made = own_model(theirs)
    for bias in (p for key, p in theirs.named_parameters() if key.endswith("bias")):
        nn.init.zeros_(bias)  # each would take its share
    x = input_embeddings(made, IDS).detach().requires_grad_()
    with fast_scan(made, rules=LRP):
        f = made(inputs_embeds=x).logits[0, -1, 3]
        (gradient,) = torch.autograd.grad(f, x)
    assert float((x * gradient).sum().detach()) == pytest.approx(float(f.detach()), rel=1e-9)


@normed_by_rms
@torch.no_grad()
def test_directions_of_logits(name):
    made = own_model(make_own(name).double())
    last = max(find_mixers(made))
    x = record_layers(made, [last], IDS)[last].block_output
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + Scale(1).eps)
    constant = getattr(made.get_output_embeddings(), "bias", None)
    found = normed @ logit_directions(made).mT + (0 if constant is None else constant)
    assert relative_error(found, plain(made)) <= FLOAT64


@pytest.mark.parametrize("name", ["MLPs and LayerNorms", "bare, LayerNorms"])
def test_what_needs_an_rms_norm_says_so_beside_a_layer_norm(name):
    made = own_model(make_own(name))
    with pytest.raises(UnsupportedModelError, match="final norm of this model is no RMS norm"):
        final_norm(made)
    with (
        pytest.raises(UnsupportedModelError, match="LayerNorm, for which MambaLRP has no rule"),
        fast_scan(made, rules=LRP),
    ):
        pass


def test_the_users_model_stays_what_it_was(name):
    theirs = make_own(name).eval()
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    expected = logits_of(theirs, IDS).detach()
    made = own_model(theirs)
    with fast_scan(made):
        plain(made)
    record_layers(made, [0], IDS)
    assert all("forward" not in vars(m) and not m._forward_hooks for m in theirs.modules())
    assert torch.equal(logits_of(theirs, IDS), expected)
    after = theirs.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {id(p) for p in made.parameters()} == {id(p) for p in theirs.parameters()}


def test_a_users_hook_on_a_mixer_is_heard():
    theirs = make_own("cells")
    made = own_model(theirs)
    before = plain(made)
    core: Any = theirs.trunk["cells"][0].core
    core.register_forward_hook(lambda module, args, output: 2 * output)
    assert relative_error(plain(made), before) > 1e-3


def test_a_module_is_taken_wherever_a_model_is(caplog):
    theirs = make_own("cells")
    with caplog.at_level(logging.INFO):
        made, _, _ = resolve_model(theirs)
    assert "the model was in training mode; it is in eval mode now" in caplog.text
    identity = provenance(made)["model"]
    assert identity["own_model"]["class"] == "TinyLM"
    assert identity["num_parameters"] == sum(p.numel() for p in theirs.parameters())
    with torch.no_grad():
        broken = make_own("cells")
        broken.words.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match="1 weight tensors of 'TinyLM' hold NaN or infinity"):
        resolve_model(broken)
    with pytest.raises(ValueError, match="model is of type Linear; .* parameters of mamba_ssm's"):
        own_model(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"pass model\.module"):
        own_model(nn.DataParallel(theirs))


def test_mixers_of_transformers_in_a_model_of_ones_own():
    config = MambaConfig(
        vocab_size=64, hidden_size=WIDTH, state_size=4, num_hidden_layers=2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    stock: Any = MambaForCausalLM(config).eval()
    theirs = TinyLM([Cell(Scale, block.mixer) for block in stock.backbone.layers])
    made = own_model(theirs)
    assert [site.family.model_type for site in find_mixers(made).values()] == ["own Mamba-1"] * 2
    assert relative_error(plain(made), logits_of(theirs, IDS).detach()) <= 1e-5  # float32


class Telling(Cell):
    """Gives the stream, and something of another shape beside it."""

    def forward(self, x: Tensor) -> Any:
        stream = super().forward(x)
        return stream, stream.mean(-1)


class Unpacking(TinyLM):
    """Takes the first of what its cells give."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for cell in self.trunk.children():
            for part in cell.children():
                x = part(x)[0]
        return self.end(x)


@torch.no_grad()
def test_a_block_may_give_more_than_the_stream():
    theirs = Unpacking([Telling(Scale, Mamba(WIDTH)) for _ in range(2)])
    made = own_model(theirs)
    assert relative_error(plain(made), logits_of(theirs, IDS)) <= 1e-5  # float32
    streams = record_streams(made, [0, 1], IDS)
    assert relative_error(forward_from(made, 1, streams[0][1]), plain(made)) <= 1e-5


class WithPositions(TinyLM):
    """Adds positions to its embeddings."""

    def __init__(self) -> None:
        super().__init__([Cell(Scale, Mamba(WIDTH))])
        self.places = nn.Embedding(32, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.end(self.trunk["cells"](x))


class Averaging(Cell):
    """Each token's stream takes in the mean of those up to it."""

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, 1 + x.shape[1])[:, None]
        return x + self.core(self.ahead(x)) + self.back(self.wide(x.cumsum(1) / count))


class Doubled(Mamba):
    """The parameters of a Mamba, and another computation."""

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        return super().forward(2 * hidden_states)


class Rescaled(TinyLM):
    """Does more than run its parts."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * (1.0 + 0.1 * tokens[..., None])


class Gated(Cell):
    """Multiplies what its mixer gives by a learned gate."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.gelu(self.wide(x))) * self.core(self.ahead(x))


def of_cells(cell: type[Cell], mixer: type = Mamba, **options: Any) -> TinyLM:
    return TinyLM([cell(Scale, mixer(WIDTH), **options) for _ in range(2)])


def one_mixer_twice() -> TinyLM:
    mixer = Mamba(WIDTH)
    return TinyLM([Cell(Scale, mixer), Cell(Scale, mixer)])


def with_groups_unsaid() -> TinyLM:
    """Its norm is of groups of 12 channels, and says 24."""
    model = TinyLM([Cell(Scale, Mamba2(WIDTH))])
    norm: Any = model.get_submodule("trunk.cells.0.core.norm")

    class Silent(RMSNormGated):
        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            self.group_size = WIDTH
            try:
                return super().forward(x, z)
            finally:
                self.group_size = 2 * WIDTH

    norm.__class__, norm.group_size = Silent, 2 * WIDTH
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (WithPositions, "positions or a scale are not followed; give what was not found"),
        (lambda: of_cells(Averaging, mlp=True), "mix tokens outside their mixers"),
        (lambda: of_cells(Cell, Doubled), "layer 0 of TinyLM computes something else than mamba_"),
        (lambda: Rescaled([Cell(Scale, Mamba(WIDTH))]), "no norm and head of Rescaled make its lo"),
        (lambda: of_cells(Gated, mlp=True), "does not add its mixer's output to the stream as it"),
        (one_mixer_twice, "the mixer trunk.cells.0.core was called 2 times"),
        (with_groups_unsaid, "says what they leave open as ngroups, norm_before_gate"),
    ],
)
def test_what_cannot_be_put_together_is_refused_with_the_reason(make: Callable[[], nn.Module],
                                                                message: str):  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=message):
        own_model(make())


class TwoTables(TinyLM):
    """Reads its tokens by another table than the one that stands first."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self.words.weight)
        return self.end(self.trunk["cells"](x))


@torch.no_grad()
def test_parts_are_given_by_name_or_as_modules():
    theirs = TwoTables([Cell(Scale, Mamba(WIDTH))])
    with pytest.raises(UnsupportedModelError, match="no embedding of TwoTables takes the token"):
        own_model(theirs)
    with pytest.raises(ValueError, match="embedding is 'tokens', which TwoTables does not have"):
        own_model(theirs, embedding="tokens")
    made = own_model(theirs, embedding="words", final_norm=theirs.calm, head="guess")
    assert relative_error(plain(made), logits_of(theirs, IDS)) <= 1e-5  # float32
