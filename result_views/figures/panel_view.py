"""What single panels are drawn from: results of which a text, a layer or nothing is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from result_views.figures import memory_figures as memory
from suite_plumbing.arguments import validate_choice
from suite_plumbing.result_reading import Section, Tensors, cross_text_section, text_sections


@dataclass(frozen=True)
class View:
    """Results of which one text or layer may be chosen; a choice of None takes all."""

    results: Section
    tensors: Tensors
    text: int | None
    layer: int | None

    def texts(self, step: str) -> dict[str, Section]:
        """A step's sections by text, of the chosen text and layer."""
        sections = text_sections(self.results, step)
        if self.text is not None:
            name = chosen_key("text", self.text, sections)
            sections = {name: sections[name]}
        return {text: self._of_layer(section) for text, section in sections.items()}

    def across(self, step: str) -> Section:
        """A section of the cross-text analysis, of the chosen layer."""
        return self._of_layer(cross_text_section(self.results, step))

    def memory(self, step: str) -> Section:
        """A section of the memory analysis, of the chosen layer."""
        return self._of_layer(memory.memory_section(self.results, step))

    def causal(self) -> Section:
        """Causal memory, the curves of the chosen layer beside that of all together."""
        section = memory.causal_section(self.results)
        if self.layer is None:
            return section
        return {
            kind: {**part, "layers": self._of_layer(part["layers"])}
            if isinstance(part, Mapping) and "layers" in part
            else part
            for kind, part in section.items()
        }

    def _of_layer(self, section: Section) -> Section:
        if self.layer is None or not any(key.startswith("layer_") for key in section):
            return section
        name = chosen_key("layer", self.layer, section)
        return {name: section[name]}


def chosen_key(kind: str, number: int, keys: Iterable[str]) -> str:
    """The key "text_0" or "layer_3" of a number; ValueError that lists the numbers there are."""
    numbers = [int(key.rpartition("_")[2]) for key in keys if key.startswith(f"{kind}_")]
    return f"{kind}_{validate_choice(kind, number, numbers)}"
