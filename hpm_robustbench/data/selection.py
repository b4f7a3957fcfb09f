"""Which images of a dataset are evaluated, and which the prototypes come from."""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import replace
from typing import NamedTuple

from hpm_robustbench.data.examples import DataSource, ExampleSet
from hpm_robustbench.errors import InvalidInput

log = logging.getLogger(__name__)

_MOST_BYTES = 4 * 2**30
"""Images for prototypes that are held in memory; all of CIFAR or MNIST, some thousands of ImageNet's."""
_FEWEST_PER_CLASS = 10


class Selection(NamedTuple):
    """Images to evaluate, and images that prototypes are made from; no image is both."""

    evaluated: ExampleSet
    training: ExampleSet


def select(source: DataSource, n_ex: int) -> Selection:
    """The first ``n_ex`` test images, or all if there are fewer, and the training images that are not among them.

    A dataset without training images lends the test images that are not evaluated. No more images are read than are
    used or fit into 4 GiB, or make ten a class.

    Raises:
        InvalidInput: there are no images for prototypes apart from those evaluated, or none of a class that is
            evaluated; or a split breaks its contract.
    """
    fitting = _MOST_BYTES // (4 * math.prod(source.dataset.image_shape))
    room = max(fitting, _FEWEST_PER_CLASS * source.dataset.n_classes)
    training = source.train(at_most=room)
    if training is None:
        chosen = _from_test_alone(source, n_ex, room)
    else:
        evaluated = source.test(at_most=n_ex)
        chosen = Selection(evaluated, _apart(_counted(training, source, room), evaluated))
    _check_classes(chosen)
    if len(chosen.training) == room:
        log.info("prototypes come from the first %d %s images, which fill the room", room, chosen.training.split)
    return chosen


def _counted(training: ExampleSet, source: DataSource, room: int) -> ExampleSet:
    """The same images, which know how many there are if the room is full and did not take them all."""
    n = source.count_train() if source.count_train is not None and len(training) == room else room
    return replace(training, cut_from=n) if n > room else training


def _check_classes(chosen: Selection) -> None:
    """A class without a prototype of its own would be given the mean of all features, and answered wrongly."""
    absent = set(chosen.evaluated.labels.tolist()) - set(chosen.training.labels.tolist())
    if absent:
        raise InvalidInput(
            wanted="training images of every class that is evaluated",
            got=f"none of class {min(absent)} among {len(chosen.training)}, and {len(absent)} such classes in all",
            next_step="add some, or mix the order if there are more images than fit into 4 GiB: the first are taken",
        )


def _apart(training: ExampleSet, evaluated: ExampleSet) -> ExampleSet:
    seen = set(_row_hashes(evaluated))
    others = [row for row, sha in enumerate(_row_hashes(training)) if sha not in seen]
    if not others:
        raise InvalidInput(
            wanted="training images apart from those to be evaluated",
            got=f"{len(training)} that are all among the {len(evaluated)} evaluated",
            next_step="give other training images, or none",
        )
    return training if len(others) == len(training) else replace(training.take(others), cut_from=training.cut_from)


def _from_test_alone(source: DataSource, n_ex: int, room: int) -> Selection:
    test = source.test(at_most=n_ex + room)
    evaluated = test.head(min(n_ex, len(test)))
    spare = range(len(evaluated), len(test))
    if len(spare) < _FEWEST_PER_CLASS * source.dataset.n_classes:
        raise InvalidInput(
            wanted=f"images for the dataset prototypes of {source.dataset.name}, apart from those to be evaluated",
            got=f"no training images, and {len(spare)} test images besides the {len(evaluated)} evaluated",
            next_step="add x_train and y_train to the data, or lower --n-ex",
        )
    return Selection(evaluated, test.take(spare))


def _row_hashes(examples: ExampleSet) -> list[bytes]:
    return [hashlib.sha256(image.numpy().tobytes()).digest() for image in examples.images.cpu().contiguous()]
