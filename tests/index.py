"""What the tests hold: properties by id (properties.md), the tests whose docstrings name them, and an auditor's hour.

    python tests/index.py              # every property in one line, with the tests that hold it
    python tests/index.py M3 L7        # these alone
    python tests/index.py --write      # the table of an auditor's hour into tests/README.md
"""

import ast
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
IDS = re.compile(r"([A-Z]\d+(?:, [A-Z]\d+)*): ")
ROW = re.compile(r"\| ([A-Z]\d+) \| (.*) \|")
HOUR = re.compile(r"<!-- hour -->\n(.*)<!-- /hour -->", re.DOTALL)
PATH = ("twins", "test_twins", "test_eq2", "test_step1_expand", "test_step2_remove", "test_step3_redirect",
        "test_step4_drop", "test_algorithm")  # of tests/paper, in the order in which an auditor reads them
PACE = 25  # lines a minute: an estimate


def held() -> dict[str, list[str]]:
    """Property id -> "room/file::function" of every test whose docstring names it."""
    found = {}
    for path in sorted(HERE.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                named = IDS.match(ast.get_docstring(node) or "")
                for name in named[1].split(", ") if named else []:
                    found.setdefault(name, []).append(f"{path.relative_to(HERE).as_posix()}::{node.name}")
    return found


def stated() -> dict[str, str]:
    """Property id -> property, as properties.md has them."""
    lines = map(ROW.fullmatch, (HERE / "properties.md").read_text(encoding="utf-8").splitlines())
    return {m[1]: m[2] for m in lines if m}


def hour() -> str:
    """The table of an auditor's hour: each file's lines, the minutes that these take, what it is about."""
    lines, total = ["| file | lines | minutes | what |", "|---|---|---|---|"], 0
    for name in PATH:
        text = (HERE / "paper" / f"{name}.py").read_text(encoding="utf-8")
        count = len(text.splitlines())
        what = re.split(r"\. What|, and what|: read this", " ".join(ast.get_docstring(ast.parse(text)).split()))[0]
        lines.append(f"| `paper/{name}.py` | {count} | {round(count / PACE)} | {what} |")
        total += count
    return "\n".join([*lines, f"| all | {total:,} | {round(total / PACE)} | |"]) + "\n"


def main(argv: list[str]) -> None:
    """Print properties and their tests, or write the table of an auditor's hour."""
    if argv == ["--write"]:
        README.write_text(HOUR.sub(lambda m: f"<!-- hour -->\n{hour()}<!-- /hour -->", README.read_text("utf-8")),
                          encoding="utf-8")
        return
    tests = held()
    for name, text in stated().items():
        if name in argv or not argv:
            print(f"{name}  {text}", *tests.get(name, []), sep="\n    ")


if __name__ == "__main__":
    main(sys.argv[1:])
