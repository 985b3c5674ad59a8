"""Generate docs/reliability.md from bench/results/faults.json and soak.json: python -m bench.docs.reliability_page

The text of the page, with its promises, is in reliability.md.j2. A test compares the page with the results.
"""

from __future__ import annotations

from typing import Any

from bench.common import ROOT
from bench.docs.performance_page import read_results, render

DOC = ROOT / "docs" / "reliability.md"


def text(results: dict[str, dict[str, Any]]) -> str:
    """Return the page as Markdown, from the content of the result files by name."""
    return render("reliability.md.j2", faults=results["faults"], soak=results["soak"])


if __name__ == "__main__":
    DOC.write_text(text(read_results()))
