"""The command of the memory analysis: see ``memory_recursion_neuron_analyzer``."""

from __future__ import annotations

from suite_plumbing.analysis_options import memory_analysis_options
from suite_plumbing.command_lines import parse_first

if __name__ == "__main__":  # --help and a wrong option end before torch is loaded
    parse_first(memory_analysis_options)

from memory_recursion_neuron_analyzer import main

if __name__ == "__main__":
    raise SystemExit(main())
