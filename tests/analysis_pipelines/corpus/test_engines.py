"""Whoever runs the tasks, their parts have the same bits; what a dead worker held is done again."""

import importlib
import importlib.util
import inspect
import os
import signal
import subprocess
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import make_tiny_model, make_tiny_tokenizer
from corpus_cases import all_merged, finished, made_texts, opened, same_bits, tiny_settings

from analysis_pipelines.corpus import engines
from analysis_pipelines.corpus.engines import (
    check_engine,
    held_task,
    rank_and_world,
    run_datatrove,
    run_here,
    run_rank,
    run_ray,
    run_tasks,
    step_of,
    submit_slurm,
)
from suite_plumbing.bundled import SUITE_DIR
from suite_plumbing.corpus_texts import Source
from suite_plumbing.errors import AnalysisError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny_model().save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    settings = tiny_settings(folder, made_texts(6), tasks=4, importance_every=0)
    return settings, finished(opened(tmp_path_factory.mktemp("alone"), settings))


def test_tasks_are_divided_by_their_locks(run, tmp_path):
    settings, alone = run
    plan = opened(tmp_path, settings)
    with held_task(plan, 1) as is_held:
        assert is_held
        with held_task(plan, 1) as again:
            assert not again
        assert run_tasks(plan, 1, 2) == 3
        assert plan.missing() == [1]
        assert run_tasks(plan) == 0
    assert run_tasks(plan) == 1
    assert same_bits(all_merged(plan), alone)
    assert not list(plan.part_path(0).parent.glob("*.lock"))


def test_two_runs_share_a_folder(run, tmp_path):
    """Threads here, as two executors of two machines: each takes what the other does not hold."""
    settings, alone = run
    plan = opened(tmp_path, settings)
    other = threading.Thread(target=run_tasks, args=(plan, 1, 2))
    other.start()
    run_here(plan, 1)
    other.join()
    assert same_bits(all_merged(plan), alone)


def test_ranks_divide_the_tasks_and_rank_0_waits_for_all(run, tmp_path):
    settings, alone = run
    plan = opened(tmp_path, settings)
    others = threading.Thread(target=run_rank, args=(plan, 1, 2))
    others.start()
    assert run_rank(plan, 0, 2)
    others.join()
    assert not run_rank(plan, 1, 2)
    assert same_bits(all_merged(plan), alone)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8)),
        ({"RANK": "x", "WORLD_SIZE": "2"}, None),
    ],
)
def test_ranks_are_those_of_torchrun_or_srun(monkeypatch, variables, expected):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_and_world() == expected


def test_a_killed_worker_is_replaced_and_the_bits_are_the_same(run, tmp_path, monkeypatch, caplog):
    settings, alone = run
    plan = opened(tmp_path, settings)
    started = engines._started
    killed = []

    def start_and_kill_the_first(*arguments):
        process = started(*arguments)
        if not killed:
            killed.append(process.pid)
            threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
        return process

    monkeypatch.setattr(engines, "_started", start_and_kill_the_first)
    run_here(plan, 2)
    assert (
        f"worker 0 (process {killed[0]}) died with signal 9; its task is done again" in caplog.text
    )
    assert same_bits(all_merged(plan), alone)


def test_a_worker_that_stops_at_an_error_ends_the_run_and_keeps_what_is_done(
    run, tmp_path, monkeypatch
):
    settings, _ = run
    bad = replace(settings, source=Source(texts=("  ", *settings.source.texts)), max_failures=0)
    plan = opened(tmp_path, bad)
    with pytest.raises(AnalysisError, match=r"1 texts of one task cannot be read, the last being"):
        run_here(plan, 1)

    class Ended:
        pid, exitcode = 1, engines.FAILED

    monkeypatch.setattr(engines, "_started", lambda *_: Ended())
    with pytest.raises(
        AnalysisError, match="4 of 4 tasks are not done .* the same command goes on"
    ):
        run_here(plan, 2)
    more = replace(plan, settings=replace(bad, max_failures=1))
    run_here(more, 1)
    assert all_merged(more).counts["failures"] == 1


