"""A run has an id of its own, which everything it writes carries."""

from suite_plumbing.commands import run_main
from suite_plumbing.provenance import provenance
from suite_plumbing.runs import current_run, new_run_id, one_run


def test_results_of_a_run_have_its_id_and_others_one_of_their_own(tiny_model):
    with one_run() as run:
        assert current_run() is run
        assert provenance(tiny_model)["run"]["id"] == run.id
        assert provenance(tiny_model)["run"]["id"] == run.id
    assert current_run() is None
    assert len({provenance(tiny_model)["run"]["id"] for _ in range(3)} | {run.id}) == 4


def test_ids_do_not_hang_on_the_seed_of_a_run():
    import random

    random.seed(0)
    first = new_run_id()
    random.seed(0)
    assert new_run_id() != first
    assert len(first) == 16


def test_a_command_is_a_run():
    runs = []
    assert run_main(lambda _: runs.append(current_run()) or 0, []) == 0
    assert run_main(lambda _: runs.append(current_run()) or 0, []) == 0
    assert len({run.id for run in runs}) == 2
