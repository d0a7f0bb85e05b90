"""The main analysis as a command of an installed suite, ``mamba-recursive-analysis``.

The analysis itself is ``corrected_recursive_ssm_attention_analyzer``.
"""

from __future__ import annotations

from collections.abc import Sequence

from suite_plumbing.analysis_options import main_analysis_options
from suite_plumbing.command_lines import parse_first


def main(argv: Sequence[str] | None = None) -> int:
    """Run the main analysis with its exit statuses; ``--help`` and a wrong option end at once."""
    parse_first(main_analysis_options, argv)
    from corrected_recursive_ssm_attention_analyzer import main as analyse

    return analyse(argv)


if __name__ == "__main__":
    raise SystemExit(main())
