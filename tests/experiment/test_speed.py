"""benchmarks/speed.py: the table's form, and the operations that it counts. No time is asserted."""

import math

import pytest
import torch
from torch import nn

from benchmarks import speed
from helpers import rows_of
from study.rows import is_other


def test_ratios_of_a_small_run(tmp_path, capsys):
    """G5: a column per device, with a finite ratio above 0 in every line; the row has machine and commit, and is no
    method's row."""
    out = tmp_path / "speed.jsonl"
    assert speed.main(["--images", "120", "--repeats", "1", "--gemm", "64", "--out", str(out)]) == 0
    rows, lines = rows_of(out), capsys.readouterr().out.splitlines()
    devices = 1 + torch.cuda.is_available()
    assert len(rows) == devices and all(line.count("|") == 2 + devices for line in lines)
    assert len(lines) == 2 + len(rows[0]["ratios"]) + 2 and len(rows[0]["ratios"]) == 9
    for row in rows:
        numbers = [*row["ratios"].values(), row["seconds"], row["peak"]]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert {"cpu", "isa", "threads", "torch", "git", "device", "argv"} <= row.keys() and is_other(row)
        assert row["images"] == 120 and row["flops"]["step 3, epoch"] > row["flops"]["training epoch"] > 0


@pytest.mark.parametrize("wrong", [["--repeats", "0"], ["--images", "99"]])
def test_sizes_that_cannot_be_measured_are_refused(wrong, capsys):
    """G5: exit code 2 and the number that was found."""
    with pytest.raises(SystemExit) as stop:
        speed.main(wrong)
    assert stop.value.code == 2 and wrong[1] in capsys.readouterr().err


@pytest.mark.parametrize("batch, inputs, outputs, size", [(1, 1, 1, 5), (3, 2, 4, 8)])
def test_operations_of_a_small_network(batch, inputs, outputs, size):
    """G5: two per weight and place: of a 3x3 convolution forward, for its weights' gradient and, unless it is the
    first layer, for its input's; of a linear layer likewise."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    net = nn.Sequential(conv, nn.Flatten(), nn.Linear(outputs * size**2, 7, bias=False))
    x = torch.randn(batch, inputs, size, size)
    of_conv, of_linear = 2 * batch * size**2 * inputs * outputs * 9, 2 * batch * outputs * size**2 * 7
    with torch.no_grad():
        assert speed.flops_of(lambda: net(x)) == of_conv + of_linear
    assert speed.flops_of(lambda: net(x).sum().backward()) == 2 * of_conv + 3 * of_linear
