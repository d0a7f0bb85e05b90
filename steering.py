"""Steering: a Mamba made to say more or less of something, in ``generate`` too, and what it costs.

    steering = Steering("demo_model")
    vector = steering.vector(["the sea"], ["the house"], layer=6)
    with steering.apply(vector, 2.0):
        steering.model.generate(...)
    steering.curve(vector, ["He looked at"], token=" sea")

A vector is the difference of means between contrastive texts, at one site of one layer and one
token, the first direction of their differences, or one's own. Sites, and what is done with a vector
there: ``causal_interventions.steering_vectors`` and ``steering_edits``. Effects stand beside those
of random vectors of the same norm: ``steering_curves``.

Source: Turner et al. 2023 (arXiv 2308.10248) and Rimsky et al. 2023 (arXiv 2312.06681) for vectors
by contrast in the residual stream of transformers; sites of the SSM are this suite's.

From a shell: ``python steering.py --positive 'the sea' --negative 'the house' --token ' sea'``.
"""

from __future__ import annotations

from suite_plumbing.command_lines import parse_first
from suite_plumbing.step_options import steering_options

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(steering_options)

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from causal_interventions.steering_curves import (
    COEFFICIENTS,
    MIN_RANDOM,
    SteeringCurve,
    steering_curve,
)
from causal_interventions.steering_edits import steered
from causal_interventions.steering_vectors import (
    SteeringVector,
    check_site,
    contrast,
    given_vector,
    load_vector,
    site_shape,
    site_values,
)
from causal_interventions.targets import DEFAULT_TARGET, resolve_target
from mamba_mixers.sites import find_mixers, model_layers
from mamba_mixers.weights import check_has_logits
from recursive_visualizer import write_figures
from result_views.terminal_lines import terminal_table, wrapped
from suite_plumbing.arguments import whole_numbers
from suite_plumbing.commands import (
    Job,
    command_line,
    job_from_options,
    run_main,
    write_step_results,
)
from suite_plumbing.model_inputs import encode_for
from suite_plumbing.models import ModelAnalyzer, execution_device, require_tokenizer
from suite_plumbing.result_files import (
    StrPath,
    visible_controls,
    write_csv,
    written_together,
)
from suite_plumbing.texts import (
    EXAMPLE_TEXTS,
    EncodedText,
    pad_batch,
    padding_id,
    read_texts_file,
)

SEA = (
    "The waves broke over the deck of the ship",
    "We sailed out of the harbour before the wind",
    "The captain looked over the water at the whale",
    "The sailors drew their boat upon the shore",
    "A storm came up that night, and the mast was gone",
    "The old whaler rose and fell upon the swell",
)

HOUSE = (
    "The ladies sat over their tea in the parlour",
    "We walked out of the garden before dinner",
    "The doctor looked over the table at his wife",
    "The servants brought the letter upon a tray",
    "A visitor came up that night, and the fire was lit",
    "The old lady rose and went up to her room",
)
"""Contrastive texts of the command, where none are given."""

PROMPTS = (
    "In the morning they went down to the", "He turned his face and looked at the",
    "I had never in my life seen the", "They talked for an hour about the",
    "She stood alone and listened to the", "There was nothing to be seen but the",
)  # fmt: skip
"""Prompts of the command, where none are given."""


