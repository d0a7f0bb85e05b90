"""The table by layer: values where steps have results, None where they have not."""

from analysis_pipelines.memory_table import memory_by_layer


def test_values_are_those_of_the_steps():
    sections = {
        "delta": {"layer_3": {"memory": {"persistence": 0.9, "delta": {"mean": 0.2}}}},
        "memory_kernel": {"error": {"type": "AnalysisError", "message": "no"}},
        "causal_memory": {
            "reset": {
                "layers": {"layer_3": {"kl": [1.0, None, 3.0]}},
                "kernel_agreement": {"layer_3": {"spearman": 0.4}},
            }
        },
        "delta_neurons": {
            "layer_3": {"delta_with_memory": {"value": 0.1, "null_low": -0.2, "null_high": 0.2}}
        },
    }
    (row,) = memory_by_layer(sections, [3])
    assert (row["layer"], row["persistence"], row["mean_delta"]) == (3, 0.9, 0.2)
    assert (row["reset_kl"], row["reset_kernel_agreement"]) == (2.0, 0.4)
    assert (row["delta_memory"], row["delta_memory_high"]) == (0.1, 0.2)
    assert row["kernel_mean_lag"] is row["state_write"] is row["knockout_kl"] is None


def test_lags_are_those_of_the_kernel_of_all_texts():
    pooled = {"mean_lag": 14.0, "median_lag": 9.0, "lag_90": 44.0}
    own = {"mean_lag": {"mean": 0.7}, "lag_90": {"mean": 2.0}}
    kernel = {"pooled": pooled, "limited_by_text": True, **own}
    (row,) = memory_by_layer({"memory_kernel": {"layer_3": kernel}}, [3])
    assert [row[f"kernel_{name}"] for name in pooled] == [14.0, 9.0, 44.0]
    assert row["kernel_limited_by_text"] is True


def test_rows_without_results_have_the_same_columns():
    (empty,) = memory_by_layer({}, [0])
    assert {value for name, value in empty.items() if name != "layer"} == {None}
