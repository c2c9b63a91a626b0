"""Beyond the paper: repair a classifier of one's own from some known bad training images.

    found = repair(model, data, forget)       # found.network, found.verdict, found.ranking

In the order of a repair, which `run.py repair` (command.py) goes through:

    inputs.py            the folder of images      lists.py         lists of bad images, with true labels
    networks_by_name.py  ours, torchvision's, ...  checkpoints.py   files of weights, read safely and written back
    mismatch.py          whether these fit         pipeline.py      `repair`: before, REM+, finish, after, verdict
    network.py           REM+ on any network       state.py         going on after an interruption
    truths.py            true labels are taught    looks.py         which images look like the known bad ones
    impure.py            listed images that are perhaps good
    backdoorbench.py     BackdoorBench's attack_result.pt as a list
    finish.py            the original network again, without what is likely bad
    verdict.py           repaired, not repaired or harmed
    suspects.py          how likely each image is bad that nobody listed
    outputs.py           what is written           page.py          the page to open, in the frame page.html
"""

from repair.pipeline import repair  # noqa: F401
