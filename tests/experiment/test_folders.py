"""Trees of image files (experiment/image_files.py): what is decoded, what the cache may give back, what is refused."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from experiment import image_files
from experiment.datasets import load
from pictures import write_tree


def read(folder, size=8):
    """The data set that a folder holds."""
    return load("folder", data_dir=folder, image_size=size)


def decoded(path, size):
    """(size, size, 3) int: what is made of one image file."""
    tree = path.parent / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    for split in ("train", "test"):
        (tree / split / "a").mkdir(parents=True)
        shutil.copy(path, tree / split / "a")
    return read(tree, size).train.images[0].permute(1, 2, 0).numpy().astype(int)


def assert_same_dataset(one, other):
    """Both have the same images, labels, moments and names."""
    assert one.names == other.names
    for a, b in ((one.train, other.train), (one.test, other.test)):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert (a.mean, a.std, a.pad, a.flip) == (b.mean, b.std, b.pad, b.flip)


# --- What is decoded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second, more", [("test", ()), ("val", ()), ("test", ("val",))], ids=["test", "val", "both"])
def test_a_folder(tmp_path, second, more):
    """B4: files of the right size come out pixel for pixel, in the order of the paths; val/ does for test/, which wins
    where both are there; mean and std are those of the training pixels."""
    written = write_tree(tmp_path, splits=("train", second))
    write_tree(tmp_path, splits=more, seed=1)
    dataset = read(tmp_path)
    for data, split in ((dataset.train, "train"), (dataset.test, second)):
        wanted = [pixels for path, pixels in sorted(written.items()) if path.startswith(split)]
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.stack(wanted))
        assert data.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.labels.dtype == torch.int64
    assert dataset.names == ("ant", "bee") and (dataset.train.pad, dataset.train.flip) == (1, True)
    pixels = dataset.train.images.double() / 255
    np.testing.assert_allclose(dataset.train.mean, pixels.mean((0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(dataset.train.std, pixels.std((0, 2, 3), correction=0), atol=1e-12)
    assert (dataset.test.mean, dataset.test.std) == (dataset.train.mean, dataset.train.std)


def test_a_constant_image_stays_constant(tmp_path):
    """B4: grey images come out square and RGB; a channel that never varies has std 1/255, not 0."""
    Image.new("L", (16, 24), 51).save(tmp_path / "0.png")
    assert (decoded(tmp_path / "0.png", 8) == np.full((8, 8, 3), 51)).all()
    train = read(tmp_path / "tree").train
    np.testing.assert_allclose(train.mean, [0.2] * 3, atol=1e-12)
    assert train.std == (1 / 255,) * 3


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (31, 7), (5, 80), (7, 112), (300, 20), (9, 9), (24, 36),
                                   (3000, 1)])
def test_thin_images_are_resized_around_their_middle(tmp_path, monkeypatch, shape):
    """B4, R7: what is resized is at most 16 times as long as wide; up to there it is the whole image resized."""
    rng, sizes, resize = np.random.default_rng(0), [], Image.Image.resize
    image = Image.fromarray(rng.integers(0, 256, (*shape[::-1], 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    # what it would need in memory shows nowhere else
    monkeypatch.setattr(Image.Image, "resize", lambda *args: [sizes.append(args[1]), resize(*args)][1])
    found = decoded(tmp_path / "a.png", 24)
    assert found.shape == (24, 24, 3) and max(map(max, sizes), default=24) <= 16 * 24
    scale = 24 / min(shape)
    whole = resize(image, [max(24, round(side * scale)) for side in shape], Image.Resampling.BILINEAR)
    left, top = ((side - 24) // 2 for side in whole.size)
    if max(shape) <= 16 * min(shape):
        assert np.array_equal(found, np.asarray(whole)[top : top + 24, left : left + 24])
    else:
        middle = np.asarray(image)[0, shape[0] // 2 - 1 : shape[0] // 2 + 1].astype(int)  # two of 3000 pixels
        assert np.abs(found[:, [0, -1]] - middle).max() <= 6


@pytest.mark.parametrize("mode, width, height", [("RGB", 64, 32), ("L", 32, 64)])
def test_large_jpegs_keep_their_detail(tmp_path, mode, width, height):
    """B4: in colours or grey, they are decoded at no less than twice the size asked for."""
    blocks = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(np.kron(blocks, np.ones((5, 5, 1), np.uint8))).convert(mode)
    image.save(tmp_path / "a.jpg", quality=95, subsampling=0)
    left, top = (width - 32) // 2, (height - 32) // 2
    plain = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    plain = np.asarray(plain.crop((left, top, left + 32, top + 32))).astype(int)
    assert np.abs(decoded(tmp_path / "a.jpg", 32) - plain).mean() < 5  # at a quarter: 26


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_grey_images_of_16_bits(tmp_path, kind):
    """B4, R7: 16 bits become 8 by 65535 -> 255, not by cutting off; pixels of no known range are refused by name."""
    wide = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    narrow = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4  # 8 bits in a file of 16
    for pixels, wanted in ((wide, (wide / 257).round()), (narrow, narrow)):
        Image.fromarray(pixels).save(tmp_path / f"wide.{kind}")
        with Image.open(tmp_path / f"wide.{kind}") as image:
            assert image.mode[0] == "I"  # as scanners and microscopes write it
        assert (decoded(tmp_path / f"wide.{kind}", 8) == wanted[:, :, None]).all()
    for odd in (np.linspace(0, 1, 64, dtype=np.float32), np.arange(64, dtype=np.int32) * 10_000_000):
        Image.fromarray(odd.reshape(8, 8)).save(tmp_path / "odd.tif")
        with pytest.raises(ValueError, match=r"odd\.tif .*neither of 8 bits nor of 16"):
            decoded(tmp_path / "odd.tif", 8)


# --- The cache --------------------------------------------------------------------------------------------------------


def decodes(folder, size=8) -> bool:
    """Whether a load has to decode files; that it need not shows in no result."""
    calls, inner = [], image_files.decode_image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "decode_image", lambda *args: calls.append(args) or inner(*args))
        read(folder, size)
    return bool(calls)


def test_a_second_load_reads_the_cache(tmp_path, monkeypatch):
    """R9: it decodes nothing and gives the same; of another size, or an older decoder's, all is decoded."""
    write_tree(tmp_path)
    first = read(tmp_path)
    assert not decodes(tmp_path)
    assert_same_dataset(first, read(tmp_path))
    assert decodes(tmp_path, size=4) and not decodes(tmp_path, size=4) and not decodes(tmp_path)
    assert_same_dataset(first, read(tmp_path))
    monkeypatch.setattr(image_files, "DECODER", image_files.DECODER + 1)
    assert decodes(tmp_path)


