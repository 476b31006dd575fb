"""Find the convolution or linear layer directly before each norm."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Any

from torch import fx, nn

from ics_apps.norms.convert.trace import Example, traced

Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear

# Subclasses that only pad before the same convolution.
_PADDED = ("Conv2dSame", "Conv2dSameExport")


def is_plain_layer(module: nn.Module) -> bool:
    """Whether a module is a convolution or linear layer that applies its weight and bias as they are."""
    kind: Any = type(module)
    if not isinstance(module, Layer):
        return False
    base = next(base for base in kind.__mro__ if base.__module__.startswith("torch.nn.modules"))
    same_forward = kind.forward is base.forward or kind.__name__ in _PADDED
    return same_forward and "weight" in module._parameters and not module._forward_pre_hooks


def layers_before(model: nn.Module, norms: Collection[str], example: Example | None = None) -> dict[str, str]:
    """The layer whose output is a norm's input and is used by nothing else, by the norm's name.

    Found by running the example; without one by symbolic tracing, and for models that cannot be traced by adjacency in
    their `nn.Sequential`s. A layer or norm that runs several times in a forward pass has no partner.
    """
    layers = {name for name, module in model.named_modules() if is_plain_layer(module)}
    if example is not None:
        return traced(model, example, norms, layers).before
    graph = _graph(model, set(norms) | layers)
    pairs = _adjacent(model, norms, layers) if graph is None else _pairs(graph, norms, layers)
    return {norm: layer for norm, layer in pairs.items() if _once(model, norm) and _once(model, layer)}


class _Tracer(fx.Tracer):
    """Does not look into norms and layers, nor into modules without children."""

    def __init__(self, leaves: set[str]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self.leaves or not m._modules or super().is_leaf_module(m, module_qualified_name)
        )


def _graph(model: nn.Module, leaves: set[str]) -> fx.Graph | None:
    try:
        return _Tracer(leaves).trace(model)
    except Exception:
        # Symbolic tracing may fail in any way on a forward pass that asks for values or shapes.
        return None


def _pairs(graph: fx.Graph, norms: Collection[str], layers: Collection[str]) -> dict[str, str]:
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    pairs: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in norms or not node.args:
            continue
        source = node.args[0]
        if not isinstance(source, fx.Node) or source.op != "call_module" or source.target not in layers:
            continue
        if len(source.users) == 1 and calls.count(str(source.target)) == calls.count(str(node.target)) == 1:
            pairs[str(node.target)] = str(source.target)
    return pairs


def _adjacent(model: nn.Module, norms: Collection[str], layers: Collection[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            names = [f"{name}.{child}" if name else child for child in module._modules]
            pairs |= {norm: layer for layer, norm in pairwise(names) if norm in norms and layer in layers}
    return pairs


def _once(model: nn.Module, name: str) -> bool:
    wanted = model.get_submodule(name)
    return sum(module is wanted for _, module in model.named_modules(remove_duplicate=False)) == 1
