"""Custom operators: functions that torch.compile calls and does not look into, for CPUs and for GPUs.

In: a function of tensors and numbers whose body no compiler could follow (writes into place, kernels) or should follow
(it would write whole intermediate results to memory). Out: the same function, which torch.compile has as one operation
in its graph. In eager mode nothing stands between the caller and the function; on "meta" nothing is computed.

torch.export sees none of this: what is exported must run where this package is not.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

from swinv2.ops.windows import WindowPlan

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def custom_op(fake: Callable[..., Any]) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Makes a function one operation of compiled graphs, `swinv2::` and its name. Not differentiable by itself.

    Args:
        fake: Takes the same arguments and returns empty tensors of the shapes and dtypes that the function returns. A
            number of images or tokens may be a symbol there, of which `len` would make a constant.

    Returns:
        A decorator. The function takes tensors, None, numbers and window plans by position, and returns a tensor or a
        tuple of tensors that share no memory with the arguments or each other. It runs below autograd: nothing inside
        of it is recorded.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        operation = torch.library.custom_op(
            f"swinv2::{function.__name__}", _lower_plans(function, function, remembered_plan), mutates_args=()
        )
        # Its numbers may be symbols, which cannot be remembered.
        operation.register_fake(_lower_plans(fake, function, WindowPlan.of_numbers))

        @wraps(function)
        def call(*arguments: Arguments.args, **rest: Arguments.kwargs) -> Result:
            first: Any = arguments[0]
            if not torch.compiler.is_compiling() and not first.is_meta:
                return function(*arguments, **rest)
            return operation(*(a.numbers if isinstance(a, WindowPlan) else a for a in arguments), **rest)

        return call

    return decorate


def _lower_plans(
    function: Callable[..., Any], signed: Callable[..., Any], make_plan: Callable[[Sequence[int]], WindowPlan]
) -> Callable[..., Any]:
    """A function that takes the numbers of a plan in its place; an operation has no other kinds of argument.

    Args:
        function: Takes plans.
        signed: Whose signature says where. Its annotations must be types, not strings.
        make_plan: Makes a plan of its numbers.
    """
    signature = inspect.signature(signed)
    takes_plan = [parameter.annotation is WindowPlan for parameter in signature.parameters.values()]

    def run(*arguments: Any) -> Any:
        pairs = zip(arguments, takes_plan, strict=True)
        return function(*(make_plan(argument) if is_plan else argument for argument, is_plan in pairs))

    parameters = [
        parameter.replace(annotation=Sequence[int] if is_plan else parameter.annotation)
        for parameter, is_plan in zip(signature.parameters.values(), takes_plan, strict=True)
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def remembered_plan(numbers: Sequence[int]) -> WindowPlan:
    """The same plan for the same numbers: it remembers its kinds of window."""
    return _plan_of(tuple(numbers))


@lru_cache(maxsize=256)
def _plan_of(numbers: tuple[int, ...]) -> WindowPlan:
    return WindowPlan.of_numbers(numbers)
