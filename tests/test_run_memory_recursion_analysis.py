"""The command is that of the analyzer."""

import memory_recursion_neuron_analyzer
import run_memory_recursion_analysis


def test_the_command_is_the_analyzers():
    assert run_memory_recursion_analysis.main is memory_recursion_neuron_analyzer.main
