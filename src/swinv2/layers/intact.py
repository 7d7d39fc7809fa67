"""Whose modules these are: as they were built, or what somebody has made of them since.

In: modules. Out: None or the reason why they must be called; and snapshots, by which one sees quickly that nothing has
changed since. This module knows nothing of what is computed. A method that somebody exchanges on a class, for all its
instances, is not seen.
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
    """Types of a module's parts and shapes of their parameters: what it was built of, or has become."""
    return [(type(m), [None if p is None else p.shape for p in m._parameters.values()]) for m in module.modules()]


def parts_of(module: Any, names: Iterable[str]) -> list[str]:
    """Those of some parts that a module was built with."""
    return [name for name in names if name in module.built]


def refuse_structure(module: Any, names: Iterable[str], device: torch.device) -> str | None:
    """Why parts of a module must be called, whatever they compute: they are not as they were built, on a device, or
    somebody watches them."""
    if len(list(module.named_children())) != len(module.built):
        return "modules were added or taken away"
    for name in parts_of(module, names):
        part = module.get_submodule(name)
        if structure(part) != module.built[name]:
            return f"{name} is not as it was built"
        for each in part.modules():
            if not is_unwatched(each):
                return f"{name} has hooks, or another forward than its class"
            if not has_plain_parameters(each, device.type):
                return f"{name} has parameters that are elsewhere, or no plain tensors"
    return None


def is_unwatched(module: nn.Module) -> bool:
    """Whether nobody sees, replaces or pays for the calls of a module: no hooks, no forward of the instance's own, not
    compiled by itself, not offloaded by accelerate."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return (
        # The lengths: torch.compile notices when they change.
        all(len(some) == 0 for some in hooks)
        and not _has_any_global_hook()
        # The attribute too: torch.compile notices when it changes, and does not look into the dictionary again.
        and type(module.forward) is MethodType
        and "forward" not in module.__dict__
        and "_hf_hook" not in module.__dict__
        and module._compiled_call_impl is None
    )


def has_plain_parameters(module: nn.Module, device: str) -> bool:
    """Whether a module's own parameters are plain ones, on a device."""
    return all(
        type(p) is nn.Parameter and p.device.type == device and p.layout == torch.strided
        for p in module._parameters.values()
        if p is not None
    )


class Snapshot:
    """What modules consisted of when they were examined, stored so that it is quick to compare with what they are now.

    Compared are every attribute of every module (its type, hooks and forward, its sub-modules, its mode, rates and
    sizes), its parameters by identity (what was replaced by its equal counts as changed), and where and how the numbers
    of each are stored. What is not compared are the numbers themselves.

    Args:
        owner: The module whose parts they are.
        names: The parts, by name.
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
        self.numbers = self._numbers()
        self.is_refused = False
        self.prepared: tuple[Any, ...] = ()

    def is_current(self, owner: nn.Module) -> bool:
        """Whether the modules are what they were, and those of this owner; a shallow copy has the other's snapshots."""
        return (
            self.owner() is owner
            and not any(self.hooks)
            and not _has_any_global_hook()
            and self._has_same_attributes()
            and sum(map(len, self.slots)) == len(self.filled)
            and all(map(is_, chain.from_iterable(map(dict.values, self.slots)), self.filled))
            and all(map(is_, map(type, self.modules), self.types))
            and self._numbers() == self.numbers
        )

    def _has_same_attributes(self) -> bool:
        try:
            return self.attributes == self.values
        except Exception:
            # Somebody has put something there that cannot be compared, such as a tensor.
            return False

    def wants_gradients(self, x: Tensor) -> bool:
        """Whether a call with this map has a backward pass."""
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters))

    def _numbers(self) -> tuple[list[int], list[Any], list[Any]]:
        """Where the parameters' numbers are, and how they lie there: `.data` may have become another tensor's."""
        parameters = self.parameters
        return (
            list(map(Tensor.data_ptr, parameters)),
            list(map(_STORED_AS, parameters)),
            list(map(Tensor.stride, parameters)),
        )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STORED_AS = attrgetter("dtype", "shape")
