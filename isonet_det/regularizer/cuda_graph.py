"""One launch on a GPU in place of hundreds: a computation as a CUDA graph. Torch only."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

logger = logging.getLogger(__name__)

Outputs = tuple[Tensor, ...]
Recording = tuple[Callable[[], None], Outputs]
_KEPT = 2  # recordings of one owner: with and without a gradient


def record(compute: Callable[[], Outputs], device: torch.device) -> Recording:
    """What runs ``compute`` again on its tensors, and its outputs, which that overwrites."""
    graph = torch.cuda.CUDAGraph()
    # Other threads (of data loaders, of NCCL) may use the GPU meanwhile.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = compute()
    return graph.replay, outputs


class GraphedFunction:
    """A function of tensors on a GPU, and hashable settings, that is recorded at the second call
    with tensors in the same places and replayed from then on; where that fails it runs as it is.
    It must not read values back. A recording keeps its memory as long as the first tensor lives."""

    def __init__(self, function: Callable[..., Outputs]) -> None:
        self.function, self.enabled = function, True
        self._recordings = WeakTensorKeyDictionary()

    def __call__(self, tensors: Sequence[Tensor], *settings: Any) -> Outputs:

        def compute() -> Outputs:
            return self.function(tensors, *settings)

        # Within somebody's own CUDA graph the function becomes a part of it.
        if not self.enabled or torch.cuda.is_current_stream_capturing():
            return compute()
        device = tensors[0].device
        places = ((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors)
        key = (settings, device, torch.cuda.current_stream(device), *places)
        recordings: OrderedDict[tuple, Recording | None]
        recordings = self._recordings.setdefault(tensors[0], OrderedDict())
        known = key in recordings
        recording = recordings.setdefault(key, None)
        recordings.move_to_end(key)
        while len(recordings) > _KEPT:
            recordings.popitem(last=False)
        if not known:
            return compute()
        if recording is None:
            try:
                recording = recordings[key] = record(compute, device)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                logger.warning("The penalty is not recorded as a CUDA graph: %s", reason)
                self.enabled = False
                return compute()
        replay, outputs = recording
        replay()
        return tuple(output.clone() for output in outputs)
