"""The ViT's size in settings: Table 3's unless they say otherwise, and one for two cores on fashion-mini."""

from dataclasses import replace

import pytest

from experiment.cell import new_model
from experiment.datasets import load
from experiment.settings import ARCH_PRESETS, resolve
from helpers import make_dataset
from models import build
from study.plan import expand_axes, original_of
from study.rows import cell_key


def shapes(net) -> dict:
    """The shapes of all parameters."""
    return {name: tuple(p.shape) for name, p in net.named_parameters()}


def test_table_3_is_the_default():
    """On other data than fashion-mini the ViT has Table 3's patches, dimension, depth, heads and hidden units."""
    config = resolve({"arch": "vit", "dataset": "svhn"})
    dataset = make_dataset(0, channels=3, size=32, classes=10)
    assert shapes(new_model(config, dataset)) == shapes(build("vit", 0.5))
    assert (config.lr, config.batch, config.unlearn_lr) == tuple(
        ARCH_PRESETS["vit"][name] for name in ("lr", "batch", "unlearn_lr"))


def test_fashion_mini():
    """On fashion-mini an image of 16 pixels is 16 patches of 4, and 50 % of the network 124 thousand parameters, less
    than ResNet-9's there; the proportions of Table 3 stay."""
    config = resolve({"arch": "vit"})
    dataset = load("fashion-mini")
    net = new_model(config, dataset)
    assert net.position.shape == (1, 16 + 1, 64) and len(net.ff) == 4
    assert net.ff[0][1].weight.shape == (96, 64)  # half of 3 x 64
    sizes = [sum(p.numel() for p in new_model(resolve({"arch": arch}), dataset).parameters())
             for arch in ("vit", "resnet9")]
    assert sizes == [123_886, 143_296]
    assert config.optimizer == "adam" and config.n == 120
    assert config.unlearn_lr == pytest.approx(config.lr / 5) and config.unlearn_epochs == config.epochs / 4
    assert resolve({"arch": "vit", "dim": 32, "epochs": 3}).epochs == 3


def test_sizes_tell_cells_of_the_vit_apart():
    """Each size makes another cell and original of the ViT, and none of ResNet-9."""
    for arch, apart in (("vit", True), ("resnet9", False)):
        base = resolve({"arch": arch, "method": "rem"})
        for change in (dict(patch=2), dict(dim=128), dict(depth=2)):
            other = replace(base, **change)
            assert (cell_key(base) != cell_key(other)) == apart
            assert (cell_key(original_of(base)) != cell_key(original_of(other))) == apart
    assert len(expand_axes({"arch": "resnet9,vit", "depth": "2,4", "method": "rem"})) == 3


@pytest.mark.parametrize("size, text", [(dict(patch=3), "image size 16 and patch size 3 do not fit"),
                                        (dict(patch=16), "at least 32")])
def test_sizes_that_do_not_fit(size, text):
    """A patch that does not divide the image is refused before training."""
    with pytest.raises(ValueError, match=text):
        new_model(resolve({"arch": "vit", **size}), load("fashion-mini"))