def test_a_changed_folder_is_decoded_anew(tmp_path):
    """R9: whatever is changed, renamed, new or missing, though only one of path, length and time tells it."""
    ant, bee = tmp_path / "train" / "ant", tmp_path / "train" / "bee"
    write_tree(tmp_path)
    for k in range(3):
        (bee / f"{k}.png").rename(bee / f"{k + 7}.png")
    read(tmp_path)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(ant / "1.png")
    assert read(tmp_path).train.images[1, :, 0, 0].tolist() == [1, 2, 3]
    # last of its class to first of the next: the same names in the same order, so only the folder differs
    (ant / "2.png").rename(bee / "2.png")
    assert read(tmp_path).train.labels.tolist() == [0, 0, 1, 1, 1, 1]
    # then a file of the same length, so that only the time differs; then one of the same time but longer
    for shade, height, time in ((50, 8, 1), (60, 8, 2), (70, 10, 2)):
        Image.new("RGB", (8, height), (shade, 0, 0)).save(ant / "0.bmp")
        os.utime(ant / "0.bmp", (time, time))
        assert read(tmp_path).train.images[0, 0, 0, 0] == shade
    (tmp_path / "test" / "ant" / "0.png").unlink()
    assert len(read(tmp_path).test) == 5


def test_files_that_have_changed_places_are_decoded_anew(tmp_path):
    """R9: as alike in length and time as an archive leaves them; only which file it is tells it."""
    write_tree(tmp_path)
    ant, bee = tmp_path / "train" / "ant" / "0.bmp", tmp_path / "train" / "bee" / "0.bmp"
    for path, shade in ((ant, 50), (bee, 60)):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)
        os.utime(path, (1, 1))
    assert read(tmp_path).train.images[[0, 4], 0, 0, 0].tolist() == [50, 60]
    for path, target in ((ant, tmp_path / "x"), (bee, ant), (tmp_path / "x", bee)):
        path.rename(target)
    assert read(tmp_path).train.images[[0, 4], 0, 0, 0].tolist() == [60, 50]


# --- Which files count ------------------------------------------------------------------------------------------------

