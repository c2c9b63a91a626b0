"""What REM+ brings about in the small world of claims.py, as means over three seeds: of our variant, not of the paper.

It heals from a fifth of D_c in two epochs of 20 steps, where the removal of REM as printed is a matter of chance; what
REM itself does is in paper/test_outcomes.py, which says where the bounds come from. That healing lasts (A24) is in
test_early_stopping.py.
"""

import pytest

from claims import mean


@pytest.mark.outcome("rem-plus")
def test_rem_plus_heals_the_poison():
    """S1: the trigger is learnt before; REM+ from a fifth of it heals, undiscovered images too, at the same utility."""
    assert mean("rem-plus", "learnt") >= 0.9  # 1.00 in every run
    assert mean("rem-plus", "healed before") <= 0.2  # 0.09, SD 0.02: k = 9
    assert mean("rem-plus", "healed 0.2") >= 0.12  # 0.45, SD 0.11: k = 5.1
    assert mean("rem-plus", "undiscovered 0.2") >= 0.12  # 0.46, SD 0.11: k = 5.2
    assert mean("rem-plus", "utility lost") <= 0.08  # 0.01, SD 0.02: k = 6


@pytest.mark.outcome("rem-plus")
def test_rem_plus_beats_training_on_what_is_left():
    """S2: at discovery 0.2 REM+ heals poison that fine-tuning and retraining on D_r, four fifths of it there, keep."""
    assert mean("rem-plus", "over cf") >= 0.05  # 0.36, SD 0.10: k = 5.2
    assert mean("rem-plus", "over retrain") >= 0.05  # the same: both heal as little as before


@pytest.mark.outcome("rem-plus")
def test_theta_o1_loses_the_corruption():
    """S3: on D_c's labels as given theta_o1 loses its accuracy, which was 1.

    That D_f's channel takes it over does not hold on every seed in so few steps, so it is not asserted.
    """
    assert mean("rem-plus", "base") <= 0.95  # 0.23, SD 0.25: k = 5.1


@pytest.mark.outcome("rem-plus")
def test_healing_does_not_fall_with_discovery():
    """S5: REM+ does not heal less from all of D_c than from a tenth of it, within the spread."""
    assert mean("rem-plus", "1.0 over 0.1") >= -0.25  # 0.03, SD 0.08: k = 5.7
