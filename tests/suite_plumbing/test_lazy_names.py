"""Names passed on by a folder: loaded when asked for, and no sooner."""

import subprocess
import sys
from pathlib import Path

import pytest

import mamba_mixers
import selective_scan
from suite_plumbing.lazy_names import lazy_names

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_name_is_that_of_its_module():
    from mamba_mixers.running import fast_scan

    assert mamba_mixers.fast_scan is fast_scan
    assert "fast_scan" in dir(mamba_mixers)
    assert "fast_scan" in mamba_mixers.__all__
    # A function of the same name as its package.
    assert callable(selective_scan.selective_scan)
    assert callable(selective_scan.implicit_attention)


def test_an_unknown_name_is_an_attribute_error():
    get, _, names = lazy_names("selective_scan", {"selective_scan.scan": ["selective_scan"]})
    assert names == ["selective_scan"]
    with pytest.raises(AttributeError, match="'selective_scan' has no attribute 'mamba'"):
        get("mamba")


def test_importing_a_folder_loads_none_of_its_modules():
    code = "import sys, mamba_mixers, selective_scan, result_views; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
