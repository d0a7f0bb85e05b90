"""Selective state space models as pure tensor functions: the scan, its states and its attention.

No model and no ``transformers`` in here: tensors in, tensors out, any device, any float dtype.

References
----------
[1] Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces".
[2] Dao & Gu 2024, "Transformers are SSMs" (Mamba-2, SSD).
[3] Ali, Zimerman & Wolf 2024, "The Hidden Attention of Mamba Models".

Glossary (letters as in [1] and [2]; the heads form covers both)
----------------------------------------------------------------
b        batch
l        tokens; t is a query token, s a source token
H        heads. Mamba-1: H = d_inner, every channel is a head
P        head width ("headdim"). Mamba-1: P = 1
N        states per channel ("d_state")
G        groups of heads that share B and C; head j reads group j // (H / G)
u        (b, l, H, P)     input of the SSM (after convolution and SiLU)
delta    (b, l, H)        step size, after softplus (and clamp, where the family has one)
A        (H, N) or (H, 1) continuous-time decay rate, negative
B, C     (b, l, G, N)     input and output projections of the state
D        (H,) or (H, P)   skip connection; beside a flat u (H,) or (d_inner,)
h        (b, l, H, P, N)  state after each token
y        (b, l, H, P)     output of the scan
own_share  (b, l, H)      share of what a token writes that it reads itself; None: all (see below)
alpha    (b, H, l, l)     implicit attention: y_t - D u_t = sum over s <= t of alpha[t, s] u_s

Every function also takes u as one row of channels, (b, l, d_inner) with d_inner = H P, head j being
channels j P to (j + 1) P - 1, and then returns y as (b, l, d_inner) and h as (b, l, d_inner, N). B
and C of a single group may be (b, l, N). Both together are the shapes of [1] for Mamba-1.

The recurrence is that of [1], eq. 2, with the simplified discretisation B_bar = delta B that all
released models use:

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,    y_t = C_t h_t + D u_t

Mamba-3 writes by the trapezoid rule: of delta_s B_s u_s a share goes into the state at token s, and
the rest at the next token, already decayed by that token. As a scan that is the same recurrence,
all of it written at s, less what s does not yet read itself: with kappa = own_share,

    y_t = C_t h_t - (1 - kappa_t) delta_t (C_t B_t) u_t + D u_t

The state after t is then h_t - (1 - kappa_t) delta_t B_t u_t, and kappa_t multiplies alpha[t, t].

Arithmetic is float32, or float64 when an input is float64; half precision is never used inside.

May import `suite_plumbing`; tensors in, tensors out, no ``transformers``.

attention  Implicit attention of a selective SSM: exact, of single heads or summed over all of
           them
compiled   The selective scan compiled by ``torch.compile``: for training, and other long runs on
           a CPU
merging    Sums over all pairs of tokens, each decayed by the tokens between, by merging segments
           of a text
operands   Operands of a selective scan: their shapes, checked, and the dtype to compute in
scan       The scan and its states: blocks of tokens for the CPU, with a backward that recomputes
           states
"""

from typing import TYPE_CHECKING

from suite_plumbing.lazy_names import lazy_names

if TYPE_CHECKING:
    from selective_scan.attention import (
        attention_map,
        attention_row,
        decayed_products,
        implicit_attention,
        magnitude_maps,
    )
    from selective_scan.scan import (
        scan_hidden_states,
        scan_implementation,
        selective_scan,
        selective_scan_chunk,
    )

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "selective_scan.attention": [
            "attention_map",
            "attention_row",
            "decayed_products",
            "implicit_attention",
            "magnitude_maps",
        ],
        "selective_scan.scan": [
            "scan_hidden_states",
            "scan_implementation",
            "selective_scan",
            "selective_scan_chunk",
        ],
    },
)
