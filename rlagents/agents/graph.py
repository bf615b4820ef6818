"""A function on the GPU, recorded once and then launched as a whole.

A learner step is some hundred small kernels, and starting one takes longer than running it. As a CUDA graph
they all start with one call. What a graph reads lies at fixed places: it sees what is written there later,
and none of the numbers that were Python's when it was recorded.
"""

import warnings
from collections.abc import Callable, Sequence

import torch

from rlagents.types import Metrics

_WARM_UP = 3  # calls before the recording: libraries choose their kernels, the optimiser makes its state


class Captured:
    """Calls a function of a count; after a few calls as a CUDA graph, one for each count that comes.

    Where recording fails, it says so once and goes on calling the function. That is given at each call, the
    same each time: kept here, it would hold its agent, which holds this.

    Args:
        generators: the random streams that the function draws from.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Metrics]] = {}
        self._calls = 0
        self._failed = False

    @property
    def recorded(self) -> bool:
        """Whether any graph is in use."""
        return bool(self._graphs)

    def __call__(self, function: Callable[[int], Metrics], count: int) -> Metrics:
        """Lets the function do `count` learner steps.

        Returns:
            its metrics, tensors on the GPU that the next call overwrites.
        """
        self._calls += 1
        if self._calls <= _WARM_UP or self._failed:
            return _aside(function, count)
        if count not in self._graphs and not self._record(function, count):
            return function(count)
        graph, metrics = self._graphs[count]
        graph.replay()
        return metrics

    def _record(self, function: Callable[[int], Metrics], count: int) -> bool:
        graph = torch.cuda.CUDAGraph()
        before = [generator.clone_state() for generator in self._generators]
        try:
            for generator in self._generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph):
                metrics = function(count)
        except RuntimeError as error:
            self._failed = True
            # What failed leaves its generators as if the recording went on, in which nobody else may draw.
            for generator, state in zip(self._generators, before, strict=True):
                generator.graphsafe_set_state(state)
            warnings.warn(f"learner steps run without a CUDA graph: {error}", RuntimeWarning, stacklevel=2)
            return False
        self._graphs[count] = graph, metrics
        return True


def _aside(function: Callable[[int], Metrics], count: int) -> Metrics:
    """Calls the function on a stream of its own, as what precedes a recording has to be."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        metrics = function(count)
    torch.cuda.current_stream().wait_stream(stream)
    return metrics
