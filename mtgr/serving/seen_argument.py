"""How a request tells the sampler which videos its user has seen."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

SEEN_ARGUMENT: Final = "seen_videos"
"""Key of a request's extra_args: the item indices to leave out, as bytes of INDEX_DTYPE."""

INDEX_DTYPE: Final = np.dtype("<u4")


def seen_argument(indices: npt.NDArray[np.integer[Any]]) -> dict[str, bytes]:
    """The extra_args of a request whose user has seen the videos of these indices."""
    return {SEEN_ARGUMENT: indices.astype(INDEX_DTYPE).tobytes()}
