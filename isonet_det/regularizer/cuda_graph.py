"""One launch on a GPU in place of hundreds: a computation as a CUDA graph. Torch only."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Outputs = tuple[Tensor, ...]


def record(
    compute: Callable[[], Outputs], device: torch.device
) -> tuple[Callable[[], None], Outputs]:
    """Record what ``compute`` launches on a GPU.

    Returns:
        a call that runs it again, on whatever its tensors hold by then, and its outputs, which
        that call overwrites.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads (of data loaders, of NCCL) may use the GPU meanwhile.
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = compute()
    return graph.replay, outputs


class GraphedFunction:
    """A function of tensors on a GPU that is recorded when it is called for the second time with
    tensors in the same places, such as a network's weights, and replayed from then on. What it
    returns are copies. Where it cannot be recorded it runs as it is, with one line in the log.

    A recording keeps the memory that the function works in. The oldest is dropped first.

    Args:
        function: of tensors and hashable settings; it must not read values back to the host.
        kept: recordings at most.
        record: for tests.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        kept: int = 2,
        record: Callable[..., tuple[Callable[[], None], Outputs]] = record,
    ) -> None:
        self.function = function
        self.kept = kept
        self._record: Callable | None = record
        self._recordings: OrderedDict[tuple, tuple[Callable[[], None], Outputs] | None]
        self._recordings = OrderedDict()

    def clear(self) -> None:
        """Drop all recordings."""
        self._recordings.clear()

    def __call__(self, tensors: Sequence[Tensor], *settings: Any) -> Outputs:
        """The function of tensors of one device."""

        def compute() -> Outputs:
            return self.function(tensors, *settings)

        device = tensors[0].device
        on_gpu = device.type == "cuda"
        # Within somebody's own CUDA graph the function becomes a part of it.
        if self._record is None or (on_gpu and torch.cuda.is_current_stream_capturing()):
            return compute()
        stream = torch.cuda.current_stream(device) if on_gpu else None
        places = ((t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors)
        key = (settings, device, stream, *places)
        known = key in self._recordings
        recording = self._recordings.setdefault(key, None)
        self._recordings.move_to_end(key)
        while len(self._recordings) > self.kept:
            self._recordings.popitem(last=False)
        if not known:
            return compute()
        if recording is None:
            try:
                recording = self._recordings[key] = self._record(compute, device)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                logger.warning("The penalty is not recorded as a CUDA graph: %s", reason)
                self._record = None
                return compute()
        replay, outputs = recording
        replay()
        return tuple(output.clone() for output in outputs)