def test_workers_that_die_again_and_again_end_the_run(run, tmp_path, monkeypatch, caplog):
    settings, _ = run
    plan = opened(tmp_path, settings)

    class Died:
        pid, exitcode = 1, -9

    monkeypatch.setattr(engines, "_started", lambda *_: Died())
    with pytest.raises(AnalysisError, match="4 of 4 tasks are not done"):
        run_here(plan, 2)
    assert caplog.text.count("died with signal 9") == 2 + engines.MAX_RESTARTS


def test_an_engine_that_is_not_installed_is_refused(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name, *rest: None if name in ("datatrove", "ray") else real(name, *rest),
    )  # fmt: skip
    check_engine("processes")
    for engine in ("datatrove", "slurm", "ray"):
        with pytest.raises(ValueError, match=f"engine {engine} needs datatrove: pip install -r"):
            check_engine(engine)


def test_the_step_is_called_as_datatrove_calls_it(run, tmp_path):
    settings, alone = run
    plan = opened(tmp_path, settings)
    for rank in (3, 1, 0, 2):
        assert list(step_of(plan)(None, rank, 4)) == []
    assert same_bits(all_merged(plan), alone)


def test_datatroves_executor_gives_the_same_bits_and_goes_on(run, tmp_path):
    pytest.importorskip("datatrove")
    settings, alone = run
    plan = opened(tmp_path, settings)
    run_datatrove(plan, 1)
    assert same_bits(all_merged(plan), alone)
    before = plan.part_path(0).stat().st_mtime_ns
    plan.part_path(2).unlink()
    run_datatrove(plan, 1)
    assert plan.part_path(0).stat().st_mtime_ns == before
    assert same_bits(all_merged(plan), alone)


@pytest.mark.parametrize(
    ("name", "made", "asked"),
    [
        ("Slurm", lambda plan: submit_slurm(plan, 8, "1:00:00", "gpu"),
         {"time": "1:00:00", "partition": "gpu", "gpus_per_task": 1, "workers": 8, "tasks": 4,
          "cpus_per_task": 1, "mem_per_cpu_gb": 8, "qos": None}),
        ("Ray", lambda plan: run_ray(plan, 8), {"workers": 8, "tasks": 4}),
    ],
)  # fmt: skip
def test_slurm_and_ray_are_given_the_step(run, tmp_path, monkeypatch, name, made, asked):
    """By stand-ins: neither is here. Where datatrove is, its own class has to take the words."""
    settings, alone = run
    plan = opened(tmp_path, settings)
    given = {}

    class Executor:
        def __init__(self, **words):
            given.update(words)

        def run(self):
            for rank in range(given["tasks"] if name == "Ray" else 0):
                list(given["pipeline"][0](None, rank, given["tasks"]))

    real = importlib.import_module
    module = f"datatrove.executor.{name.lower()}"
    found = SimpleNamespace(**{f"{name}PipelineExecutor": Executor})
    monkeypatch.setattr(
        importlib, "import_module", lambda other: found if other == module else real(other)
    )
    made(replace(plan, settings=replace(settings, device="cuda")) if name == "Slurm" else plan)
    assert asked.items() <= given.items()
    assert given["skip_completed"] is False
    if name == "Ray":
        assert same_bits(all_merged(plan), alone)
    if importlib.util.find_spec("datatrove") is not None:
        actual = getattr(real(module), f"{name}PipelineExecutor")
        inspect.signature(actual.__init__).bind(None, **given)


def test_a_job_of_slurm_finds_the_interpreter_and_the_suite(run, tmp_path, monkeypatch):
    """datatrove's launcher lies beside the interpreter, which need not be on the caller's PATH."""
    folder = tmp_path / "an env" / "bin"
    folder.mkdir(parents=True)
    (folder / "launch_pickled_pipeline").write_text("#!/bin/sh\necho $PYTHONPATH\n")
    (folder / "launch_pickled_pipeline").chmod(0o755)
    monkeypatch.setattr(engines.sys, "executable", str(folder / "python"))
    script = f"{engines._environment()}\nlaunch_pickled_pipeline"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{SUITE_DIR}:")


def test_a_worker_ends_when_the_one_that_started_it_is_gone(monkeypatch):
    parents = iter([10, 10, 1])
    ended = []
    monkeypatch.setattr(engines.os, "getppid", lambda: next(parents))
    monkeypatch.setattr(engines.os, "_exit", ended.append)
    check = engines._while_parent_lives()
    check()
    assert not ended
    check()
    assert ended == [engines.FAILED]