class Steering(ModelAnalyzer):
    """Steering vectors of one model: made, applied, measured, saved."""

    def vector(
        self,
        positive: str | Sequence[str],
        negative: str | Sequence[str],
        layer: int,
        site: str = "residual",
        *,
        position: int | None = None,
        method: str = "mean",
    ) -> SteeringVector:
        """The vector that leads from ``negative`` texts to ``positive`` ones.

        ``site``: one of ``SITES``; ``layer`` -1 is the last. ``position``: the token whose values
        are read, from a text's start or from its end when negative; None is the mean over its
        tokens. ``method``: "mean" or "pca", which takes pairs (``contrast``). Raises ValueError for
        bad texts, an unknown site or method (naming the known ones), a layer without the site, a
        position outside a text, and texts that do not differ there. Cost: a forward pass of all
        texts up to the layer.
        """
        number = check_site(self.model, layer, site)
        tokenizer, first = encode_for(self.model, self.tokenizer, positive)
        _, second = encode_for(self.model, self.tokenizer, negative)
        padding = padding_id(tokenizer)
        towards, away = (
            site_values(self.model, texts, number, site, position, padding)
            for texts in (first, second)
        )
        values = contrast(towards, away, method)
        return given_vector(self.model, values, number, site, method)

    def given(self, values: Tensor | Any, layer: int, site: str = "residual") -> SteeringVector:
        """A vector of one's own. Raises ValueError for another shape, NaN, infinity, all zeros, and
        as :meth:`vector`."""
        return given_vector(self.model, values, layer, site)

    def channels(
        self, channels: int | Sequence[int], layer: int, site: str = "neurons"
    ) -> SteeringVector:
        """1 in these channels, 0 in the others: for mode "scale". At the state, of every n.

        Raises ValueError for a channel that does not exist, and as :meth:`vector`.
        """
        number = check_site(self.model, layer, site)
        shape = site_shape(self.model, number, site)
        values = torch.zeros(shape)
        values[whole_numbers("channels", channels, 0, shape[0] - 1)] = 1.0
        return given_vector(self.model, values, number, site, "channels")

    @contextmanager
    def apply(
        self,
        vector: SteeringVector,
        coefficient: float = 1.0,
        mode: str = "add",
        *,
        start: int = 0,
    ) -> Iterator[nn.Module]:
        """Within this context the model is steered, also by ``generate``: see ``steering_edits``.

        ``start``: the first token that is, counted from the first real one of each row; a prompt's
        length steers what is generated alone. Greedy, sampled, in batches padded on the left;
        contexts within each other add up. Raises ValueError for a vector that is not this model's,
        an unknown mode, a coefficient that is no finite number and a negative start; RuntimeError
        for beams that this version of ``transformers`` loses.
        """
        with steered(self.model, self._fitting(vector), coefficient, mode, start) as model:
            yield model

    def curve(
        self,
        vector: SteeringVector,
        prompts: str | Sequence[str],
        unrelated: str | Sequence[str] = EXAMPLE_TEXTS,
        *,
        token: str | int | None = None,
        contrast: str | int | None = None,
        position: int = -1,
        target: str = DEFAULT_TARGET,
        coefficients: Sequence[float] = COEFFICIENTS,
        mode: str = "add",
        start: int = 0,
        num_random: int = MIN_RANDOM,
        seed: int = 0,
    ) -> SteeringCurve:
        """Effect on ``prompts`` and side effect on ``unrelated`` texts, by coefficient.

        ``token``, ``contrast``, ``position``, ``target``: as in ``resolve_target``. Without a token
        the target is each prompt's likeliest next one. ``start`` as in :meth:`apply`. Raises
        ValueError as :meth:`vector`, :meth:`apply`, ``resolve_target`` and ``steering_curve``,
        whose cost it has; UnsupportedModelError for a model without logits.
        """
        check_has_logits(self.model)
        vector = self._fitting(vector)
        tokenizer, asked = encode_for(self.model, self.tokenizer, prompts)
        _, others = encode_for(self.model, self.tokenizer, unrelated)
        chosen = resolve_target(
            target, tokenizer, token=token, contrast=contrast, position=position
        )
        self.curve_ = steering_curve(
            self.model, vector, asked, others, chosen, padding=padding_id(tokenizer),
            coefficients=coefficients, mode=mode, start=start, num_random=num_random, seed=seed,
        )  # fmt: skip
        return self.curve_

    def load(self, path: StrPath) -> SteeringVector:
        """A vector that ``SteeringVector.save`` wrote; ValueError where it is not this model's."""
        return self._fitting(load_vector(path))

    def _fitting(self, vector: SteeringVector) -> SteeringVector:
        if not isinstance(vector, SteeringVector):
            raise ValueError(
                f"vector is of type {type(vector).__name__}; make one by vector(...) or given(...)"
            )
        return given_vector(self.model, vector.values, vector.layer, vector.site, vector.source)


