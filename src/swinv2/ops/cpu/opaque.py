"""Functions that torch.compile calls and does not look into.

In: a function of tensors and numbers whose body no compiler could follow (loops over pieces, writes into place) or
should follow (it would write whole intermediate results to memory). Out: the same function, which under torch.compile
is one operation of the graph. In eager mode nothing stands between the caller and the function.

torch.export sees through none of this: what is exported must run where this package is not.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from swinv2.ops.windows import WindowPlan


def is_compiled(tensor: Tensor) -> bool:
    """Whether torch.compile is tracing, and opaque functions may be part of its graph: on a CPU, not for an export."""
    return (
        torch.compiler.is_dynamo_compiling()
        # torch.compiler.is_exporting() returns it; torch 2.11, tracing, takes that function for True.
        and not torch.compiler._is_exporting_flag
        and tensor.device.type == "cpu"
        and type(tensor) in (Tensor, nn.Parameter)
    )


def opaque(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function one operation of compiled graphs, `swinv2::` and its name. Not differentiable by itself.

    Args:
        fake: Takes the same arguments and returns empty tensors of the shapes and dtypes that the function returns.

    Returns:
        A decorator. The function takes tensors, None, numbers and window plans by position, and returns a tensor or a
        tuple of tensors that share no memory with the arguments.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        operation = torch.library.custom_op(
            f"swinv2::{function.__name__.strip('_')}", _taking_numbers(function, function), mutates_args=()
        )
        operation.register_fake(_taking_numbers(fake, function))

        @wraps(function)
        def call(*arguments: Any) -> Any:
            if not torch.compiler.is_compiling():
                return function(*arguments)
            return operation(*(a.numbers if isinstance(a, WindowPlan) else a for a in arguments))

        return call

    return decorate


def _taking_numbers(function: Callable[..., Any], signed: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes the numbers of a plan in its place; an operation has no other kinds of argument.

    Args:
        function: Takes plans.
        signed: Whose signature says where.
    """
    signature = inspect.signature(signed)
    takes_plan = [parameter.annotation is WindowPlan for parameter in signature.parameters.values()]

    def run(*arguments: Any) -> Any:
        pairs = zip(arguments, takes_plan, strict=True)
        return function(*(WindowPlan.of_numbers(a) if is_plan else a for a, is_plan in pairs))

    parameters = [
        parameter.replace(annotation=Sequence[int] if is_plan else parameter.annotation)
        for parameter, is_plan in zip(signature.parameters.values(), takes_plan, strict=True)
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run
