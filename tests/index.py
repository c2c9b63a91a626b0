"""The table of properties and the tests that hold them: read from docstrings, kept in tests/README.md.

    python tests/index.py      # writes the tests' names into the table anew
"""

import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLE = HERE / "README.md"
IDS = re.compile(r"([A-Z]\d+(?:, [A-Z]\d+)*): ")
ROW = re.compile(r"\| ([A-Z]\d+) \| (.*?) \| (.*) \|")


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


def rows() -> dict[str, tuple[str, str]]:
    """Property id -> (property, files that hold it) of the table."""
    lines = [ROW.fullmatch(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
    return {m[1]: (m[2], m[3]) for m in lines if m}


def status(tests: list[str]) -> str:
    """The files that hold a property, with the number of tests in each."""
    files = [test.split("::")[0] for test in tests]
    return ", ".join(f"`{name}` ({files.count(name)})" for name in dict.fromkeys(files))


def main() -> None:
    """Write the status of every property that a test holds into the table."""
    tests, text = held(), []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        m = ROW.fullmatch(line)
        text.append(f"| {m[1]} | {m[2]} | {status(tests[m[1]])} |" if m and m[1] in tests else line)
    TABLE.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
