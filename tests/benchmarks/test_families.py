"""What is installed to try another version of transformers."""

import pytest

from benchmarks.families import FAMILY_TESTS, ROOT, requirements


@pytest.mark.parametrize("version", ["4.57.6", "5.24.0"])
def test_a_pinned_version_gets_all_of_its_pins(version):
    wanted = requirements(version)
    assert f"transformers=={version}" in wanted
    assert any(pin.startswith("tokenizers==") for pin in wanted)
    assert any(pin.startswith("pytest==") for pin in wanted)
    assert len({pin.split("==")[0] for pin in wanted}) == len(wanted)


def test_another_version_chooses_what_follows_it():
    wanted = requirements("5.99.0")
    assert "transformers==5.99.0" in wanted
    assert not any(pin.startswith(("tokenizers", "huggingface_hub")) for pin in wanted)
    assert any(pin.startswith("torch==") for pin in wanted)


def test_the_tests_of_the_families_are_there():
    assert all((ROOT / path).is_file() for path in FAMILY_TESTS)
