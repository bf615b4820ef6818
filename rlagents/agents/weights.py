"""The weights of a network while they are learned: in float32, beside the copy that computes.

Both agents with a network learn through this; what they learn towards is their own affair.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rlagents.agents.muon import Muon
from rlagents.config import NetworkLearner
from rlagents.networks import Network, computes_in_bfloat16, has_pixels
from rlagents.schedules import Cosine, Geometric, Linear
from rlagents.types import Obs, State, Task


class Weights:
    """Three networks at most: `online` holds the weights that are moved, `working` is what computes.

    They are the same object or, in bfloat16, `working` is a copy renewed after each learner step, which
    costs less than casting the weights anew in every pass. `settled` is what is evaluated: the working one,
    or one of the moving average of the weights (Polyak and Juditsky 1992), average += rate (weights -
    average) after each learner step, in float32. Nothing is learned from it. Where the rate falls, the
    average is of more and more learner steps: those at first are soon forgotten, the last ones not.

    Args:
        config: of the agent.
        network: untrained.
        task: what it is built for.
    """

    def __init__(self, config: NetworkLearner, network: Network, task: Task) -> None:
        device = task.device
        self.online = network.to(device)
        self.narrow = config.precision == "bfloat16" or (
            config.precision == "auto" and has_pixels(task.layout) and computes_in_bfloat16(device)
        )
        self.working = copy.deepcopy(self.online).narrow_() if self.narrow else self.online
        self.renewed = list(self.working.parameters()) if self.narrow else []
        self.parameters = list(self.online.parameters())
        averages = config.average_rate > 0
        self.settled = copy.deepcopy(self.online).requires_grad_(False) if averages else self.working
        self.average: list[Tensor] = [*self.settled.parameters()] if averages else []
        self._part = torch.tensor(config.average_rate, device=device)
        self._clip = config.gradient_clip
        on_gpu = device.type == "cuda"

        def rate(factor: float) -> Tensor | float:  # a recorded graph reads it from where it is
            first = config.learning_rate * factor
            return torch.tensor(first, device=device) if on_gpu else first

        convolutions = self.online.convolution_weights() if config.muon else []
        apart = {*convolutions}
        self.optimizer = (torch.optim.AdamW if config.weight_decay else torch.optim.Adam)(
            [parameter for parameter in self.parameters if parameter not in apart],
            lr=rate(1.0),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=on_gpu,
        )
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = [(self.optimizer, 1.0)]
        if convolutions:
            self._optimizers.append((Muon(convolutions, rate(config.muon), config.weight_decay), config.muon))
        schedule = Linear if config.learning_rate_schedule == "linear" else Cosine
        steps = config.learning_rate_steps or task.env_steps
        self.rate = schedule(config.learning_rate, config.final_learning_rate, steps)
        last = config.average_rate_end or config.average_rate
        self.average_rate = Geometric(config.average_rate, last, task.env_steps)

    def centre(self, obs: Obs) -> None:
        """Takes the mean of observations [B, *O] for what bodies subtract from images, if they do."""
        self.online.centre_(obs)
        copy_buffers(self.working, self.online)
        copy_buffers(self.settled, self.online)

    def set_rates(self, env_steps: int) -> None:
        """Sets the learning rate and that of the average that are due after so many env steps."""
        for optimizer, factor in self._optimizers:
            rate, group = self.rate(env_steps) * factor, optimizer.param_groups[0]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self.average:
            self._part.fill_(self.average_rate(env_steps))

    def step(self) -> list[Tensor]:
        """Moves the online weights along the gradient on the working ones; returns its norm, if limited."""
        norm: list[Tensor] = []
        if self.renewed:
            for wide in self.parameters:
                if wide.grad is None:
                    wide.grad = torch.empty_like(wide)
            copy_tensors(_gradients(self.parameters), _gradients(self.renewed))
        if self._clip:
            norm = [nn.utils.clip_grad_norm_(self.parameters, self._clip)]
        for optimizer, _ in self._optimizers:
            optimizer.step()
        if self.renewed:
            copy_tensors(self.renewed, self.parameters)
        if self.average:
            with torch.no_grad():
                for average, weights in zip(self.average, self.parameters, strict=True):
                    average.lerp_(weights, self._part)
        self.forget_gradients()
        return norm

    def forget_gradients(self) -> None:
        """Forgets gradients: those of a recording that failed were never computed."""
        for parameter in self.renewed or self.parameters:
            parameter.grad = None

    def state_dict(self) -> State:
        """Returns the online weights, their average if there is one, and the optimiser's moments."""
        moments = {
            name: dict(optimizer.state[parameter])
            for name, parameter in self.online.named_parameters()
            for optimizer, _ in self._optimizers
            if parameter in optimizer.state
        }
        average = dict(self.settled.named_parameters()) if self.average else {}
        return {"policy": dict(self.online.state_dict()), "average": average, "optimizer": moments}

    def load_state_dict(self, state: State) -> None:
        """Restores what `state_dict` returned."""
        self.online.load_state_dict(state["policy"])
        copy_buffers(self.working, self.online)
        copy_buffers(self.settled, self.online)
        if self.renewed:
            copy_tensors(self.renewed, self.parameters)
        if self.average:  # of checkpoints from before there was one, it starts at the weights
            known = state.get("average") or state["policy"]
            copy_tensors(self.average, [known[name] for name, _ in self.settled.named_parameters()])
        names = {parameter: name for name, parameter in self.online.named_parameters()}
        for optimizer, _ in self._optimizers:
            optimizer.state.clear()
            for parameter in optimizer.param_groups[0]["params"]:
                if moments := state["optimizer"].get(names[parameter]):
                    optimizer.state[parameter] = {at: _like(parameter, each) for at, each in moments.items()}


def seeded(build: Callable[[], Network], seed: int) -> Network:
    """Returns an untrained network, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):  # torch initialises from its global stream only
        torch.manual_seed(seed)
        return build()


@torch.no_grad()
def copy_tensors(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copies tensors to others of their shapes, whatever their precision, in one call."""
    torch._foreach_copy_(list(to), list(source))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def copy_buffers(to: Network, source: Network) -> None:
    """Gives a network what another one holds beside its weights."""
    for mine, theirs in zip(to.buffers(), source.buffers(), strict=True):
        mine.copy_(theirs)


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _like(parameter: nn.Parameter, moment: Tensor) -> Tensor:
    """Returns a copy in the memory layout of the parameter: the fused Adam goes by memory, not by index."""
    if moment.shape != parameter.shape:  # a counter
        return moment.clone().to(parameter.device)
    return torch.empty_like(parameter, requires_grad=False).copy_(moment)
