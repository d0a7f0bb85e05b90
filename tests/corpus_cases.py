"""A small corpus, and runs over it with a tiny model, for the tests of what reads corpora."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis_pipelines.corpus.parts import Part, merge_parts, read_part
from analysis_pipelines.corpus.plan import Plan, Settings, open_plan
from analysis_pipelines.corpus.step import analyse
from suite_plumbing.corpus_texts import Source

STORY = (
    "the old net held water and the lamp went out over the harbour while a man told of the storm "
    "that broke the long pier and of the boats which came home late with nothing but rope"
)

WORDS = tuple(STORY.split(" "))


def made_texts(number: int, seed: int = 0) -> list[str]:
    """Sentences of words drawn anew, of 5 to 15 words, the first six of which come again."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(number):
        words = list(rng.choice(WORDS, int(rng.integers(5, 16))))
        texts.append(" ".join([*words, *words[:6]]))
    return texts


def tiny_settings(folder: Path, texts: Sequence[str], **changed) -> Settings:
    """Settings for the model in a folder, in float64, every window with maps."""
    usual = Settings(
        source=Source(texts=tuple(texts)), model=str(folder), tokenizer=str(folder),
        layers=(0, 2, 3),
        tasks=3, max_sequence_length=64, batch_tokens=256, maps_every=1, importance_every=9,
        dtype="float64", device="cpu",
    )  # fmt: skip
    return replace(usual, **changed)


def opened(folder: Path, settings: Settings) -> Plan:
    """A plan in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return open_plan(folder, settings, "weights of the test", "cpu")


def finished(plan: Plan) -> Part:
    """All tasks of a plan, merged."""
    for task in range(plan.settings.tasks):
        analyse(None, task, plan.settings.tasks, plan=plan)
    return all_merged(plan)


def all_merged(plan: Plan) -> Part:
    """The parts of a plan as one."""
    return merge_parts(read_part(plan, task) for task in range(plan.settings.tasks))


def same_bits(a: Part, b: Part) -> bool:
    """Whether two parts hold the same bits under the same names."""
    return (
        a.counts == b.counts
        and a.failures == b.failures
        and a.arrays.keys() == b.arrays.keys()
        and all(x.tobytes() == b.arrays[name].tobytes() for name, x in a.arrays.items())
    )
