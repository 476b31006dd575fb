"""Run a model once on an example and see what reaches its norms, what feeds them, and which norms no module owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ics_apps.norms.options import NormError

Example: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""An input of a model: one tensor, a tuple of positional arguments, or a mapping of named ones."""

FUNCTIONAL_NORMS = (
    "batch_norm",
    "instance_norm",
    "layer_norm",
    "group_norm",
    "rms_norm",
    "local_response_norm",
    "normalize",
    "rsqrt",
)
"""Names of torch functions that normalise, or that a norm written by hand ends in."""

# Questions about a tensor, which read none of its values.
_METADATA = frozenset(
    [
        *("__get__", "dim", "size", "stride", "numel", "nelement", "ndimension", "element_size", "is_contiguous"),
        *("is_floating_point", "is_complex", "get_device", "type", "data_ptr", "storage_offset", "__len__", "__hash__"),
    ]
)


@dataclass
class Trace:
    """What one forward pass showed.

    Attributes:
        ranks: Ranks of the inputs of each norm, by its name.
        channels: Size of axis 1 of the first input of each norm.
        before: The layer whose output is the norm's input and is used by nothing else, by the norm's name.
        not_reached: Norm functions called outside any norm module.
    """

    ranks: dict[str, set[int]] = field(default_factory=dict)
    channels: dict[str, int] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    not_reached: list[str] = field(default_factory=list)


def traced(model: nn.Module, example: Example, norms: Iterable[str], layers: Iterable[str]) -> Trace:
    """Run the model once, in evaluation mode and without gradients, and watch it.

    Args:
        model: Left as it was: modes, buffers and hooks too.
        example: An input of it.
        norms: Names of its norms.
        layers: Names of the layers that may stand before a norm.

    Raises:
        NormError: The model does not run on the example.
    """
    watch = _Watch(model, frozenset(norms), frozenset(layers))
    args, kwargs = _arguments(example)
    with ExitStack() as stack:
        stack.enter_context(_evaluation(model))
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(watch.entering(name), prepend=True, with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(watch.leaving(name), always_call=True).remove)
        stack.enter_context(watch)
        try:
            output = model(*args, **kwargs)
        except Exception as error:
            raise NormError(
                f"the model does not run on the example ({type(error).__name__}: {error}); `example` is an input "
                "tensor, a tuple of arguments or a dict of named arguments"
            ) from error
    return watch.result(output)


class _Watch(TorchFunctionMode):
    """Sees every module that runs and every torch function that it calls."""

    def __init__(self, model: nn.Module, norms: frozenset[str], layers: frozenset[str]) -> None:
        super().__init__()
        self.trace = Trace()
        self.norms, self.layers = norms, layers
        self.kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        self.running: list[str] = []
        self.calls: dict[str, int] = {}
        # Outputs are kept, or the next tensor could have the identity of one that is gone.
        self.made: dict[int, tuple[str, Tensor]] = {}
        self.users: dict[str, list[str]] = {}

    def entering(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.running.append(name)
            self.calls[name] = self.calls.get(name, 0) + 1
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if name in self.norms and tensors:
                self.trace.ranks.setdefault(name, set()).add(tensors[0].dim())
                self.trace.channels.setdefault(name, tensors[0].shape[min(1, tensors[0].dim() - 1)])
                if id(tensors[0]) in self.made:
                    self.users.setdefault(self.made[id(tensors[0])][0], []).append(name)

        return hook

    def leaving(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self.running.pop()
            if name in self.layers and isinstance(output, Tensor):
                self.made[id(output)] = (name, output)

        return hook

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        called = getattr(func, "__name__", "")
        norm = next((name for name in self.running if name in self.norms), None)
        if norm is None:
            if called in FUNCTIONAL_NORMS and self.running:
                self._note(called)
            if called not in _METADATA:
                for value in tree_leaves((args, kwargs)):
                    if isinstance(value, Tensor) and id(value) in self.made:
                        self.users.setdefault(self.made[id(value)][0], []).append("")
        return func(*args, **(kwargs or {}))

    def _note(self, called: str) -> None:
        owner = self.running[-1]
        call = f"{called} in {owner or 'the model'} ({self.kinds[owner]})"
        if call not in self.trace.not_reached:
            self.trace.not_reached.append(call)

    def result(self, output: Any) -> Trace:
        """The trace, with the pairs of layers and norms that belong to each other alone."""
        returned = {id(value) for value in tree_leaves(_plain(output)) if isinstance(value, Tensor)}
        shown = {layer for made, (layer, _) in self.made.items() if made in returned}
        for layer, users in self.users.items():
            alone = len(users) == 1 and users[0] and self.calls[layer] == self.calls[users[0]] == 1
            if alone and layer not in shown:
                self.trace.before[users[0]] = layer
        return self.trace


def _plain(output: Any) -> Any:
    """Outputs of transformers are mappings of a class that the tree functions do not open."""
    return dict(output) if isinstance(output, Mapping) else output


def _arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; modes, random numbers and torch's attention kernels as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    # The fused encoder kernel would run the norms without calling them.
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes.items():
            module.training = training
