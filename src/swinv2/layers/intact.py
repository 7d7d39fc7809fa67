"""Whether modules are intact: as they were built, without hooks or replaced forwards.

In: modules. Out: the reason why they must be called, or None; and snapshots, which quickly show that nothing has
changed. A method that is replaced on a class, for all its instances, is not detected.
"""

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, is_
from types import MethodType
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


def structure(module: nn.Module) -> list[Any]:
    """Types of a module's parts and shapes of their parameters."""
    return [(type(m), [None if p is None else p.shape for p in m._parameters.values()]) for m in module.modules()]


def parts_of(module: Any, names: Iterable[str]) -> list[str]:
    """The names of the parts that the module was built with."""
    return [name for name in names if name in module.built]


def refuse_structure(module: Any, names: Iterable[str], device: torch.device) -> str | None:
    """The reason why parts of a module must be called, or None: a part is not intact, or not on the device."""
    if len(list(module.named_children())) != len(module.built):
        return "modules were added or removed"
    for name in parts_of(module, names):
        part = module.get_submodule(name)
        if structure(part) != module.built[name]:
            return f"{name} is not as it was built"
        for each in part.modules():
            if not is_unwatched(each):
                return f"{name} has hooks, or another forward than its class"
            if not has_plain_parameters(each, device.type):
                return f"{name} has parameters on another device, or that are not plain tensors"
    return None


def is_unwatched(module: nn.Module) -> bool:
    """Whether a call of a module has no other effect than its class's forward: no hooks, no forward of the instance,
    not compiled by itself, not offloaded by accelerate."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return (
        # torch.compile guards the lengths of the dictionaries.
        all(len(each) == 0 for each in hooks)
        and not _has_any_global_hook()
        # The attribute is for torch.compile, which guards it and not the dictionary in the next line.
        and type(module.forward) is MethodType
        and "forward" not in module.__dict__
        and "_hf_hook" not in module.__dict__
        and module._compiled_call_impl is None
    )


def has_plain_parameters(module: nn.Module, device: str) -> bool:
    """Whether all of a module's own parameters are plain tensors on the device."""
    return all(
        type(p) is nn.Parameter and p.device.type == device and p.layout == torch.strided
        for p in module._parameters.values()
        if p is not None
    )


class Snapshot:
    """A record of modules, in a form that is quick to compare with their current state.

    It compares every attribute of every module (type, hooks, forward, sub-modules, mode, rates, sizes), the identity of
    the parameters (an equal copy counts as a change), and the address and layout of each parameter's memory. It does
    not compare the values of the parameters.

    Args:
        owner: The module that has the parts.
        names: Names of the parts.
    """

    def __init__(self, owner: nn.Module, names: Iterable[str]) -> None:
        self.owner = ref(owner)
        self.modules = [each for name in parts_of(owner, names) for each in owner.get_submodule(name).modules()]
        own = [module.__dict__ for module in self.modules]
        self.attributes = [*own, *(d["_modules"] for d in own), owner._modules]
        self.values = list(map(dict, self.attributes))
        self.slots = [d["_parameters"] for d in own]
        self.filled = list(chain.from_iterable(map(dict.values, self.slots)))
        self.hooks = [d[name] for d in own for name in _HOOKS]
        self.parameters = [parameter for parameter in self.filled if parameter is not None]
        self.types = list(map(type, self.modules))
        self.numbers = self._parameter_layouts()
        self.is_refused = False
        self.prepared: tuple[Any, ...] = ()

    def is_current(self, owner: nn.Module) -> bool:
        """Whether the modules are unchanged and belong to this owner: a shallow copy has its original's snapshots."""
        return (
            self.owner() is owner
            and not any(self.hooks)
            and not _has_any_global_hook()
            and self._has_same_attributes()
            and sum(map(len, self.slots)) == len(self.filled)
            and all(map(is_, chain.from_iterable(map(dict.values, self.slots)), self.filled))
            and all(map(is_, map(type, self.modules), self.types))
            and self._parameter_layouts() == self.numbers
        )

    def _has_same_attributes(self) -> bool:
        """Whether the recorded attributes of the modules have not changed."""
        try:
            return self.attributes == self.values
        except Exception:
            # A new attribute cannot be compared, for example a tensor.
            return False

    def wants_gradients(self, x: Tensor) -> bool:
        """Whether a call with this map needs a backward pass."""
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters))

    def _parameter_layouts(self) -> tuple[list[int], list[Any], list[Any]]:
        """Address, dtype, shape and strides of the parameters: `.data` may have been replaced."""
        parameters = self.parameters
        return (
            list(map(Tensor.data_ptr, parameters)),
            list(map(_STORED_AS, parameters)),
            list(map(Tensor.stride, parameters)),
        )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STORED_AS = attrgetter("dtype", "shape")
