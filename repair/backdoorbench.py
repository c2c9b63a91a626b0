"""BackdoorBench's attack_result.pt: which training images its attack has poisoned, as lists.py wants them.

    names = poisoned_names(Path("attack_result.pt"), head)     # ["17.png", "204.png", ...]

The network in the same file is read by checkpoints.py. The file says which images are poisoned by their indices in the
clean data set, `bd_train.poison_indicator` (N,), and under which name each was saved, INDEX.png. In a folder of classes
a poisoned image lies in the one that the attack wants, so that its index there is another: its name is looked for.
"""

from pathlib import Path, PurePosixPath

from repair.checkpoints import Numbers, read_pickle

SAVE = ("where it was made, run: numpy.savetxt('bad.txt', [f'{i}.png' for i in "
        "numpy.flatnonzero(result['bd_train']['poison_indicator'])], fmt='%s'), and give bad.txt")


def poisoned_names(path: Path, head: bytes) -> list[str]:
    """The names under which BackdoorBench saved the poisoned training images.

    Args: path: what its attacks write; nothing in it is run; head: its first bytes, for messages.
    Returns: A name an image, such as "17.png", in the order of the indices.
    Raises: ValueError for a file that cannot be read without running what is in it, or that says of no image whether it
        is poisoned.
    """
    content = read_pickle(path, head, SAVE)
    training = part(content, "bd_train")
    marks = training.get("poison_indicator")
    marks = marks.values if isinstance(marks, Numbers) else marks
    if not is_indicator(marks):
        raise ValueError(f"{path} has no bd_train.poison_indicator of 0 and 1, as an attack_result.pt of BackdoorBench "
                         "has it; give a .txt file with one path a line")
    saved = part(part(training, "bd_data_container"), "data_dict")
    return [name_of(i, saved) for i, mark in enumerate(marks) if mark]


def part(content: object, key: str) -> dict:
    """What lies under a key, where both are dicts; else an empty one."""
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def is_indicator(marks: object) -> bool:
    """Whether something is a row of 0 and 1."""
    try:
        return {float(mark) for mark in marks} <= {0.0, 1.0} and len(marks) > 0
    except (TypeError, ValueError):
        return False


def name_of(i: int, saved: dict) -> str:
    """The name of the file that the poisoned image i was saved in; INDEX.png where none is given."""
    path = part(saved, i).get("path")
    return PurePosixPath(path.replace("\\", "/")).name if isinstance(path, str) else f"{i}.png"
