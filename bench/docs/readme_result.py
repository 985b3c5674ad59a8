"""Write the result of a `make train` to bench/results/make_train.json and to the README.

make train NAME=first && .venv/bin/python -m bench.docs.readme_result outputs/first-*
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from bench.common import RESULTS, ROOT, result_of, write_result

BEGIN, END = "<!-- make train: begin -->", "<!-- make train: end -->"


def main(folder: str) -> None:
    run = Path(folder)
    result = result_of(run)
    log = (run / "log.txt").read_text()
    plan = json.loads((run / "plan.json").read_text())
    plan.pop("curve")  # a hundred points for the chart, of no use here
    content = {"how": "make train", "result": result, "plan": plan}
    write_result(RESULTS / "make_train.json", content)
    plan_shown = log[log.index("Plan (in full") :].split("\nnote: ")[0]
    ending = [line for line in log[log.index("Result\n") :].splitlines() if not line.startswith("sample in full")]
    shown = f"{BEGIN}\n```text\n{plan_shown}\n...\n" + "\n".join(ending).rstrip() + f"\n```\n{END}"
    readme = ROOT / "README.md"
    text = re.sub(f"{BEGIN}.*?{END}", lambda match: shown, readme.read_text(), flags=re.DOTALL)
    readme.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
