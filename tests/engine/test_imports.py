"""Which file imports which, read from the code itself (R13), and what is imported inside functions alone (R7)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAPER = ("rem", "rem_plus", "etd", "expand", "tasks", "metrics", "baselines", "baselines_repair", "models", "train")
FLOORS = ("engine", "paper", "experiment", "repair", "study", "run")  # from the ground up
CORE = ("engine", "etd", "expand", "rem", "rem_plus")


def module_of(path: Path) -> str:
    """The whole name of a file's module; of a package's __init__.py that of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path
         for path in [*ROOT.glob("*.py"), *(path for floor in FLOORS for path in ROOT.glob(f"{floor}/*.py"))]}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def imported(tree: ast.AST) -> set[str]:
    """Whole names of the modules that the import statements of a tree name, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(tree: ast.AST) -> set[str]:
    """The packages that they are of."""
    return {module.partition(".")[0] for module in imported(tree)}


def floor_of(module: str) -> int:
    """The floor that a module is on, counted from the ground."""
    top = module.partition(".")[0]
    return FLOORS.index("paper" if top in PAPER else top)


ARROWS = {name: sorted(imported(tree) & set(FILES) - {name}) for name, tree in TREES.items()}


@pytest.mark.parametrize("name", FILES)
def test_what_a_module_imports(name):
    """R7, R13: no module imports one of a floor above its own. The core imports torch, Python's own modules and itself
    alone. No file imports matplotlib, which need not be there, torchvision or PIL before a function asks for it, and
    pandas, which need not be there either, study/tables.py alone."""
    assert [other for other in ARROWS[name] if floor_of(other) > floor_of(name)] == []
    if name.partition(".")[0] in CORE:
        assert tops(TREES[name]) <= {"torch", *CORE, *sys.stdlib_module_names}
    first = [node for node in TREES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not tops(ast.Module(first, [])) & {"matplotlib", "torchvision", "PIL"}
    assert "pandas" not in tops(TREES[name]) or name == "study.tables"
    assert "study.tables" not in imported(ast.Module(first, []))


def test_what_the_main_command_leaves_unread():
    """R7: what the README's command never uses is imported where it is asked for: image files, people's labels,
    pickles, stored tasks, code and networks of users, figures."""
    idle = ["engine.features", "experiment.corruptions", "experiment.image_files", "experiment.people",
            "experiment.pickles", "experiment.stored_tasks", "experiment.user_code", "repair", "study", "torchvision"]
    code = f"import run, sys; sys.exit(' '.join(sys.modules.keys() & {idle!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stderr.strip() == ""


def test_no_circle():
    """R13: no module imports itself by way of others; engine/ and repair/ gather names in their __init__.py."""
    gather = {"engine", "repair"}
    left = {name: set(below) - gather for name, below in ARROWS.items() if name not in gather}
    while ready := [name for name, below in left.items() if not below & set(left)]:
        for name in ready:
            del left[name]
    assert not left, f"in a circle or above one: {sorted(left)}"


WHOLE = sorted(ROOT.glob("*.py")) + sorted(path for path in ROOT.glob("[a-z]*/**/*.py") if "venv" not in path.parts)


@pytest.mark.parametrize("path", WHOLE, ids=[str(path.relative_to(ROOT)) for path in WHOLE])
def test_files_are_of_the_oldest_python(path):
    """R13: nothing that Python 3.10 cannot parse, such as except*, or a star between brackets, which `ast` allows."""
    source = path.read_text("utf-8")
    slices = [node.slice for node in ast.walk(ast.parse(source, feature_version=(3, 10)))
              if isinstance(node, ast.Subscript)]
    stars = [part.lineno for part in slices if any(isinstance(each, ast.Starred) for each in getattr(part, "elts", []))
             and not ast.get_source_segment(source, part).startswith("(")]
    assert not stars, f"lines {stars}"
