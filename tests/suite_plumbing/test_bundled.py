"""The demo model is found by its name from anywhere; a user's own folder of it goes first."""

from pathlib import Path

import pytest

from ssm_component_extractor import SSMComponentExtractor
from suite_plumbing.bundled import DEMO_MODEL_PATH, SUITE_DIR, model_place


def test_the_bundled_model_is_where_it_is_said_to_be() -> None:
    assert DEMO_MODEL_PATH == SUITE_DIR / "demo_model"
    assert (DEMO_MODEL_PATH / "config.json").is_file()


def test_its_name_alone_means_it_where_no_folder_has_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_place("demo_model") == str(DEMO_MODEL_PATH)
    for other in ("./demo_model", "demo_model_2", "org/demo_model", str(tmp_path / "demo_model")):
        assert model_place(other) == other
    (tmp_path / "demo_model").write_text("a file")
    assert model_place("demo_model") == str(DEMO_MODEL_PATH)
    (tmp_path / "demo_model").unlink()
    (tmp_path / "demo_model").mkdir()
    assert model_place("demo_model") == "demo_model"


def test_a_class_takes_it_by_name_with_its_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    components = SSMComponentExtractor("demo_model").extract_ssm_components([0], "The old net.")
    assert components[0].replay_error < 1e-5  # float32


def test_a_users_own_folder_of_that_name_goes_first(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model_dir.rename(tiny_model_dir.parent / "demo_model")
    monkeypatch.chdir(tiny_model_dir.parent)
    assert SSMComponentExtractor("demo_model").model.config.hidden_size == 32  # make_tiny_model's
