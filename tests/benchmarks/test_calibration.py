"""A short calibration: no more false findings than promised, and planted correlations found."""

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks import calibration
from token_statistics.findings import ABOVE_CHANCE, NOT_SUPPORTED, Finding

SEEDS = 40


@pytest.mark.parametrize("phi", list(calibration.NOISE.values()))
def test_noise_is_found_as_rarely_as_promised(phi):
    results = [calibration.false_on_noise(phi, seed) for seed in range(SEEDS)]
    # At most 5 % each: more than this happen with a probability of 0.1 % for one kind of finding.
    limit = binom.ppf(0.999, SEEDS, 0.05)
    for label in results[0]:
        corrected, plain = np.sum([result[label] for result in results], axis=0)
        assert corrected <= limit, label
        assert plain >= corrected, label
    # What is often done finds a pair in every noise: 256 tests at 5 %.
    pairs = "a pair of channels at a false discovery rate of 5 %"
    assert all(result[pairs][1] for result in results)


def test_untrained_models_beside_their_like_have_few_findings():
    rng = np.random.default_rng(0)
    untrained = [[finding(value)] for value in rng.random(60)]
    shares = calibration.false_on_untrained(untrained)
    beside, alone = shares["c"]
    assert alone == 1.0  # the rule holds in all of them, whatever training did
    # Each is above 19 others with probability 1 / 20; 3 of 60 expected, 9 or more in 0.4 %.
    assert beside <= 8 / 60


def finding(value):
    """A finding that is above its null."""
    null = (-1.0, 0.0)
    return Finding("c", "s", float(value), None, null, 3, "texts", ABOVE_CHANCE, None, "p",
                   chance_p=0.001)  # fmt: skip


def test_findings_that_no_null_supports_stay_unsupported():
    none = [[Finding("c", "s", float(v), None, (0.0, 9.0), 3, "texts", NOT_SUPPORTED, None, "p")]
            for v in range(40)]  # fmt: skip
    assert calibration.false_on_untrained(none)["c"] == (0.0, 0.0)


def test_strong_correlations_are_found_and_few_false_ones():
    found, false = np.mean([calibration.power(0.5, 1000, seed) for seed in range(5)], axis=0)
    assert found == 1.0  # r = 0.5 over 1,000 tokens is 18 standard errors from 0
    assert false <= 0.2  # one false pair beside four true ones in a seed is 0.2
    weak, _ = np.mean([calibration.power(0.1, 200, seed) for seed in range(5)], axis=0)
    assert weak < found


def test_the_findings_of_untrained_models_are_those_of_the_analysis():
    first, again = (calibration.untrained_findings([3], num_tokens=45) for _ in range(2))
    assert first == again
    assert any(row.value is not None for row in first[0])


def test_cases_say_what_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(calibration.noise_cases, "CASES", {"noise, 1 text": None})
    monkeypatch.setattr(calibration.noise_cases, "OTHER_PASSAGES", {"others": 1})
    labels = [*(calibration.LABELS[name] for name in calibration.TESTS), calibration.PAIR_LABEL]
    found = dict.fromkeys(labels, False)
    monkeypatch.setattr(calibration.noise_cases, "false_in_case", lambda *_: found)
    refused = dict.fromkeys(labels)
    monkeypatch.setattr(calibration.noise_cases, "false_on_other_passages", lambda *_: refused)
    rows = calibration.case_table(2, tmp_path).splitlines()
    assert rows[2] == "| noise, 1 text |" + " 0.0% |" * 5 + " 2 of 2 |"
    assert rows[3] == "| others |" + " refused |" * 5 + " 0 of 2 |"
    # What is kept is not made again.
    monkeypatch.setattr(calibration.noise_cases, "false_in_case", lambda *_: refused)
    assert calibration.case_table(2, tmp_path).splitlines() == rows


def test_tables_have_a_row_a_finding(monkeypatch):
    monkeypatch.setattr(calibration, "POWER_TOKENS", (60,))
    table = calibration.noise_table(2, lambda phi, seed: {"a": (seed == 0, True)})
    assert table.splitlines()[2] == "| a | 50.0% | 100.0% | 50.0% | 100.0% |"
    assert len(calibration.power_table(1).splitlines()) == 3
    monkeypatch.setattr(calibration, "PLANTED", {"a half-life": lambda seed: seed / 2})
    assert calibration.planted_table(2).splitlines()[-1] == "| a half-life | 25.0% |"
    untrained = calibration.untrained_table({"c": (0.0, 1.0)})
    assert untrained.splitlines()[-1] == "| mean of all claims | 0.0% | 100.0% |"
