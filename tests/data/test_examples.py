from __future__ import annotations

import dataclasses
import hashlib
import struct

import pytest
import torch
from torch import nn

from hpm_robustbench.attacks.registry import run_attack
from hpm_robustbench.data import DataSource, ExampleSet
from hpm_robustbench.errors import InvalidInput
from hpm_robustbench.ledger.plan import Step
from hpm_robustbench.load import wrap
from hpm_robustbench.surrogates.views import Subject, make_view
from hpm_robustbench.threat import Dataset, ThreatModel

TINY = Dataset("tiny", 3, (1, 2, 2))


def example_set(n: int = 4) -> ExampleSet:
    images = torch.arange(4 * n, dtype=torch.float32).reshape(n, 1, 2, 2) / (4 * n)
    return ExampleSet(TINY, "test", images, torch.arange(n) % 3)


def test_a_whole_set_is_accepted_and_keeps_its_tensors():
    examples = example_set()
    assert len(examples) == 4
    assert examples.labels.tolist() == [0, 1, 2, 0]


def test_images_that_lay_channels_last_meet_autoattack_as_well():
    """Its APGD flattens gradients in the images' own layout; ``permute`` of a decoded picture leaves the other one."""
    pictures = torch.rand(6, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    examples = ExampleSet(Dataset("colour", 2, (3, 8, 8)), "test", pictures.permute(0, 3, 1, 2), torch.arange(6) % 2)
    assert torch.equal(examples.images.permute(0, 2, 3, 1), pictures)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).requires_grad_(False)
    net[3].bias.zero_().sub_(net(examples.images).mean(0))  # so that it answers now this, now that
    view = make_view("hpm", Subject(wrap(net, examples).classifier, net))
    step = Step("hpm", "apgd-t", "test", {"n_iter": 3})
    x, y = examples.images, view.target_logits(examples.images).argmax(dim=1)
    (x_adv,) = run_attack(step, view, x, y, torch.ones(6, dtype=torch.bool), ThreatModel.parse("Linf", "0.5"), 0, 6)
    assert (view.target_logits(x_adv).argmax(dim=1) != y).any()


@pytest.mark.parametrize("value", [-0.001, 1.001, float("nan"), float("inf"), float("-inf")])
def test_a_value_outside_the_box_is_refused_with_its_row(value):
    images = example_set().images.clone()
    images[2, 0, 1, 0] = value
    with pytest.raises(InvalidInput, match=rf"every value in \[0, 1\]; got {value:.4}.* in row 2, and 1 such rows"):
        ExampleSet(TINY, "test", images, example_set().labels)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(4, 1, 2, 2, dtype=torch.float64),
        torch.zeros(4, 1, 2, 2, dtype=torch.uint8),
        torch.zeros(4, 2, 2),
        torch.zeros(4, 1, 2, 3),
        torch.zeros(0, 1, 2, 2),
        torch.zeros(()),
    ],
    ids=["float64", "uint8", "rank 3", "another shape", "no rows", "a scalar"],
)
def test_images_of_another_type_or_shape_are_refused(images):
    with pytest.raises(InvalidInput, match="float32 tiny images of shape N x 1 x 2 x 2"):
        ExampleSet(TINY, "test", images, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_label_out_of_range_is_refused_with_its_row(label):
    labels = torch.tensor([0, label, 2, label])
    with pytest.raises(InvalidInput, match=f"labels from 0 to 2; got {label} in row 1, and 2 such rows"):
        ExampleSet(TINY, "test", example_set().images, labels)


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(3, dtype=torch.int64), torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)],
    ids=["too few", "rank 2", "int32"],
)
def test_labels_that_do_not_match_the_images_are_refused(labels):
    with pytest.raises(InvalidInput, match="int64 labels of shape 4, one per image"):
        ExampleSet(TINY, "test", example_set().images, labels)


def test_the_fingerprint_is_the_sha256_of_shape_and_little_endian_bytes():
    examples = example_set(2)
    pixels = struct.pack("<8f", *[i / 8 for i in range(8)])
    labels = struct.pack("<2q", 0, 1)
    assert examples.fingerprint == hashlib.sha256(b"(2, 1, 2, 2)" + pixels + labels).hexdigest()


def test_the_fingerprint_sees_every_part_and_no_memory_layout():
    examples = example_set()
    strided = torch.empty(4, 1, 2, 4)[..., ::2].copy_(examples.images)
    assert ExampleSet(TINY, "train", strided, examples.labels).fingerprint == examples.fingerprint
    others = [
        examples.take([1, 0, 2, 3]),
        examples.head(3),
        dataclasses.replace(examples, labels=examples.labels.flip(0).clone()),
        dataclasses.replace(examples, images=examples.images + 1 / 32),
    ]
    assert len({examples.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_take_keeps_the_given_order_and_accepts_slices():
    examples = example_set()
    assert examples.take([3, 0, 3]).labels.tolist() == [0, 0, 0]
    assert torch.equal(examples.take([3, 1]).images, examples.images[[3, 1]])
    assert torch.equal(examples.take(slice(None, None, -1)).images, examples.images.flip(0))
    assert examples.take(slice(1, 3)).fingerprint == examples.take([1, 2]).fingerprint


@pytest.mark.parametrize("rows", [[4], [0, -1]])
def test_take_refuses_rows_that_are_not_there(rows):
    with pytest.raises(InvalidInput, match=f"rows of the 4 tiny test examples; got row {rows[-1]}"):
        example_set().take(rows)


def test_take_refuses_no_rows():
    with pytest.raises(InvalidInput, match="N at least 1"):
        example_set().take([])


def test_head_is_the_first_rows():
    assert example_set().head(2).fingerprint == example_set().take([0, 1]).fingerprint


@pytest.mark.parametrize("n", [0, -1, 5])
def test_head_says_how_many_there_are(n):
    with pytest.raises(InvalidInput, match=f"between 1 and 4 examples, as many as tiny test has; got {n}"):
        example_set().head(n)


def test_a_source_reads_splits_whole_or_in_part_and_only_when_asked():
    asked = []

    def read(n):
        asked.append(n)
        return example_set().images, example_set().labels

    source = DataSource(TINY, read)
    assert asked == []
    assert source.train() is None
    assert source.test().fingerprint == example_set().fingerprint
    assert source.test(3).fingerprint == example_set().head(3).fingerprint
    assert asked == [None, 3]
    with pytest.raises(InvalidInput, match="between 1 and 4 examples"):
        source.test(5)
