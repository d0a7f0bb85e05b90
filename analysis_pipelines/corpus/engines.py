"""Who runs the tasks of a corpus: this process, processes of its own, datatrove, or ranks.

Every worker goes through the tasks whose part is missing and takes those that nobody holds: a task
is held by the lock of a file, which goes with the process that has it, however that ends. So any
number of workers, of one machine or several that share a folder, divide the tasks among them; what
a dead one held is taken by another, and the same command again goes on with what is missing.
"""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.util
import logging
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from analysis_pipelines.corpus.plan import Plan
from analysis_pipelines.corpus.step import analyse
from suite_plumbing.bundled import SUITE_DIR
from suite_plumbing.errors import AnalysisError
from suite_plumbing.result_files import try_lock

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""Workers that are started in place of dead ones, over a run."""

FAILED = 1
"""Exit status of a worker that stopped at an error of its own, which it has told."""

_POLL = 0.2  # seconds

NEEDS_EXTRA = "needs datatrove: pip install -r requirements-scale.txt"


def rank_and_world() -> tuple[int, int] | None:
    """This process's rank and the number of ranks, as torchrun or srun set them; None for one."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if os.environ.get(rank, "").isdigit() and os.environ.get(world, "").isdigit():
            found = int(os.environ[rank]), int(os.environ[world])
            return found if found[1] > 1 else None
    return None


def run_tasks(plan: Plan, worker: int = 0, workers: int = 1) -> int:
    """Do the missing tasks that nobody holds, this worker's own first; how many were done here.

    Returns when every part is there or held by another process.
    """
    own = [task for task in range(plan.settings.tasks) if task % workers == worker]
    others = [task for task in range(plan.settings.tasks) if task % workers != worker]
    watch = _while_parent_lives() if multiprocessing.parent_process() else lambda: None
    done = 0
    for task in [*own, *others]:
        if plan.part_path(task).is_file():
            continue
        with held_task(plan, task) as is_held:
            if is_held and not plan.part_path(task).is_file():
                analyse(None, task, plan.settings.tasks, plan=plan, watch=watch)
                logger.info("task %d of %d is done", task, plan.settings.tasks)
                done += 1
    return done


@contextmanager
def held_task(plan: Plan, task: int) -> Iterator[bool]:
    """Hold a task; False where another process has it.

    A file system that knows no locks has each task held by whoever asks: two workers may then do
    the same task, to the same bits.
    """
    with _locked_file(plan.part_path(task).with_suffix(".lock")) as is_held:
        yield is_held


def _while_parent_lives() -> Callable[[], None]:
    """A check that ends this process once the one that started it is gone."""
    parent = os.getppid()

    def check() -> None:
        if os.getppid() != parent:
            os._exit(FAILED)

    return check


def run_here(plan: Plan, workers: int) -> None:
    """Run what is missing on this machine: in this process, or in ``workers`` processes of its own.

    A worker that dies (killed, out of memory) is replaced, up to MAX_RESTARTS times over the run.
    Tasks that another run of the same command holds are waited for. Raises AnalysisError, with what
    is done kept, when a worker stopped at an error or too many died.
    """
    if workers > 1:
        _run_processes(plan, workers)
    wait_for_all(plan)


def wait_for_all(plan: Plan) -> None:
    """Do what nobody holds until every part is there."""
    while plan.missing():
        if not run_tasks(plan):
            time.sleep(5 * _POLL)


def _run_processes(plan: Plan, workers: int) -> None:
    running = {worker: _started(plan, worker, workers) for worker in range(workers)}
    restarts, failed = 0, False
    try:
        while running:
            time.sleep(_POLL)
            for worker, process in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[worker]
                failed = failed or process.exitcode == FAILED
                if process.exitcode in (0, FAILED):
                    continue
                logger.warning(
                    "worker %d (process %s) died with %s; its task is done again", worker,
                    process.pid, _ending(process.exitcode),
                )  # fmt: skip
                if restarts < MAX_RESTARTS and plan.missing():
                    restarts += 1
                    running[worker] = _started(plan, worker, workers)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    if failed or restarts == MAX_RESTARTS:
        _check_complete(plan)


def _started(plan: Plan, worker: int, workers: int) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(plan, worker, workers, logging.getLogger().level), daemon=True
    )
    process.start()
    return process


