"""Which class a sample has: by its number alone, so that any process knows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def labels_of(samples: range, classes: int, null_label: int | None = None) -> NDArray[np.int64]:
    """Label of sample j: the (j mod ``classes``)-th class, leaving out the one that stands for "no label".

    Examples
    --------
    >>> from fastcrit.studies.labels import labels_of
    >>> labels_of(range(5, 9), 3).tolist(), labels_of(range(4), 3, null_label=1).tolist()
    ([2, 0, 1, 2], [0, 2, 3, 0])
    """
    number = np.arange(samples.start, samples.stop) % classes
    return number if null_label is None else number + (number >= null_label)


def classes_but(classes: int, null_label: int | None) -> int:
    """Number of a network's classes without the one that stands for "no label"."""
    return classes - (null_label is not None)
