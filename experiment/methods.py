"""The methods by name, a record each, which every choice, key, table and estimate reads (Sec. 3, Table 1).

    unlearned = METHODS["cf"].function(model, task.train, forget, config, generator)
    unlearned = METHODS["rem-ideal"].function(model, task.train, forget, config, generator, corrupted=task.corrupted)
    name, function = load_method("examples/my_method.py:relabel")       # a user-supplied method, of the same signature

Adding a method takes its function, in baselines.py or baselines_repair.py, and one entry of METHODS.
"""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import baselines as b
import baselines_repair as r
from tasks import TASKS

# --- The record -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Method:
    """A method that REM is compared with, or REM and its ablations."""

    function: Callable  # takes (model, data, forget, config, generator), and log= and corrupted= where it asks for them
    label: str  # in figures
    reads: set | frozenset = frozenset()  # settings that only some methods' numbers depend on
    # With --etd it gets the network with theta_o2 "dropped" or "kept"; "only": it has no meaning on another network;
    # "none": it trains a network of its own.
    etd: str = "dropped"
    reads_forget: bool = True  # False: the same network at every discovery rate
    twin: str = ""  # the method of which it is another name; "all" has each algorithm once
    # "compared": in the paper's tables, and SSD and CUTS, which are not; "variant": another version of one of those;
    # "ablation": of Table 2, but for rem-ce; "ideal": shown apart, oracles that know all of D_c, and ETD from fresh
    # weights; "of REM+": what an ablation or an oracle of REM is, of REM+; "repair": rivals of `repair`, not in the
    # paper.
    part: str = "compared"
    norm: str = ""  # what forget_norm's "auto" comes to

    @property
    def in_all(self) -> bool:
        """Whether "all" means it too: each algorithm once, in the version that is compared."""
        return not self.twin and self.part not in ("variant", "of REM+", "repair")

    @property
    def trains_alone(self) -> bool:
        """Whether its network is an original of its own, trained without D_f."""
        return self.etd == "none" and not self.reads_forget


MASKS = {"p_mem", "ratio"}
TUNING = {"unlearn_epochs", "unlearn_lr", "curve"}
PACED = TUNING | {"schedule"}
STEP2 = {"unlearn_lr", "gamma", "max_passes", "forget_norm"}
STEP3 = {"step31", "step32", "redirect"}
REM = {*STEP2, *TUNING, *MASKS, *STEP3, "beta", "remove_weight"}
REM_PLUS = REM | {"reach", "stop", "disbelieved", "farther"}  # one setting for each of its changes


def _rem(function, label: str, fixed=frozenset(), **more) -> Method:
    """REM, which keeps an ETD-trained network's theta_o2, or an ablation with some of its settings fixed."""
    return Method(function, label, **{"reads": frozenset(REM - fixed), "etd": "kept", "norm": "running"} | more)


def _plus(function, label: str, fixed=frozenset(), **more) -> Method:
    """REM+, or what an ablation of REM is, of REM+."""
    return _rem(function, label, **{"reads": frozenset(REM_PLUS - fixed)} | more)


METHODS = {
    "no-ul": Method(b.no_ul, "no unlearning", reads_forget=False),
    "retrain": Method(b.retrain, "retraining", frozenset({"curve"}), etd="none"),
    "cf": Method(b.fine_tune, "fine-tuning", frozenset(PACED)),
    "ascent": Method(b.ascent, "gradient ascent", frozenset(STEP2), norm="batch"),
    "npo": Method(b.npo, "NPO", frozenset(STEP2 | {"beta"}), norm="batch"),
    "scrub": Method(b.scrub, "SCRUB", frozenset(PACED | {"alpha"})),
    "badt": Method(b.bad_teacher(over_classes=True), "Bad Teacher", frozenset(PACED)),
    "badt-sum": Method(b.bad_teacher(over_classes=False), "Bad Teacher (sum over classes)", frozenset(PACED),
                       part="variant"),
    "ssd": Method(b.ssd, "SSD", frozenset({"ssd_alpha"})),
    # As it is behind the paper's tables, and as its authors released it.
    "potion": Method(b.potion(tries=50, part=1, relative=False), "Potion", frozenset({"gamma"})),
    "potion-500": Method(b.potion(tries=500, part=25, relative=True), "Potion (500 tries)", frozenset({"gamma"}),
                         part="variant"),
    "cuts": Method(b.cuts, "CUTS", frozenset({"unlearn_lr"})),
    "etd": Method(b.etd, "ETD", frozenset(MASKS), "none", False, part="ideal"),
    "etd-ideal": Method(b.etd_ideal, "ETD (ideal)", frozenset(MASKS), "none", False, part="ideal"),
    # Algorithm 1 as printed, its upper bound (Fig. 3) and its ablations (Table 2; rem-ce is ours).
    "rem": _rem(b.rem_by_config, "REM"),
    "rem-on-etd": _rem(b.rem_on_etd, "REM", etd="only", twin="rem"),
    "rem-ideal": _rem(b.ideal(b.rem_by_config), "REM (ideal)", part="ideal"),
    "rem-no31": _rem(b.ablation(b.rem_by_config, step31=False, step32=True), "REM without 3.1",
                     STEP3 | MASKS | {"remove_weight"}, part="ablation"),
    "rem-no32": _rem(b.ablation(b.rem_by_config, step31=True, step32=False), "REM without 3.2",
                     {"step31", "step32", "remove_weight"}, part="ablation"),
    "rem-ce": _rem(b.ablation(b.rem_by_config, redirect="ce"), "REM by cross-entropy", {"redirect", "remove_weight"},
                   part="ablation"),
    # REM+ (rem_plus.py), and the same of it.
    "rem-plus": _plus(b.rem_plus_by_config, "REM+"),
    "rem-plus-ideal": _plus(b.ideal(b.rem_plus_by_config), "REM+ (ideal)", part="of REM+"),
    "rem-plus-no31": _plus(b.ablation(b.rem_plus_by_config, step31=False, step32=True), "REM+ without 3.1",
                           STEP3 | MASKS | {"remove_weight"}, part="of REM+"),
    "rem-plus-no32": _plus(b.ablation(b.rem_plus_by_config, step31=True, step32=False), "REM+ without 3.2",
                           {"step31", "step32", "remove_weight"}, part="of REM+"),
    "rem-plus-ce": _plus(b.ablation(b.rem_plus_by_config, redirect="ce"), "REM+ by cross-entropy",
                         {"redirect", "remove_weight"}, part="of REM+"),
    # What a backdoor researcher would try with a list, or without (baselines_repair.py); not in the paper.
    "abl": Method(r.abl, "ABL", frozenset({"unlearn_lr", "forget_norm"}), part="repair", norm="batch"),
    "d-br": Method(r.d_br(), "D-BR", frozenset(TUNING), part="repair"),
    "sap": Method(r.sap(alpha=100.0), "SAP", reads_forget=False, part="repair"),
    "step2-cf": Method(r.step2_then_fine_tune, "step 2, then fine-tuning", frozenset(STEP2 | PACED | {"beta"}),
                       part="repair", norm="running"),
}
OF_ONE_TASK = {"trigger": ("poison",), "human_column": ("human",), "n": TASKS}  # of human n is found, not set
OF_VIT = {"patch", "dim", "depth"}
OPTIONAL = frozenset().union(*(method.reads for method in METHODS.values()))  # every method reads the other settings


