"""A function out of a user's file, "path/to/file.py:function"."""

import importlib.util
import sys
from pathlib import Path

from engine.checks import first_line
from engine.streams import same_world

USERS = "user_"  # how the name of a user's file begins as a module


def function_of(text: str, purpose: str):
    """The function that "path/to/file.py:function" names.

    Args: purpose: what it is wanted for, such as "--model net.py:make"; of the messages.
    Raises: ValueError for no such file or function, or a file that does not import.
    """
    path, _, name = text.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"no file {path} for {purpose}; give path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(USERS + Path(path).stem, path)
    try:
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # known by name, as dataclasses want it
        with same_world():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a file that ends the process on import, too
        beside = f"; what lies beside it is found with PYTHONPATH={Path(path).resolve().parent}"
        more = beside if isinstance(error, ImportError) else ""
        raise ValueError(f"{path} does not import ({first_line(error)}){more}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path} has no function {name!r} for {purpose}")
    return function
