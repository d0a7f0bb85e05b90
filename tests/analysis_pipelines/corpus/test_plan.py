"""What a run was asked for: stored, compared, and without what does not decide over numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
from corpus_cases import opened, tiny_settings

from analysis_pipelines.corpus.plan import PLAN_NAME, configuration, open_plan, stored_tasks

SETTINGS = tiny_settings(Path("model"), ["one text", "another"])


def test_the_same_settings_open_the_folder_again(tmp_path):
    first = opened(tmp_path, SETTINGS)
    assert stored_tasks(tmp_path) == 3
    assert opened(tmp_path, replace(SETTINGS, max_failures=7)).digest == first.digest
    assert first.missing() == [0, 1, 2]
    assert stored_tasks(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"tasks": 4}, "tasks was 3, is 4"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"layers": (1,)}, "layers was [0, 2, 3], is [1]"),
        ({"source": replace(SETTINGS.source, texts=("other",))}, "texts.texts was "),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path, changed, named):
    opened(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="holds a run of another configuration") as error:
        opened(tmp_path, replace(SETTINGS, **changed))
    assert named in str(error.value)


def test_other_weights_are_another_configuration(tmp_path):
    opened(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="weights_sha256 was weights of the test, is others"):
        open_plan(tmp_path, SETTINGS, "others", "cpu")
    assert configuration(SETTINGS, "w", "cuda:1")["device"] == "cuda"


def test_a_damaged_plan_is_said_to_be_one(tmp_path):
    opened(tmp_path, SETTINGS)
    (tmp_path / PLAN_NAME).write_text("{")
    with pytest.raises(ValueError, match=r"corpus_plan\.json.* is not strict JSON"):
        opened(tmp_path, SETTINGS)