def reads_setting(field: str, setting: dict) -> bool:
    """Whether the numbers of a setting's method depend on this field of Config; a user-supplied method may read any.

    Args: field: name of a field; setting: fields of Config, at least `method`, `task` unless it is poison,
        and `arch` unless it is resnet9.
    """
    name = setting["method"]
    if field in OF_VIT:
        return setting.get("arch", "resnet9") == "vit"
    if field in OF_ONE_TASK:
        return setting.get("task", "poison") in OF_ONE_TASK[field]
    if field not in OPTIONAL or ":" in name:
        return True
    if field in MASKS and setting.get("etd", False):
        return True  # whatever starts from a network trained with masks
    reads = METHODS[name].reads if name in METHODS else frozenset()
    if field in MASKS and "step31" in reads and not setting.get("step31", True):
        return False  # REM without 3.1 runs no masked pass
    return field in reads


def allowed_with(name: str, etd: bool) -> bool:
    """Whether a method has a meaning on a network trained with ETD, or without."""
    return name not in METHODS or METHODS[name].etd != ("none" if etd else "only")


def reads_forget(name: str) -> bool:
    """Whether a method depends on D_f; of one that does not, the network is the same at every discovery rate."""
    return name not in METHODS or METHODS[name].reads_forget


def find_method(name: str) -> tuple:
    """(name in rows, function) of a method of METHODS or of a user-supplied one, "path/to/file.py:function"."""
    return (name, METHODS[name].function) if name in METHODS else load_method(name)


def check_names(names) -> None:
    """Raise ValueError for no method, an unknown one, or two that a row could not tell apart."""
    short, known = {}, f"choose from {', '.join(METHODS)}, all or FILE.py:FUNCTION"
    if not names:
        raise ValueError(f"no method given; {known}")
    for name in names:
        if name not in METHODS and ":" not in name:
            raise ValueError(f"unknown method {name!r}; {known}")
        if short.setdefault(Path(name).name, name) != name:
            raise ValueError(f"two methods are called {Path(name).name}; give one of the files another name")


def load_method(text: str):
    """A user-supplied method from "path/to/file.py:function".

    Returns: (name, function), the name being "file.py:function".
    Raises: ValueError for no such file or function, a file that does not import, or the wrong parameters.
    """
    from experiment.user_code import function_of  # here, because most runs need none

    function = function_of(text, f"method {text}")
    name = Path(text).name
    check_signature(name, function)
    return name, function


def check_signature(name: str, function) -> None:
    """Raise ValueError unless the runner can call it with the five arguments, log= and corrupted= where it has them."""
    signature = inspect.signature(function)
    try:
        signature.bind(*range(5), **{extra: None for extra in ("log", "corrupted") if extra in signature.parameters})
    except TypeError as error:
        raise ValueError(f"{name} takes {signature} ({error}); a method takes (model, data, forget, config, generator) "
                         "and, if it likes, log= and corrupted=") from error


def code_of(method: str) -> str | None:
    """16 hexadecimal digits of the file that holds a user-supplied method, None for a method of METHODS.

    What that file imports does not count.
    """
    path = Path(method.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if ":" in method and path.is_file() else None
