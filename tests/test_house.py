"""The house: which module imports which, read from the code itself."""

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
         for path in [*ROOT.glob("*.py"), *ROOT.glob("study/*.py"), *ROOT.glob("formats/*.py")]
         if path.stem != "__init__"}
# not everywhere, or slow: what needs one imports it when it must
OPTIONAL = {"matplotlib", "scipy", "fcntl", "torchvision", "PIL", "timm"}

LONGEST = 11  # modules in a chain of imports


def imported(tree) -> set[str]:
    """Whole names of the modules that the import statements of a tree name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}
ARROWS = {name: sorted(imported(tree) & set(FILES) - {name}) for name, tree in TREES.items()}


@cache
def chain(name: str) -> tuple[str, ...]:
    """The longest chain of imports from a module down."""
    return max(((name, *chain(below)) for below in ARROWS[name]), key=len, default=(name,))


def test_the_root_is_small():
    """R13: the paper's rooms and few others stand in the root; everything about many cells is next door."""
    root = [name for name in FILES if "." not in name]
    assert len(root) <= 16, sorted(root)  # the sixteenth: suspects.py, what a repaired network can find


def test_no_circle_and_no_long_climb():
    """R13: no module imports itself by way of others, and no chain of imports is longer than LONGEST modules."""
    left = dict(ARROWS)
    while ready := [name for name, below in left.items() if not set(below) & set(left)]:
        for name in ready:
            del left[name]
    assert not left, f"in a circle or above one: {sorted(left)}"
    longest = max(map(chain, FILES), key=len)
    assert len(longest) <= LONGEST, " -> ".join(longest)


def test_the_root_does_not_need_the_study():
    """R13: of the root run.py alone imports study/, which holds no step of the method; repair.py alone imports
    formats/."""
    for folder, above in (("study.", "run"), ("formats.", "repair")):
        inside = [name for name, below in ARROWS.items() if any(other.startswith(folder) for other in below)]
        assert [name for name in inside if not name.startswith(folder)] == [above]


@pytest.mark.parametrize("name", FILES)
def test_imports_stand_at_the_top(name):
    """R13: no import inside a function, but for packages that are optional."""
    functions = [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef)]
    inside = {module.split(".")[0] for function in functions for module in imported(function)}
    assert inside <= OPTIONAL, inside - OPTIONAL


def test_one_name_one_function():
    """R13: no two functions or classes of one name in two modules, but for what each word of run.py brings."""
    found = {}
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.setdefault(node.name, []).append(name)
    twice = {function: names for function, names in found.items() if len(names) > 1}
    assert twice.keys() <= {"add_arguments", "main"}, twice


WHOLE = sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("[a-z]*/*.py"))


@pytest.mark.parametrize("path", WHOLE, ids=[str(path.relative_to(ROOT)) for path in WHOLE])
def test_files_are_of_the_oldest_python(path):
    """R13: nothing that Python 3.10 cannot parse: a star between brackets, except*, quotes within an f-string's own."""
    source = path.read_text("utf-8")
    slices = [node.slice for node in ast.walk(ast.parse(source, feature_version=(3, 10)))
              if isinstance(node, ast.Subscript)]
    stars = [part.lineno for part in slices if any(isinstance(each, ast.Starred) for each in getattr(part, "elts", []))
             and not ast.get_source_segment(source, part).startswith("(")]
    assert not stars, f"lines {stars}"
    if hasattr(tokenize, "FSTRING_START"):  # Python 3.12 on, which allows it
        open_quotes = []
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            quote = token.string.lstrip("rRbBfFuUtT")[:3]
            quote = quote if quote in ('\'\'\'', '"""') else quote[:1]
            if token.type == tokenize.FSTRING_END:
                open_quotes.pop()
            elif token.type in (tokenize.FSTRING_START, tokenize.STRING):
                assert quote not in open_quotes, f"line {token.start[0]}"
                open_quotes += [quote] * (token.type == tokenize.FSTRING_START)


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name):
    """R13: no module has more than 400 lines, and no line more than 120 columns."""
    lines = FILES[name].read_text("utf-8").splitlines()
    assert len(lines) <= 400
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []
