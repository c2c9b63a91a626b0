"""What training brings about in the small world of claims.py, as means over three seeds.

These are claims of the paper, of REM as printed (rem.py) at Table 3's rate in the setting of Fig. 5: half of D_c is
known and five epochs run. An epoch has 20 steps here, where CIFAR-10's has 98. What is true of REM+ alone stands
in tests/rem_plus.

    S1  Table 1           REM heals the poison from half of it, at the same utility
    S2  Table 1           it heals what training on D_r keeps, be it fine-tuning or from scratch
    S3  Fig. 5            theta_o1 loses its accuracy on D_c's labels as given
    S4  Fig. 1 (d)        example-tied dropout alone heals random labels (low regularity), not poison (high)

Training is chaotic: another CPU, another number of threads or another version of a library rounds otherwise and gives
another network. So each bound is on a mean over three seeds, and it lies 4 standard errors or more (REM) or 5 of the
spread over CPUs, threads and seeds away from the mean that `python tests/spread.py` found. Both are in the comments, the
table is in tests/README.md, "Spread over machines". REM heals one seed's network more than another's: at the tests' own
seeds its bounds on Healed are 11 standard errors of the spread over CPUs away.
What does not hold so is not asserted. test_spread.py compares the bounds with the measurements.
"""

import pytest

from claims import mean


@pytest.mark.outcome("rem")
def test_rem_heals_the_poison():
    """S1: the trigger is learnt before; REM heals from half of it, undiscovered images too, at the same utility."""
    assert mean("rem", "learnt") >= 0.9  # 1.00 in every run
    assert mean("rem", "healed before") <= 0.2  # 0.09, SD 0.02: k = 9
    assert mean("rem", "healed 0.5") >= 0.12  # 0.41, SD 0.12: k = 4.1
    assert mean("rem", "undiscovered 0.5") >= 0.1  # 0.42, SD 0.13: k = 4.1
    assert mean("rem", "misled before") >= 0.9  # 0.99, SD 0.00: k > 30
    assert mean("rem", "misled") <= 0.85  # 0.20, SD 0.13: k = 9
    assert mean("rem", "utility lost") <= 0.08  # -0.01, SD 0.01: k = 12


@pytest.mark.outcome("rem")
def test_rem_beats_training_on_what_is_left():
    """S2: REM heals poison that fine-tuning and retraining on D_r, half of it there, keep."""
    assert mean("rem", "over cf") >= 0.05  # 0.32, SD 0.11: k = 4.2
    assert mean("rem", "over retrain") >= 0.05  # the same: both heal as little as before


@pytest.mark.outcome("rem")
def test_theta_o1_loses_the_corruption():
    """S3: on D_c's labels as given theta_o1 loses its accuracy, which was 1.

    That D_f's channel takes it over does not hold on every seed in so few steps, so it is not asserted.
    """
    assert mean("rem", "base") <= 0.85  # 0.24, SD 0.12: k = 8


@pytest.mark.outcome("etd")
def test_etd_heals_the_irregular_alone():
    """S4: ETD without unlearning heals random labels, not the poison."""
    assert mean("etd", "random, more than plain") >= 0.04  # 0.32, SD 0.10: k = 5.1
    assert mean("etd", "poison") <= 0.2  # 0.09, SD 0.03: k = 7