def _work(plan: Plan, worker: int, workers: int, level: int) -> None:
    """A worker process: an error of the data ends it with a line, anything else as it comes.

    An interrupt at the terminal reaches every process; the one that started this one ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=level, format="%(message)s")
    try:
        run_tasks(plan, worker, workers)
    except (AnalysisError, ValueError, OSError) as error:
        logger.error("worker %d stopped: %s", worker, error)
        raise SystemExit(FAILED) from None


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _check_complete(plan: Plan) -> None:
    if missing := plan.missing():
        raise AnalysisError(
            f"{len(missing)} of {plan.settings.tasks} tasks are not done (the first is "
            f"{missing[0]}); what is done is kept, and the same command goes on"
        )


def run_rank(plan: Plan, rank: int, world: int) -> bool:
    """Run this rank's share, and what nobody holds; whether this rank is the one to merge.

    That is rank 0, which waits until every part is there and takes over what a dead rank held.
    """
    run_tasks(plan, rank, world)
    if rank == 0:
        wait_for_all(plan)
    return rank == 0


@contextmanager
def merging(plan: Plan) -> Iterator[bool]:
    """Hold the merge; False where another process has it."""
    with _locked_file(plan.folder / ".merge.lock") as is_held:
        yield is_held


@contextmanager
def _locked_file(path: Path) -> Iterator[bool]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    held = False
    try:
        held = _locked(descriptor)
        yield held
    finally:
        if held:
            with suppress(OSError):
                path.unlink()  # while it is held: nobody can have locked it under this name
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        return try_lock(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return True


# datatrove


def check_engine(engine: str) -> None:
    """Raise ValueError where an engine's packages are not installed."""
    if engine == "processes":
        return
    if importlib.util.find_spec("datatrove") is None:
        raise ValueError(f"engine {engine} {NEEDS_EXTRA}")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ValueError("engine ray needs ray beside datatrove: pip install ray")


def step_of(plan: Plan) -> Callable[[Any, int, int], Iterator[Any]]:
    """The step as datatrove calls it: ``(data, rank, world_size)``, a generator of nothing."""
    return functools.partial(_step, plan)


def _step(plan: Plan, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
    with held_task(plan, rank) as is_held:
        if is_held:
            analyse(None, rank, world_size, plan=plan)
    yield from ()


def run_datatrove(plan: Plan, workers: int) -> None:
    """Run by datatrove's LocalPipelineExecutor; AnalysisError when parts are missing in the end.

    Completion is told by the parts: its own markers would outlast a part that was removed.
    """
    executor = importlib.import_module("datatrove.executor.local").LocalPipelineExecutor(
        pipeline=[step_of(plan)], tasks=plan.settings.tasks, workers=workers,
        logging_dir=str(plan.folder / "logs"), skip_completed=False, start_method="spawn",
    )  # fmt: skip
    executor.run()
    _check_complete(plan)


def submit_slurm(
    plan: Plan, workers: int, time_limit: str, partition: str, memory: int = 8
) -> None:
    """Hand the tasks to Slurm by datatrove's SlurmPipelineExecutor, an array job; returns at once.

    ``memory`` is a task's, GB. Jobs run this interpreter and find this suite at the same paths. The
    same command without an engine, or with this one again, merges once all parts are there.
    """
    threads = plan.settings.threads
    executor = importlib.import_module("datatrove.executor.slurm").SlurmPipelineExecutor(
        pipeline=[step_of(plan)], tasks=plan.settings.tasks, workers=workers, time=time_limit,
        partition=partition, gpus_per_task=int("cuda" in (plan.settings.device or "")),
        logging_dir=str(plan.folder / "logs"), skip_completed=False, job_name="corpus_analysis",
        cpus_per_task=threads, mem_per_cpu_gb=-(-memory // threads), env_command=_environment(),
        qos=None,  # the partition's own
    )  # fmt: skip
    executor.run()


def _environment() -> str:
    """Shell command after which a job finds datatrove's launcher and the modules of the suite."""
    scripts, suite = (shlex.quote(str(path)) for path in (Path(sys.executable).parent, SUITE_DIR))
    return f"export PATH={scripts}:$PATH PYTHONPATH={suite}:$PYTHONPATH"


def run_ray(plan: Plan, workers: int) -> None:
    """Run by datatrove's RayPipelineExecutor on the Ray cluster that this process belongs to."""
    executor = importlib.import_module("datatrove.executor.ray").RayPipelineExecutor(
        pipeline=[step_of(plan)], tasks=plan.settings.tasks, workers=workers,
        logging_dir=str(plan.folder / "logs"), skip_completed=False,
    )  # fmt: skip
    executor.run()
    _check_complete(plan)
