"""What patching found: effects with intervals over pairs, beside a control; and to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from suite_plumbing.messages import quoted
from suite_plumbing.result_files import finite_or_none, table_html
from token_statistics.association import spearman
from token_statistics.intervals import MeanInterval, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Bounds(NamedTuple):
    """95 % interval of effects, as the tables of ``effect``; nan for fewer than 5 pairs."""

    low: pd.DataFrame
    high: pd.DataFrame


@dataclass(frozen=True, eq=False)
class PatchingResult:
    """Metric of every patched run, of n pairs whose texts have l tokens.

    An effect is the pairs' mean of m - m_corrupt over that of m_clean - m_corrupt: 0 is the corrupt
    run, 1 the clean one. As a ratio of means it is not ruled by pairs on which both runs agree.
    """

    metric: str
    direction: str
    """ "denoising" or "noising" """
    tokens: list[str] | None
    """(l,) spelling of the corrupt text's tokens, where all pairs have the same; else None"""
    layers: dict[str, list[int]]
    """by site, the layers patched"""
    patched: dict[str, Tensor]
    """by site, (n, layers, l) metric, float64; nan where no token is aligned"""
    unrelated: dict[str, Tensor]
    """the same with values from another pair's run, at the same token; empty without a control"""
    clean: Tensor
    """(n,) metric of the clean runs"""
    corrupt: Tensor
    """(n,)"""
    reason: str | None
    """why there is no control; None where there is one"""
    seed: int

    @property
    def effect(self) -> dict[str, pd.DataFrame]:
        """By site, a table with a row for each layer and a column for each token."""
        return {site: self._table(site, self._means(x)) for site, x in self.patched.items()}

    @property
    def control(self) -> dict[str, pd.DataFrame]:
        """As ``effect``, of values from unrelated pairs: what any other run's value does."""
        return {site: self._table(site, self._means(x)) for site, x in self.unrelated.items()}

    @property
    def interval(self) -> dict[str, Bounds]:
        """95 % over pairs, by the bootstrap-t of the ratio's linear part (``mean_interval``)."""
        return {site: self._bounds(site, x) for site, x in self.patched.items()}

    def at(self, site: str, tokens: Tensor, *, control: bool = False) -> dict[int, MeanInterval]:
        """By layer, the effect at a token of each pair's own (n,): where a role sits, say."""
        values = (self.unrelated if control else self.patched)[site]
        chosen = values[torch.arange(len(values)), :, tokens]
        return {
            layer: self.ratio(chosen[:, number]) for number, layer in enumerate(self.layers[site])
        }

    def ratio(self, patched: Tensor) -> MeanInterval:
        """Effect of patched metrics (n,), with its interval over pairs.

        The ratio R of means of a and b is the mean of R + (a - R b) / mean b, whose interval this
        is (the delta method; Cochran 1977, Sampling Techniques, section 6.3).
        """
        a, b = (patched - self.corrupt).numpy(), (self.clean - self.corrupt).numpy()
        known = np.isfinite(a)
        a, b = a[known], b[known]
        if not len(a):
            return MeanInterval(None, None, None, 0, "no token is aligned")
        share = a.mean() / b.mean()
        return mean_interval(share + (a - share * b) / b.mean(), seed=self.seed)

    def __repr__(self) -> str:
        sites, count = ", ".join(self.patched), len(self.clean)
        pairs = "1 pair" if count == 1 else f"{count} pairs"
        return f"<PatchingResult of {sites}: {pairs}, {self.direction}, {self.metric}>"

    def rows(self) -> list[dict[str, Any]]:
        """One row a site, layer and token, for a table."""
        effects, controls, bounds = self.effect, self.control, self.interval
        rows = []
        for site, table in effects.items():
            for layer, token in ((i, j) for i in table.index for j in table.columns):
                cells = {"effect": table, "low": bounds[site].low, "high": bounds[site].high}
                cells["control"] = controls[site] if site in controls else table * np.nan
                values = {k: finite_or_none(v.loc[layer, token]) for k, v in cells.items()}
                rows.append({"site": site, "layer": layer, "token": token, **values})
        return rows

    def to_dataframe(self) -> pd.DataFrame:
        """``rows`` as a table."""
        return pd.DataFrame(self.rows())

    def figure(self) -> Figure:
        """A map of layers and tokens for each site."""
        # Imported here: an analysis does without matplotlib.
        from result_views.figures.patching_figures import figure_patching

        return figure_patching(self.to_dict())

    def _repr_html_(self) -> str:
        top = self.to_dataframe().sort_values("effect", ascending=False)
        return table_html(top.head(20))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: by site the layers and (layers, l) tables; null where nothing is known."""
        effects, controls, bounds = self.effect, self.control, self.interval
        sites = {
            site: {
                "layers": self.layers[site],
                "effect": _nested(effects[site]),
                "low": _nested(bounds[site].low),
                "high": _nested(bounds[site].high),
                "control": _nested(controls[site]) if site in controls else None,
            }
            for site in self.patched
        }
        return {
            "metric": self.metric,
            "direction": self.direction,
            "num_pairs": len(self.clean),
            "tokens": self.tokens,
            "clean": float(self.clean.mean()),
            "corrupt": float(self.corrupt.mean()),
            "sites": sites,
            "control_reason": self.reason,
        }

    def tensors(self) -> dict[str, Tensor]:
        """What safetensors keep: the metric of every patched run, and of the runs themselves."""
        named = {f"patched.{site}": x for site, x in self.patched.items()}
        named |= {f"unrelated.{site}": x for site, x in self.unrelated.items()}
        return named | {"clean": self.clean, "corrupt": self.corrupt}

    def _means(self, patched: Tensor) -> np.ndarray:
        gained = (patched - self.corrupt[:, None, None]).numpy()
        known = np.isfinite(gained)
        whole = np.where(known, (self.clean - self.corrupt).numpy()[:, None, None], 0.0).sum(0)
        total = np.where(known, gained, 0.0).sum(0)
        return np.divide(total, whole, out=np.full_like(total, np.nan), where=known.any(0))

    def _bounds(self, site: str, patched: Tensor) -> Bounds:
        ends = np.full((2, *patched.shape[1:]), np.nan)
        for i, j in np.ndindex(*patched.shape[1:]):
            found = self.ratio(patched[:, i, j])
            ends[:, i, j] = [np.nan if x is None else x for x in (found.low, found.high)]
        return Bounds(*(self._table(site, end) for end in ends))

    def _table(self, site: str, values: np.ndarray) -> pd.DataFrame:
        index = pd.Index(self.layers[site], name="layer")
        return pd.DataFrame(values, index, pd.RangeIndex(values.shape[1], name="token"))


def _nested(table: pd.DataFrame) -> list[list[float | None]]:
    return [[finite_or_none(x) for x in row] for row in table.to_numpy().tolist()]


def check_apart(metric: str, clean: Tensor, corrupt: Tensor) -> None:
    """ValueError where the metric does not tell clean from corrupt runs, in the mean over pairs."""
    apart = float((clean - corrupt).mean())
    size = float(torch.maximum(clean.abs(), corrupt.abs()).mean())
    # Rounding of float32 logits.
    if abs(apart) <= 1e-6 * size or apart == 0:
        raise ValueError(
            f"{metric} is {float(clean.mean()):.6g} on the clean and {float(corrupt.mean()):.6g} "
            "on the corrupt texts: there is no effect to share out; choose other answers or texts"
        )


@dataclass(frozen=True, eq=False)
class AttributionResult:
    """Effects of patches to first order, on the scale of ``PatchingResult``."""

    nodes: PatchingResult
    """what exact patching would find if the metric were linear: ``nodes.effect["state"]``"""
    steps: int
    """points of the path that the gradient is the mean of; 0: the base run's alone"""
    edges: Tensor
    """(n, L + 1, L + 1, l) change of the metric by writer (the embedding, then the layers), reader
    (the layers, then the logits) and token"""
    maps: dict[int, Tensor]
    """by layer with an SSM, (n, l, l) change by what a query (row) takes from a source"""
    neurons: dict[int, Tensor]
    """by layer with an SSM, (n, d_inner) change by one neuron at every token"""

    def __repr__(self) -> str:
        return f"<AttributionResult: {repr(self.nodes)[1:-1]}, to first order>"

    @property
    def edge_effect(self) -> pd.DataFrame:
        """Effect of each edge, summed over tokens: a row a writer, a column a reader."""
        names = list(range(self.edges.shape[1] - 1))
        table = self.share(self.edges.sum(3)).numpy()
        table[np.tril_indices(len(table), -1)] = np.nan
        writers = pd.Index(["embedding", *names], name="writer")
        return pd.DataFrame(table, writers, pd.Index([*names, "logits"], name="reader"))

    def token_effect(self, layer: int) -> pd.DataFrame:
        """Effect of what each query (row) takes from each source (column) in a layer's state."""
        if layer not in self.maps:
            raise ValueError(f"layer is {quoted(layer)}; layers with an SSM are {[*self.maps]}")
        table = pd.DataFrame(self.share(self.maps[layer]).numpy())
        return table.rename_axis(index="query", columns="source")

    def neuron_effect(self, layer: int) -> pd.Series:
        """Effect of each neuron of a layer, at all tokens at once."""
        if layer not in self.neurons:
            raise ValueError(f"layer is {quoted(layer)}; layers with an SSM are {[*self.neurons]}")
        return pd.Series(self.share(self.neurons[layer]).numpy()).rename_axis("neuron")

    def share(self, change: Tensor) -> Tensor:
        """Changes (n, ...) of the metric as an effect: their mean over that of clean - corrupt."""
        return change.mean(0) / float((self.nodes.clean - self.nodes.corrupt).mean())

    def agreement(self, exact: PatchingResult) -> dict[str, float | None]:
        """By site, the Spearman correlation with exact effects over layers and tokens.

        Of the places where either effect is not 0; None for fewer than 3 of them, or equal ranks.
        Raises ValueError for another metric, direction or text.
        """
        mine = self.nodes
        same = (mine.metric, mine.direction) == (exact.metric, exact.direction)
        if not same or not torch.equal(mine.clean, exact.clean):
            raise ValueError(
                f"exact is of {exact.metric}, {exact.direction}, {len(exact.clean)} pairs; pass "
                "the result of the same pairs, metric and direction"
            )
        return {
            site: _rank_agreement(mine.effect[site], exact.effect[site])
            for site in mine.patched
            if site in exact.patched
        }

    def to_dict(self, exact: PatchingResult | None = None) -> dict[str, Any]:
        """For JSON; ``exact`` adds the agreement with it."""
        edges = self.edge_effect
        return {
            **self.nodes.to_dict(),
            "steps": self.steps,
            "edges": [
                {"writer": writer, "reader": reader, "effect": float(edges.loc[writer, reader])}
                for writer in edges.index for reader in edges.columns
                if np.isfinite(edges.loc[writer, reader])
            ],
            "agreement": None if exact is None else self.agreement(exact),
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """What safetensors keep."""
        named = {f"attribution.{site}": x for site, x in self.nodes.patched.items()}
        named |= {f"token_map.layer_{layer}": x for layer, x in self.maps.items()}
        named |= {f"neurons.layer_{layer}": x for layer, x in self.neurons.items()}
        return named | {"edges": self.edges}


def _rank_agreement(a: pd.DataFrame, b: pd.DataFrame) -> float | None:
    both = np.stack([a.to_numpy().ravel(), b.to_numpy().ravel()])
    both = both[:, np.isfinite(both).all(0)]
    both = both[:, both.any(0)]
    if both.shape[1] < 3 or np.ptp(both, axis=1).min() == 0:
        return None
    return finite_or_none(spearman(both[0], both[1]))
