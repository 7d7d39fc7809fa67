"""Custom operators: functions that torch.compile calls as one operation and does not trace, for CPUs and GPUs.

In: a function of tensors and numbers that a compiler cannot trace (it writes in place, or calls kernels) or should not
trace (the compiled code would write whole intermediate results to memory). Out: the same function, as one operation of
the compiled graph. In eager mode the function is called directly. On "meta" nothing is computed.

torch.export does not use custom operators: an exported graph must run without this package.
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
    """Makes a function an operation of compiled graphs, with the name `swinv2::NAME`. It is not differentiable.

    Args:
        fake: Takes the same arguments, and returns empty tensors of the shapes and dtypes of the function's result. The
            number of images or tokens may be symbolic, so `fake` must use `shape` and not `len`, which makes a
            constant.

    Returns:
        A decorator. The function takes tensors, None, numbers and window plans by position. It returns a tensor or a
        tuple of tensors, which share no memory with each other or with the arguments. Autograd records nothing inside
        it.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Registers the function, and the shapes of its results, as an operation of torch."""
        operation = torch.library.custom_op(
            f"swinv2::{function.__name__}",
            _lower_plans(function, function, lambda numbers: _cached_plan(*numbers)),
            mutates_args=(),
        )
        # Not cached: the numbers may be symbolic.
        operation.register_fake(_lower_plans(fake, function, WindowPlan.of_numbers))

        @wraps(function)
        def call(*arguments: Arguments.args, **rest: Arguments.kwargs) -> Result:
            """Calls the function itself, or the operation in compiled graphs and on meta."""
            first: Any = arguments[0]
            if not torch.compiler.is_compiling() and not first.is_meta:
                return function(*arguments, **rest)
            return operation(*(a.numbers if isinstance(a, WindowPlan) else a for a in arguments), **rest)

        return call

    return decorate


def _lower_plans(
    function: Callable[..., Any], signed: Callable[..., Any], make_plan: Callable[[Sequence[int]], WindowPlan]
) -> Callable[..., Any]:
    """Replaces the plans among the arguments by their numbers: an operation cannot have a plan as argument.

    Args:
        function: Takes plans.
        signed: A function whose signature shows which arguments are plans. Its annotations must be types, not strings.
        make_plan: Makes a plan from its numbers.
    """
    signature = inspect.signature(signed)
    takes_plan = [parameter.annotation is WindowPlan for parameter in signature.parameters.values()]

    def run(*arguments: Any) -> Any:
        """Calls the function with plans, made of the numbers that torch's operation gets."""
        pairs = zip(arguments, takes_plan, strict=True)
        return function(*(make_plan(argument) if is_plan else argument for argument, is_plan in pairs))

    parameters = [
        parameter.replace(annotation=Sequence[int] if is_plan else parameter.annotation)
        for parameter, is_plan in zip(signature.parameters.values(), takes_plan, strict=True)
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


@lru_cache(maxsize=256)
def _cached_plan(*numbers: int) -> WindowPlan:
    """An operation's plan with these numbers, cached, because a plan caches its kinds of window."""
    return WindowPlan.of_numbers(numbers)
