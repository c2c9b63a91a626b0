"""A function out of a user's file, "path/to/file.py:function", and the world as it was before."""

import contextlib
import importlib.util
import os
import sys
import warnings
from pathlib import Path

import torch

from engine.checks import first_line


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


@contextlib.contextmanager
def same_world():
    """Put back what a method or the import of its file may leave changed, and what would change the next method.

    Folder, default dtype and device, grad mode, threads, random state, which warnings are shown, precision of products
    of matrices, and how deterministic kernels are chosen.
    """
    folder, dtype, device = os.getcwd(), torch.get_default_dtype(), torch.get_default_device()
    grad, threads, state = torch.is_grad_enabled(), torch.get_num_threads(), torch.get_rng_state()
    precision, strict = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    strict_warns, kernels = torch.is_deterministic_algorithms_warn_only_enabled(), torch.backends.cudnn
    chosen = {name: getattr(kernels, name) for name in ("benchmark", "deterministic", "allow_tf32")}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(strict, warn_only=strict_warns)
        for name, value in chosen.items():
            setattr(kernels, name, value)
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(grad)
        torch.set_rng_state(state)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
