"""The device that a run computes on (experiment/devices.py): chosen, and whether it can do what is asked."""

import os

import pytest
import torch
from torch import nn

from experiment import devices
from experiment.devices import check_precision, check_room, choose_device
from helpers import small_net, tiny


def test_the_device_that_is_there():
    """R2: "auto" is a GPU where there is one and else the CPU; a name is that device."""
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


# torch knows "meta", which has no values, and wants a module for "hpu"
@pytest.mark.parametrize("name", ["cuda:99", "toaster", "meta", "hpu", ""])
def test_a_device_that_is_not_there(name):
    """R2: a device that is not there, or that has no values to give, is one line with its name and the choices."""
    with pytest.raises(ValueError, match=f"^device '{name}' is not there (.*); use cpu, cuda or auto$") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("machine, amx, bf16, warned", [
    ("x86_64", False, False, True), ("AMD64", True, False, False), ("x86_64", False, True, False),
    ("aarch64", False, False, False)])
def test_slow_bf16_is_told(monkeypatch, capsys, machine, amx, bf16, warned):
    """R2: bf16 on a CPU of Intel's or AMD's without AMX and AVX512_BF16 warns; elsewhere nothing is said."""
    # a machine of each kind, in place of the one that the test runs on
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    for precision in ("auto", "float32", "bf16"):
        check_precision(tiny(precision=precision), torch.device("cpu"))
        assert ("bf16 is slower" in capsys.readouterr().err) is (warned and precision == "bf16")
    check_precision(tiny(precision="bf16"), torch.device("cuda"))
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    check_precision(tiny(precision="bf16"), torch.device("cpu"))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="this system does not tell its memory")
def test_a_theta_o2_that_fits_no_memory(monkeypatch):
    """R2: (1 + ratio)^2 times the network's bytes may be the machine's memory and not more, a ratio that follows from
    the capacity too, unless no method reads it."""
    net = nn.Linear(10, 10, bias=False)  # 100 parameters of 4 bytes
    memory = {"SC_PAGE_SIZE": 16, "SC_PHYS_PAGES": 100}
    monkeypatch.setattr(os, "sysconf", memory.__getitem__)  # a machine with 1,600 bytes
    check_room(tiny(ratio=1.0), net)
    check_room(tiny(ratio=None, capacity=0.01, method="cf"), net)
    for method in ("rem", "cf, all"):
        with pytest.raises(ValueError, match="^capacity is 0.01 and so ratio 99; .*give a larger capacity, or a ratio"):
            check_room(tiny(ratio=None, capacity=0.01, method=method), net)
    with pytest.raises(ValueError, match="^ratio is 1.01; theta_o2 would take 1.62e-06 GB .* has 1.6e-06; .*smaller"):
        check_room(tiny(ratio=1.01), net)
    monkeypatch.undo()
    check_room(tiny(ratio=1.0), small_net(0))
