"""Settings of cells as hypothesis draws them, and another value of each setting."""

from dataclasses import fields

from hypothesis import strategies as st

from experiment.methods import METHODS
from experiment.settings import Config
from tasks import TASKS

FIELDS = {f.name: f for f in fields(Config)}
RATES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def other(name, value):
    """A value of a setting within its range that differs from the one given."""
    f = FIELDS[name]
    if f.type is bool:
        return not value
    if f.metadata.get("choices"):
        return next(choice for choice in f.metadata["choices"] if choice != value)
    if name == "method":
        return "rem" if value != "rem" else "npo"
    if f.type in (int, int | None):
        return 32 if value is None else value + 2
    if f.type in (float, float | None):
        return 0.5 if value is None else value / 2 + 0.125 if value != 0.25 else 0.75
    return f"another {value}"


@st.composite
def cells(draw, methods=tuple(METHODS)):
    """Settings of a cell with one method, those that the presets and the axes change drawn."""
    def one_of(*values):
        return draw(st.sampled_from(values))

    return Config(task=one_of(*TASKS), discovery=one_of(*RATES), method=one_of(*methods),
                  dataset=one_of("fashion-mini", "cifar10", "svhn", "folder"), n=draw(st.integers(1, 500)) * 2,
                  arch=one_of("resnet9", "vit"), capacity=one_of(0.1, 0.5, 0.9, 1.0), ratio=one_of(None, 0.5, 1.0),
                  etd=draw(st.booleans()), p_mem=one_of(0.05, 0.2), seed=draw(st.integers(0, 2**62)),
                  alpha=one_of(0.001, 0.01, 10.0), curve=draw(st.booleans()), image_size=one_of(None, 16))
