"""A disk that fills up, as far as this process can tell; no root is needed."""

import contextlib

import pytest


@contextlib.contextmanager
def files_of_at_most(size: int):
    """Let no file of this process grow beyond so many bytes: a write stops there, and the next one fails."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
