"""Write the tables of every README.md from the stored rows; it needs pandas (requirements-optional.txt).

    python results/make.py                     # rewrite the pages
    python results/make.py README.md           # this page alone
    python results/make.py --check             # change nothing; exit 1 where a page is not what its rows give

A table stands on a page between a marker and an end, and what is between them is written again; kinds.py says what a
marker may ask for:

    <!-- table: product results/fashion-mini/grid against=rem-plus columns=product,seeds,minus -->
    <!-- end -->
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BEGIN = re.compile(r"<!-- table: (.*) -->")
END = "<!-- end -->"


def pages() -> list[Path]:
    """Every README.md at the root, in a room and below results/."""
    return sorted({ROOT / "README.md", *ROOT.glob("[a-z]*/README.md"), *ROOT.glob("results/**/README.md")})


def rewritten(text: str) -> str:
    """A page with its tables made again; ValueError, with the number of the line, for a marker that makes none."""
    from results.kinds import table_of

    lines, opened = [], 0
    for number, line in enumerate(text.splitlines(), 1):
        marker = BEGIN.fullmatch(line)
        if line.strip() == END:
            if not opened:
                raise ValueError(f"line {number}: an end without a table above it; remove it")
            opened = 0
        elif opened and marker:
            raise ValueError(f"line {opened}: the table is not closed before line {number}; put {END} below it")
        elif line.startswith("<!-- table") and not marker:
            raise ValueError(f"line {number}: {line!r} is no marker; write <!-- table: KIND PATH ... -->")
        if not opened:
            lines.append(line)
        if marker:
            opened = number
            try:
                lines += ["", *table_of(marker[1]), ""]
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    if opened:
        raise ValueError(f"line {opened}: the table is not closed; put {END} below it")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Rewrite or check the pages: 0; 1 where --check finds a page that is not what its rows give; 2 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="these pages alone (default: every README.md)")
    parser.add_argument("--check", action="store_true", help="write nothing, and say what would change")
    asked, changed = parser.parse_args(argv), 0
    for page in asked.pages or pages():
        name = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
        try:
            text = page.read_text(encoding="utf-8")
            new = rewritten(text)
        except ModuleNotFoundError as error:
            print(f"results/make.py needs {error.name}: pip install -r requirements-optional.txt", file=sys.stderr)
            return 2
        except (OSError, ValueError) as error:
            print(f"results/make.py: {name}: {error}", file=sys.stderr)
            return 2
        if new == text:
            continue
        changed += 1
        old, made = text.splitlines(), new.splitlines()
        first = next(k for k in range(max(len(old), len(made))) if old[k : k + 1] != made[k : k + 1])
        if asked.check:
            print(f"{name}, line {first + 1}: found {''.join(old[first : first + 1])!r}, "
                  f"the rows give {''.join(made[first : first + 1])!r}; run python results/make.py")
        else:
            page.write_text(new, encoding="utf-8")
            print(f"{name} written")
    return int(asked.check and changed > 0)


if __name__ == "__main__":
    sys.exit(main())
