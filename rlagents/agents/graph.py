"""A function on the GPU, recorded once and then launched as a whole.

A learner step is some hundred small kernels, and starting one takes longer than running it. As a CUDA graph
they all start with one call. What a graph reads lies at fixed places: it sees what is written there later,
and none of the numbers that were Python's when it was recorded.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

_WARM_UP = 3  # calls before the recording: libraries choose their kernels, the optimiser makes its state

Result = TypeVar("Result")


class Captured(Generic[Result]):
    """Calls a function; after a few calls as a CUDA graph, one for each key that comes.

    Where recording fails, it says so once and goes on calling the function. That is given at each call, the
    same each time: kept here, it would hold its agent, which holds this.

    Args:
        what: the function does, for the warning where it cannot be recorded.
        generators: the random streams that the function draws from.
    """

    def __init__(self, what: str, generators: Sequence[torch.Generator] = ()) -> None:
        self._what, self._generators = what, generators
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, list[Tensor], Result]] = {}
        self._calls: Counter[Hashable] = Counter()
        self._failed = False

    @property
    def recorded(self) -> bool:
        """Whether any graph is in use."""
        return bool(self._graphs)

    def __call__(self, function: Callable[..., Result], key: Hashable, *given: Tensor) -> Result:
        """Calls the function with tensors.

        Args:
            function: of the tensors given.
            key: of the graph: all that the function does depends on it and on what lies at fixed places.
            given: on the GPU, of the same shapes for the same key.

        Returns:
            what the function does: tensors on the GPU that the next call with this key overwrites.
        """
        if self._failed:
            return function(*given)
        self._calls[key] += 1
        if self._calls[key] <= _WARM_UP:
            return _aside(function, given)
        if key not in self._graphs and not self._record(function, key, given):
            return function(*given)
        graph, places, result = self._graphs[key]
        for place, tensor in zip(places, given, strict=True):
            place.copy_(tensor)
        graph.replay()
        return result

    def _record(self, function: Callable[..., Result], key: Hashable, given: Sequence[Tensor]) -> bool:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        places = [tensor.clone() for tensor in given]
        before = [generator.clone_state() for generator in self._generators]
        try:
            for generator in self._generators:
                graph.register_generator_state(generator)
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                result = function(*places)
        except RuntimeError as error:
            self._failed = True
            torch.cuda.set_stream(stream)  # to which torch returns only from a recording that ended well
            self._graphs.clear()  # with the memory that they hold
            # What failed leaves its generators as if the recording went on, in which nobody else may draw.
            for generator, state in zip(self._generators, before, strict=True):
                generator.graphsafe_set_state(state)
            told = f"{self._what} runs without a CUDA graph: {error}"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
            return False
        self._graphs[key] = graph, places, result
        return True


def _aside(function: Callable[..., Any], given: Sequence[Tensor]) -> Any:
    """Calls the function on a stream of its own, as what precedes a recording has to be."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = function(*given)
    torch.cuda.current_stream().wait_stream(stream)
    return result
