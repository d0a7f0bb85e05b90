"""Tables of faithfulness: rows with the best method first, strict JSON, a figure."""

import json

from attribution_faithfulness import Estimate, FaithfulnessTable, MethodFaithfulness
from causal_interventions import faithfulness_tables
from result_views.faithfulness_rows import CURVE_MEASURES


def method(delta: float) -> MethodFaithfulness:
    measures = {name: Estimate(0.5, None, None, 3) for name in CURVE_MEASURES}
    measures["delta_af"] = Estimate(delta, delta - 1, delta + 1, 3)
    return MethodFaithfulness(
        measures, {"random": measures}, {"occlusion": Estimate(0.5, None, None, 3)},
        {"median": None, "max": None}, None, [0.0, 1.0], [0.0, 0.5], {"delta_af": [delta] * 3},
        [Estimate(0.1, None, None, 3)],
    )  # fmt: skip


def table() -> FaithfulnessTable:
    return FaithfulnessTable(
        {"worse": method(1.0), "better": method(2.0)}, [0.0, 1.0], {"name": "logit"}, "mean", "one",
        3, 3, 90, 4, 0, 0,
    )  # fmt: skip


def test_rows_have_the_best_method_first():
    frame = table().to_dataframe()
    assert frame["method"].tolist() == ["better", "worse"]
    assert frame["delta_af"].tolist() == [2.0, 1.0]
    assert "better" in table()._repr_html_()


def test_the_table_is_strict_json_with_its_figure():
    written = json.loads(json.dumps(table().to_dict(), allow_nan=False))
    assert written["methods"]["better"]["measures"]["delta_af"]["high"] == 3.0
    assert table().figure().get_suptitle()


def test_the_command_passes_them_on():
    assert FaithfulnessTable is faithfulness_tables.FaithfulnessTable
