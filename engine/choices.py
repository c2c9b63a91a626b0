"""Settings of ours, which the paper does not have."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What Algorithm 1 leaves open; rem.Settings has these beside what the paper names."""

    max_passes: int = 100  # most passes over D_f in one step 2, then a warning
    reach: float = 0.07  # how far the first step 2 moves theta_o1, as a share of its norm; 0: as printed
    farther: int = 1  # how often REM may start over with twice the reach, where epoch 1 leaves images known by heart
    disbelieved: float = 2.0  # CE of a given label above which step 3 leaves an image of D_r out; 0: none
    forget_norm: str = "auto"  # BatchNorm in step 2: "running" statistics (auto) or those of each "batch"
    precision: str = "auto"  # bf16 autocast on GPUs, float32 on the CPU; or "float32", "bf16"
