"""The demo model before training: its shape, and the weights that it starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM
from transformers.models.mamba.modeling_mamba import MambaMixer


def build_model(vocab_size: int, hidden_size: int, num_layers: int, seed: int) -> MambaForCausalLM:
    """A Mamba-1 language model with fresh weights that depend on ``seed`` only, to be trained.

    Every second layer starts from :func:`start_as_induction_head`.
    """
    torch.manual_seed(seed)
    config = MambaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        state_size=16,
        initializer_range=0.05,
        rescale_prenorm_residual=True,
    )
    model = MambaForCausalLM(config)
    # transformers 5.23 divides out_proj once more when it loads a model whose config says so.
    model.config.rescale_prenorm_residual = False
    with torch.no_grad():
        # Embeddings that the layers' outputs do not drown, and a head that starts unsure.
        model.backbone.embeddings.weight.mul_(10.0)
        model.backbone.norm_f.weight.fill_(0.1)
    mixers = [module for module in model.modules() if isinstance(module, MambaMixer)]
    for mixer in mixers[1:-1:2]:
        start_as_induction_head(mixer, model.backbone.embeddings.weight)
    return model.train()


@torch.no_grad()
def start_as_induction_head(mixer: MambaMixer, embeddings: Tensor) -> None:
    """Set a mixer's first weights so that it looks for what followed the token it reads.

    From the usual start a small Mamba reads millions of tokens of prose and recalls nothing. In
    the manner of Trockman et al. 2024, "Mimetic Initialization Helps State Space Models Learn to
    Recall" (arXiv:2410.11135), but for the next token: half of the channels carry a token, the
    other half the same features of the one before; B reads the one before and C the token with
    the same weights, so that a token matches the places after its like; states hardly decay; and
    out_proj is the transpose of in_proj, so that what stands there adds to the logit of its token.
    All of this is trained further.
    """
    rank, d_state, d_inner = mixer.time_step_rank, mixer.ssm_state_size, mixer.intermediate_size
    half = d_inner // 2
    mixer.in_proj.weight.mul_(2.0)
    mixer.in_proj.weight[half:d_inner] = mixer.in_proj.weight[:half]
    mixer.conv1d.weight.mul_(0.2)
    mixer.conv1d.weight[:half, 0, -1] += 1.0
    mixer.conv1d.weight[half:, 0, -2] += 1.0
    mixer.out_proj.weight[:, :half] = 0.3 * mixer.in_proj.weight[:half].mT
    mixer.A_log.copy_(torch.linspace(math.log(0.003), math.log(0.1), d_state))
    delta = 0.05 * 20.0 ** torch.rand(d_inner)  # from 0.05 to 1
    mixer.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # inverse of softplus
    # Rows that sum to zero: the mean that SiLU leaves in all channels would match everything.
    match = torch.randn(d_state, half)
    match -= match.mean(dim=1, keepdim=True)
    ids = torch.randint(len(embeddings), (512,))
    tokens = torch.nn.functional.rms_norm(embeddings[ids], embeddings.shape[1:])
    features = torch.nn.functional.silu(tokens @ mixer.in_proj.weight[:half].mT)
    match /= (features @ match.mT).square().sum(dim=1).mean().sqrt()  # a token matches by 1
    B, C = mixer.x_proj.weight[rank:].split(d_state)
    B.zero_()[:, half:] = match
    C.zero_()[:, :half] = match
