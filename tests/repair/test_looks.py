"""Which images look like D_f (repair/looks.py): the probe, however many are bad, looks that say nothing, the cut."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given

from helpers import assert_close, gen, seeds
from repair.looks import (CHANCE, FOLDS, apart, as_similar, crossed, gaps, groups, looking_alike, probe, probe_logits,
                          similarities)

# --- The probe --------------------------------------------------------------------------------------------------------



@given(seeds)
def test_the_probe_is_at_its_minimum(seed):
    """S13: no step away from the probe's weights lowers its loss, computed in numpy; scale of features is no matter."""
    h = torch.randn((20, 5), generator=gen(seed)).double()
    forget = torch.randperm(20, generator=gen(seed))[: 1 + seed % 19]
    found = probe(h, forget)
    x = (h.numpy() - h.numpy().mean(0)) / h.numpy().std(0)
    known = np.isin(np.arange(20), forget.numpy())
    f = np.log(found.numpy()) - np.log1p(-found.numpy())
    w = np.linalg.lstsq(np.c_[x, np.ones(20)], f, rcond=None)[0]

    def loss(w):
        f = np.c_[x, np.ones(20)] @ w
        return (np.logaddexp(0, -f[known]).mean() + np.logaddexp(0, f[~known]).mean() + w[:-1] @ w[:-1] / 20) / 2

    for k in range(6):
        for step in (-1e-2, 1e-2):
            assert loss(w) <= loss(w + step * np.eye(6)[k]) + 1e-9
    assert_close(probe(7 * h + 3, forget), found, 1e-3)
    assert_close(probe(torch.cat([h, torch.ones(20, 1)], 1), forget), found, 1e-3)  # a constant says nothing


@pytest.mark.parametrize("k", [1, 2, 7, 12])
def test_no_probe_knows_whom_it_is_asked_about(k):
    """S24: D_f's j-th image is told by the probe without the images j, j + FOLDS, ..., the others by the mean; a single
    image, which cannot be held out, by the probe that knows it."""
    h, n = torch.randn((40, 6), generator=gen(k)).double(), 40
    forget = torch.randperm(n, generator=gen(k + 1))[:k]
    found, ordered, parts = crossed(h, forget), sorted(forget.tolist()), min(FOLDS, k)
    told = []
    for fold in range(parts):
        out = ordered[fold::parts] if k > 1 else []
        inside = [i for i in range(n) if i not in out]
        known = torch.tensor([i in ordered for i in inside])
        told.append(probe_logits(h[inside], known, h))
    for i in range(n):
        twin = told[ordered.index(i) % parts][i] if i in ordered else sum(f[i] for f in told) / parts
        assert float(found[i]) == pytest.approx(float(twin), rel=1e-6, abs=1e-8)
    assert torch.allclose(found, torch.logit(probe(h, forget)), atol=1e-2) == (k == 1)


