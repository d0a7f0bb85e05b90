"""The table of steering has a row for every site, layer and coefficient."""

from functools import partialmethod

from conftest import make_tiny_model

from benchmarks import steering as benchmark
from benchmarks.family_models import make_tiny_tokenizer
from causal_interventions.steering_vectors import SITES
from steering import Steering


def test_every_site_and_layer_is_measured(monkeypatch):
    monkeypatch.setattr(benchmark, "PROMPTS", ("a tide pool", "the lamp"))
    # The cost is a mean over tokens of other texts: one short text gives every row as well.
    curve = partialmethod(Steering.curve, unrelated="the tide and the lamp")
    monkeypatch.setattr(Steering, "curve", curve)
    steering = Steering(make_tiny_model(), tokenizer=make_tiny_tokenizer())
    rows = benchmark.measured(steering, [1, 3], "a", 20)
    assert [(row["site"], row["layer"], row["coefficient"]) for row in rows] == [
        (site, layer, coefficient)
        for site in SITES for layer in (1, 3) for coefficient in benchmark.COEFFICIENTS
    ]  # fmt: skip
    lines = benchmark.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert {line.count("|") for line in lines} == {9}
