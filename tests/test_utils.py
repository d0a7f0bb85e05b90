"""The names for notebooks are all there."""

import utils
from suite_plumbing import models, result_files, texts


def test_every_name_is_there_and_is_that_of_its_module():
    for name in utils.__all__:
        assert hasattr(utils, name)
    assert utils.load_model is models.load_model
    assert utils.encode_texts is texts.encode_texts
    assert utils.write_json is result_files.write_json
