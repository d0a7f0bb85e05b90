"""The atlas as a file: one page, or a page beside its data, with nothing of a text as HTML."""

import base64
import json
import re
import zlib

from atlas_cases import PIECES, made_contents
from defined import known

from result_views.report.atlas import DATA_FOLDER, write_atlas


def unpacked(data):
    return json.loads(zlib.decompress(base64.b64decode(data)))


def test_a_small_atlas_is_one_page_that_holds_its_data(tmp_path):
    path = write_atlas(made_contents(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["atlas.html"]
    page = path.read_text(encoding="utf-8")
    found = dict(re.findall(r'id="data-(\w+)">"([^"]+)"</script>', page))
    assert set(found) == {"tokens", "layer_0", "layer_5"}
    assert unpacked(found["tokens"])["pieces"] == PIECES
    assert unpacked(found["layer_5"]) == made_contents()["layers"]["5"]
    assert "<i>tiny" not in page
    assert "default-src 'none'" in page
    assert " file:" not in page


def test_a_large_atlas_is_a_page_beside_its_data_and_old_data_goes(tmp_path):
    path = write_atlas(made_contents(), tmp_path, max_page=100)
    names = {p.name for p in (tmp_path / DATA_FOLDER).iterdir()}
    assert names == {"tokens.js", "layer_0.js", "layer_5.js"}
    call = (tmp_path / DATA_FOLDER / "layer_0.js").read_text()
    name, data = known(re.fullmatch(r'atlasData\("(\w+)", "([^"]+)"\);\n', call)).groups()
    assert name == "layer_0"
    assert unpacked(data) == made_contents()["layers"]["0"]
    assert "'self' file:" in path.read_text(encoding="utf-8")
    fewer = made_contents()
    del fewer["layers"]["5"]
    write_atlas(fewer, tmp_path, max_page=100)
    assert {p.name for p in (tmp_path / DATA_FOLDER).iterdir()} == {"tokens.js", "layer_0.js"}
    write_atlas(fewer, tmp_path)
    assert not list((tmp_path / DATA_FOLDER).iterdir())
