"""The command of the memory analysis: see ``memory_recursion_neuron_analyzer``."""

from __future__ import annotations

from memory_recursion_neuron_analyzer import main

if __name__ == "__main__":
    raise SystemExit(main())
