"""Which of the listed images are perhaps good: an impure list (Sec. 4 has D_f within D_c; a user's list may not be).

    doubted = look_good(forget, margins, likeness, alike)     # (d,) int64, to look at again

Nothing is done about them: only a person can say that an image is good.
"""

import torch

from engine.batches import among
from repair.looks import LEAST

LIKE = 0.75  # quantile of the likeness of unlisted images below which a listed one is not like the list
SURE = 0.5  # quantile of their margins below which a label was learnt as surely as that of a good image
MOST = 0.5  # share of the list: where more of it would be doubted, the scores say nothing of it
SHOWN = 5  # names in a line


def look_good(forget: torch.Tensor, margins: torch.Tensor, likeness: torch.Tensor | None, alike: torch.Tensor
              ) -> torch.Tensor:
    """The listed images that look like good ones to the network before the repair.

    Where the list has a look, such as a trigger, they are those that do not have it: less like the list than three in
    four of the unlisted images. Where it has none, labels alone are wrong. A wrong label is memorised, and less
    surely than a right one: they are those whose label the network gives more surely than it gives half of the unlisted
    images theirs. With a trigger that says nothing, since the network is surest of the trigger.
    Choice: with these quantiles no image of lists without good images was doubted, and of the good ones in lists with 10
    and 30 % of them from none to most (results/repair/rivals).
    Args: forget: (k,) int64, the list; margins: (N,) max_{j != y} z_j - z_y before the repair; likeness: (N,) to the
        list, by probes that do not know the image (`suspects.crossed`), None where there is none; alike: (N,) bool, the
        unlisted images that look like it (`looks.looking_alike`), none where the list has no look.
    Returns: (d,) int64 indices, sorted; none of a list of fewer than LEAST images, or without likeness.
    """
    nothing, others = forget[:0].cpu(), ~among(forget, len(margins))
    if likeness is None or len(forget) < LEAST or not others.any():
        return nothing
    score, share = (likeness, LIKE) if alike.any() else (margins, SURE)
    forget = forget.cpu().sort().values
    doubted = forget[score[forget] < score[others].quantile(share)]
    return doubted if len(doubted) <= MOST * len(forget) else nothing


def told(names: list[str], listed: int) -> str:
    """A line about the doubted images of these names, at least one, on a list of so many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (f"the list looks impure: {len(names)} of its {listed} images look like good ones, "
            f"{', '.join(names[:SHOWN])}{more}; look at them again")