def test_what_is_hidden_or_no_image_is_passed_over(tmp_path, capsys):
    """R7: names that begin with a dot are left out, folders too; how many files are none of images is told."""
    write_tree(tmp_path)
    train = tmp_path / "train"
    for hidden in (train / "ant" / ".ipynb_checkpoints", train / ".git"):
        hidden.mkdir()
        Image.new("RGB", (8, 8)).save(hidden / "0.png")
    Image.new("RGB", (8, 8)).save(train / "ant" / ".0.png")
    found = read(tmp_path)
    assert (len(found.train), found.train.classes, capsys.readouterr().err) == (6, 2, "")
    for name in ("a.gif", "b.GIF", "c"):
        (train / "bee" / name).touch()
    assert len(read(tmp_path).train) == 6
    assert "train are passed over, as no images by their names: 2 .gif, 1 no suffix; images" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_test_images_are_no_training_images(tmp_path, capsys):
    """R7: a test folder that is a link to the training images is refused; of one file it is told."""
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").symlink_to(tmp_path / "train")
    with pytest.raises(ValueError, match="test/ant/0.png is one of the training images below .*train"):
        read(tmp_path)
    (tmp_path / "test").unlink()
    shutil.copytree(tmp_path / "train", tmp_path / "test")
    (tmp_path / "test" / "bee" / "0.png").unlink()
    (tmp_path / "test" / "bee" / "0.png").symlink_to(tmp_path / "train" / "bee" / "0.png")
    assert len(read(tmp_path).test) == 6
    assert "1 of 6 images held out are training images, " in capsys.readouterr().err


def altered(key):
    """Damage to one thing that a cache holds, whose file stays one that torch reads."""
    def damage(cache):
        arrays = torch.load(cache, weights_only=True)
        if isinstance(arrays[key], torch.Tensor):
            arrays[key].view(-1)[0] ^= 1
        else:
            arrays[key] = arrays[key][::-1]
        torch.save(arrays, cache)

    return damage


DAMAGE = {"empty": lambda cache: cache.write_bytes(b""), "garbage": lambda cache: cache.write_bytes(b"not a cache"),
          "short": lambda cache: cache.write_bytes(cache.read_bytes()[: cache.stat().st_size // 2]),
          "other": lambda cache: torch.save([1, 2], cache),
          **{key: altered(key) for key in ("x_train", "y_train", "x_test", "y_test", "names", "mean", "std")}}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_decoded_anew(tmp_path, kind):
    """R9: empty, garbage, cut short, something else or altered in any one array, it is not used, and replaced."""
    write_tree(tmp_path)
    first = read(tmp_path)
    (cache,) = tmp_path.glob(".rem-cache-8-*.pt")
    DAMAGE[kind](cache)
    assert_same_dataset(first, read(tmp_path))
    assert not decodes(tmp_path)
    assert_same_dataset(first, read(tmp_path))


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "torch.save"])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, step):
    """R9: it loads all the same, and nothing is left behind (root may write anywhere, so the step is made to fail)."""
    def refuse(*args, **more):
        raise PermissionError("read-only")

    write_tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(step, refuse)
        assert len(read(tmp_path).train) == 6
    assert list(tmp_path.glob(".rem-cache*")) == []


# --- What is refused --------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_folder(tmp_path):
    """R7: a missing split or size, other classes, an empty class, a broken file: each named with its remedy."""
    with pytest.raises(ValueError, match="image_size is None.*pixels per side with --image-size .*such as 32"):
        read(tmp_path, None)
    with pytest.raises(ValueError, match="image_size is 0"):
        read(tmp_path, 0)
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/train: give the folder above .*<class>.*--data-dir"):
        read(tmp_path)
    write_tree(tmp_path, splits=("train",))
    with pytest.raises(ValueError, match=f"no folder {tmp_path}/test"):
        read(tmp_path)
    write_tree(tmp_path, splits=("test",), classes=("ant", "cat"))
    with pytest.raises(ValueError, match="same classes: only one has bee, cat"):
        read(tmp_path)
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "bee")
    (tmp_path / "test" / "bee" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot decode .*test/bee/0.png.*remove or replace"):
        read(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty.*expected .*<class>"):
        read(tmp_path)


ODD_FILES = {
    "bomb": (lambda path: Image.new("1", (14_000, 14_000)).save(path), "cannot decode .*odd.png .*pixels"),
    "pipe": (lambda path: os.mkfifo(path), "odd.png is no regular file"),
    "link to itself": (lambda path: path.symlink_to(path), "cannot read .*odd.png .*symbolic links"),
    "program": (lambda path: Image.new("L", (8, 8)).save(path, format="EPS"), "cannot decode .*cannot identify"),
    "circle": (lambda path: path.with_suffix("").symlink_to("."), "links to another one of them"),
}


@pytest.mark.skipif(os.name == "nt", reason="no pipes and links there")
@pytest.mark.parametrize("kind", ODD_FILES)
def test_odd_image_files(tmp_path, kind):
    """R7: a bomb, a pipe, a link to itself, PostScript, a circle: each is named in a line, none is waited for."""
    make, text = ODD_FILES[kind]
    write_tree(tmp_path)
    make(tmp_path / "train" / "bee" / "odd.png")
    with pytest.raises(ValueError, match=text) as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
