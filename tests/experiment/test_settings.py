"""Every setting in one dataclass (experiment/settings.py): Table 3's values, presets, and what is refused."""

import re
from dataclasses import fields, replace

import pytest

import rem
from engine.checks import settings_from
from experiment.settings import ARCH_PRESETS, BOTH_PRESETS, DATASET_PRESETS, Config, resolve

FIELDS = {f.name: f for f in fields(Config)}


# --- Table 3 ----------------------------------------------------------------------------------------------------------


def test_table_3():
    """R8: the defaults are the paper's values for ResNet-9, the presets those for the ViT and Imagenette (A.7); what
    the paper leaves open is as the tables were made with; REM's own default Settings are the same."""
    paper = dict(lr=0.025, epochs=40, batch=512, optimizer="sgd", gamma=0.2, beta=1.0, unlearn_lr=0.005,
                 unlearn_epochs=10, p_mem=0.2, n=1000, capacity=0.5, discovery=0.5, arch="resnet9", augment=True)
    ours = dict(max_passes=100, reach=0.07, disbelieved=2.0, forget_norm="auto", precision="auto")
    assert {key: getattr(Config(), key) for key in paper | ours} == paper | ours
    assert settings_from(Config(), rem.Settings) == rem.Settings()
    vit = resolve({"arch": "vit", "dataset": "svhn"})
    assert (vit.lr, vit.batch, vit.optimizer, vit.unlearn_lr, vit.epochs) == (1e-4, 2048, "adam", 2e-5, 40)
    assert resolve({"dataset": "imagenette"}).n == 100
    assert resolve({"dataset": "cifar10"}) == Config(dataset="cifar10")  # no preset touches the paper's main setting


@pytest.mark.parametrize("given, images, width", [
    ({"dataset": "cifar10"}, 50_000, 1.0), ({"dataset": "fashion-mini"}, 6_000, 0.5),
    ({"dataset": "cifar10-small"}, 10_000, 0.5), ({"dataset": "fashion-mini", "arch": "vit"}, 6_000, 1.0)])
def test_smaller_settings_keep_the_papers_proportions(given, images, width):
    """R8: 2 % of the training images are corrupted, and unlearning has a fifth of the rate and a quarter of the epochs
    of training, of ResNets half as wide on small images."""
    config = resolve(given)
    assert config.n == 0.02 * images and config.width == width
    assert config.unlearn_lr == pytest.approx(config.lr / 5) and config.unlearn_epochs == config.epochs / 4


def test_a_smaller_vit_keeps_the_papers_proportions():
    """R8: on fashion-mini a patch is a quarter of the image's side, as 8 are of 32, and the dimension an eighth."""
    config = resolve({"arch": "vit"})
    assert config.patch / 16 == Config.patch / 32 and config.optimizer == "adam"
    assert (config.dim, config.depth) == (Config.dim / 8, Config.depth)


# --- Presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["resnet9", "vit"])
@pytest.mark.parametrize("dataset", ["cifar10", *DATASET_PRESETS])
def test_which_preset_wins(dataset, arch):
    """R3: a given value beats all presets, that of both the architecture's, this the data set's, this the default."""
    config = resolve({"dataset": dataset, "arch": arch})
    layers = [DATASET_PRESETS.get(dataset, {}), ARCH_PRESETS.get(arch, {}), BOTH_PRESETS.get((dataset, arch), {}),
              {"dataset": dataset, "arch": arch}]
    for name in FIELDS:
        told = [layer[name] for layer in layers if name in layer]
        assert getattr(config, name) == (told[-1] if told else getattr(Config(), name)), name
    for name in {**layers[0], **layers[1], **layers[2]}:
        given = getattr(Config(), name)
        assert getattr(resolve({"dataset": dataset, "arch": arch, name: given}), name) == given


def test_an_unknown_setting():
    """R2: a name that is no setting is refused, with those that are."""
    with pytest.raises(ValueError, match="unknown setting 'epoch'; choose from alpha, .*epochs"):
        resolve({"epoch": 3})


def test_the_width_of_theta_o2():
    """X3, X7: it is 1 / capacity - 1, none at capacity 1; a ratio that is given wins, also one of 0."""
    assert Config(capacity=0.5).extra_ratio == 1 and Config(capacity=0.25).extra_ratio == 3
    assert Config(capacity=1.0).extra_ratio == 0 and Config(capacity=1.0, ratio=0.5).extra_ratio == 0.5
    assert Config(ratio=0.0).extra_ratio == 0 != Config(ratio=None).extra_ratio == 1


# --- What is refused --------------------------------------------------------------------------------------------------

WRONG = [("p_mem", float("nan"), ValueError, "p-mem is nan; it must be in [0, 1]"),
         ("width", 10**400, ValueError, "a finite number above 0"),
         ("n", 0, ValueError, "a finite number at least 1"),
         ("seed", 2**63, ValueError, "seed is 9223372036854775808; it must be in [0, 9223372036854775808)"),
         ("beta", "1", TypeError, "beta is '1'; it must be float"),
         ("n", 2.0, TypeError, "n is 2.0; it must be int"),
         ("epochs", True, TypeError, "epochs is True; it must be int"),
         ("etd", 1, TypeError, "etd is 1; it must be bool"),
         ("method", None, TypeError, "method is None; it must be str"),
         ("pair", 3, TypeError, "pair is 3; it must be str"),
         ("ratio", "1", TypeError, "ratio is '1'; it must be float")]


@pytest.mark.parametrize("name, value, kind, words", WRONG)
def test_a_config_checks_itself(name, value, kind, words):
    """R2: settings of a wrong type or out of their range are refused by name, by replace and by resolve alike."""
    for make in (lambda: Config(**{name: value}), lambda: replace(Config(), **{name: value}),
                 lambda: resolve({name: value})):
        with pytest.raises(kind, match=re.escape(words)):
            make()


@pytest.mark.parametrize("name", [name for name, f in FIELDS.items() if f.metadata["choices"]])
def test_choices_are_checked(name):
    """R2: every setting with choices takes each of them and nothing else."""
    for choice in FIELDS[name].metadata["choices"]:
        replace(Config(), **{name: choice})
    with pytest.raises(ValueError, match=f"{name} is 'nonsense'; choose from"):
        replace(Config(), **{name: "nonsense"})


@pytest.mark.parametrize("name", [name for name, f in FIELDS.items() if f.metadata["within"]])
def test_the_ends_of_every_range(name):
    """R2: an interval takes what is inside, an end with a square bracket, and neither beyond nor infinity."""
    within, whole = FIELDS[name].metadata["within"], FIELDS[name].type in (int, int | None)
    for text, bracket, side in zip(within[1:-1].split(", "), (within[0], within[-1]), (1, -1), strict=True):
        if text == "inf":
            taken, refused = [], [float("inf")]
        else:
            end = int(text) if whole else float(text)
            inwards = side * (1 if whole else 1e-9 * max(1, end))
            taken, refused = [end + inwards], [end - inwards]
            (taken if bracket in "[]" else refused).append(end)
        for value in taken:
            assert getattr(replace(Config(), **{name: value}), name) == value
        for value in refused:
            with pytest.raises((ValueError, TypeError), match=rf"^({name}|{name.replace('_', '-')}) is "):
                replace(Config(), **{name: value})