# --- Which images look alike ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bad, known", [(30, 6), (30, 15), (100, 10), (200, 20)])
def test_however_many_are_bad_they_are_told_from_the_others(bad, known):
    """A tenth to a half of the bad ones is known; 200 good ones have the same label: nearly all are found. Of 810
    images of other labels ten lie where the bad ones do: they are not taken for bad, since D_f has none of these."""
    h = torch.randn(1010 + bad, 8, generator=gen(bad), dtype=torch.float64)
    h[:bad, 0] += 5
    h[-10:, 0] += 5
    labels = torch.cat([torch.zeros(200 + bad, dtype=torch.int64), 1 + torch.arange(810) % 4])
    forget = torch.arange(0, bad, bad // known)
    found = looking_alike(h, labels, forget, 0)
    assert not found[forget].any() and not found[labels != 0].any()
    assert int(found[:bad].sum()) >= 0.8 * (bad - known) and int(found[bad:].sum()) <= 40


@pytest.mark.parametrize("seed", range(4))
def test_looks_that_say_nothing_drop_nothing(seed):
    """Known images that look like all others, also in more dimensions than images; and features without any."""
    for width in (8, 400):
        h = torch.randn(300, width, generator=gen(seed), dtype=torch.float64)
        assert not looking_alike(h, torch.arange(300) % 2, torch.arange(0, 60, 2), seed).any()
    assert not looking_alike(torch.ones(300, 8, dtype=torch.float64), torch.arange(300) % 3, torch.arange(12), 0).any()


@pytest.mark.parametrize("alike, known, some", [(100, 20, False), (60, 20, True), (14, 8, True), (14, 3, False)])
def test_looks_that_are_not_used(alike, known, some):
    """Where a third of 300 images look like D_f, they are not dropped; where a fifth do, they are. Fewer than four
    known images cannot be held out in turn."""
    h = torch.randn(300, 4, generator=gen(0), dtype=torch.float64)
    h[:alike] += 9
    assert looking_alike(h, torch.zeros(300, dtype=torch.int64), torch.arange(known), 0).any() == some


def test_no_probe_knows_the_image_that_it_judges():
    """An image's own similarity is that of a loop over fifths, each of which has its share of both kinds, and the mean
    is over all probes; in more dimensions than images, where a probe tells any images apart that it knows, the own ones
    tell nothing."""
    h, known = torch.randn(50, 80, generator=gen(2), dtype=torch.float64), torch.arange(50) < 10
    own, mean = similarities(h, known, 5, gen(0))
    assert 0.2 < float((own[known][:, None] > own[~known]).double().mean()) < 0.8
    order = gen(0)
    parts = [side[torch.randperm(len(side), generator=order)] for side in (torch.arange(10), torch.arange(10, 50))]
    total = torch.zeros(50, dtype=torch.float64)
    for k in range(5):
        out = torch.cat([part[k::5] for part in parts])
        inside = ~torch.isin(torch.arange(50), out)
        found = probe_logits(h[inside], known[inside], h)
        total += found
        assert torch.allclose(own[out], found[out], atol=1e-6)
    assert torch.allclose(mean, total / 5, atol=1e-6)


def test_images_are_compared_with_those_of_their_label():
    """Labels with four of D_f or more are groups of their own; the others are one, if four of D_f are left in it."""
    labels = torch.arange(40) % 4
    of = [torch.arange(y, 40, 4) for y in range(4)]
    found = list(groups(labels, torch.cat([of[1][:4], of[2][:3], of[3][:1]])))
    assert [set(group.nonzero()[:, 0].tolist()) for group in found] == [
        set(of[1].tolist()), set(of[0].tolist()) | set(of[2].tolist()) | set(of[3].tolist())]
    assert len(list(groups(labels, torch.cat([of[1][:4], of[2][:3]])))) == 1
    assert not list(groups(labels, of[2][:3]))


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_is_that_of_a_loop(seed):
    """The others whose mean similarity is at least the own one of the member at which r - q is largest."""
    generator = gen(seed)
    own, mean = torch.randn(2, 120, generator=generator, dtype=torch.float64)
    members, others = torch.arange(120) < 15, torch.arange(120) >= 30
    own[members] += 2
    best, cut = -9.0, None
    for value in own[members].tolist():
        r = sum(s >= value for s in own[members].tolist()) / 15
        q = sum(s >= value for s in mean[others].tolist()) / 90
        best, cut = max((best, cut or 0.0), (r - q, value))
    assert float(gaps(own[members], mean[others]).max()) == pytest.approx(best, abs=1e-12)
    assert torch.equal(as_similar(own, mean, members, others), others & (mean >= cut))


@pytest.mark.parametrize("m", [1, 4, 9, 20, 100])
def test_what_is_apart_is_what_chance_does_not_make(m):
    """By Smirnov's bound: a gap is made by chance with exp(-2 gap^2 m n / (m + n)), which has to be below CHANCE."""
    members, others = torch.ones(m), (torch.arange(100) >= 50).float()  # r - q = 1 / 2 at 1
    assert apart(members, others) == (math.exp(-2 * 0.25 * m * 100 / (m + 100)) < CHANCE)
    assert not apart(members, others[:0])