@torch.no_grad()
def continuations(
    steering: Steering, vector: SteeringVector, prompt: EncodedText, num_tokens: int,
    coefficients: Sequence[float], mode: str = "add", start: int = 0,
) -> dict[str, str]:  # fmt: skip
    """Greedy continuations of a prompt by coefficient, "clean" without any."""
    tokenizer = require_tokenizer(steering.model, steering.tokenizer)
    padding = padding_id(tokenizer)
    ids, mask = (x.to(execution_device(steering.model)) for x in pad_batch([prompt], padding))
    model: Any = steering.model

    def continued() -> str:
        tokens = model.generate(
            ids, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False,
            pad_token_id=padding,
        )  # fmt: skip
        return str(tokenizer.decode(tokens[0, ids.shape[1] :]))

    found = {"clean": continued()}
    for coefficient in coefficients:
        with steering.apply(vector, coefficient, mode, start=start):
            found[f"{coefficient:g}"] = continued()
    return found


def curve_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A curve's rows as lines of a terminal."""
    heads = ["coefficient", "target", "random vectors", "p", "KL", "random", "perplexity"]
    return terminal_table(heads, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[str]:
    interval = "" if row["low"] is None else f" [{row['low']:+.3g}, {row['high']:+.3g}]"
    return [
        f"{row['coefficient']:g}",
        f"{row['target_change']:+.3g}{interval}",
        f"{row['random_low']:+.3g} to {row['random_high']:+.3g}",
        f"{row['p']:.3f}",
        f"{row['kl']:.3g}",
        f"{row['random_kl']:.3g}",
        f"x {row['perplexity_ratio']:.3g}",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Make a vector, or load one; measure it, print the table, write JSON, CSV and the vector."""
    return run_main(_command, argv)


def _command(argv: list[str]) -> int:
    args = steering_options(argv)
    positive, negative = _contrast_texts(args)
    job = job_from_options(args, model_layers, command_line("steering.py", argv))
    steering = Steering(job.model, tokenizer=job.tokenizer)
    vector = _vector(steering, args, positive, negative)
    prompts = args.prompt or list(PROMPTS)
    curve = steering.curve(
        vector, prompts, [text.text for text in job.encoded], token=_token(args),
        coefficients=args.coefficients, mode=args.mode, start=args.start,
        num_random=args.num_random, seed=args.seed,
    )  # fmt: skip
    results = {**curve.to_dict(), "prompts": prompts}
    if args.generate:
        _, encoded = encode_for(job.model, job.tokenizer, prompts[:1])
        results["continuations"] = continuations(
            steering, vector, encoded[0], args.generate, args.coefficients, args.mode, args.start
        )
    path = _write(job, vector, results)
    print("\n".join(curve_table(curve.rows())))
    for name, text in results.get("continuations", {}).items():
        said = f"{name:>6}: {visible_controls(prompts[0] + text)}"
        print("\n".join(wrapped([said], indent=" " * 8)))
    print(f"Wrote {path}, steering_curve.csv, steering_vector.safetensors and a figure beside it.")
    return 0


def _write(job: Job, vector: SteeringVector, results: dict[str, Any]):
    folder = job.output_dir
    with written_together():
        path = write_step_results(job, "steering_results.json", results)
        write_csv(folder / "steering_curve.csv", results["by_coefficient"])
        vector.save(folder / "steering_vector.safetensors")
    write_figures(results, folder, formats=job.args.formats)
    return path


def _contrast_texts(args: Namespace) -> tuple[list[str], list[str]]:
    """The texts asked for; those of the suite where none are and no vector is."""
    found = [
        read_texts_file(named) if (named := getattr(args, f"{kind}_file")) else texts
        for kind in ("positive", "negative")
        for texts in [getattr(args, kind) or list({"positive": SEA, "negative": HOUSE}[kind])]
    ]
    return found[0], found[1]


def _token(args: Namespace) -> str | None:
    """The token followed; " sea" for the suite's own texts."""
    own = args.positive is None and args.positive_file is None and args.vector is None
    return " sea" if own and args.token is None else args.token


def _vector(
    steering: Steering, args: Namespace, positive: list[str], negative: list[str]
) -> SteeringVector:
    if args.vector is not None:
        return steering.load(args.vector)
    layers = list(find_mixers(steering.model))
    layer = layers[len(layers) // 2] if args.layer is None else args.layer
    return steering.vector(
        positive, negative, layer, args.site, position=args.position, method=args.method
    )


if __name__ == "__main__":
    raise SystemExit(main())
