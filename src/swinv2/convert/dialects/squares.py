"""Different values of `window_size` with the same effect.

In: a configuration. Out: one square window with the same effect as its windows, for libraries with no other windows;
and whether two values of `window_size` are equivalent, which means the same clipped windows in every stage.
"""

import copy

from swinv2.config import Swinv2Config
from swinv2.lengths import Windows, as_windows, plain_windows


def with_equivalent_square(config: Swinv2Config) -> Swinv2Config:
    """The configuration with one square window that gives all stages the same windows and shifts.

    Returns:
        The same configuration if it already has one square window, or if no square window is equivalent; otherwise a
        copy with the smallest equivalent one.

    Example:

        >>> with_equivalent_square(Swinv2Config(image_size=256, window_size=[16, 16, 16, 8])).window_size
        16
        >>> with_equivalent_square(Swinv2Config(image_size=256, window_size=[16, 16, 8, 8])).window_size
        [16, 16, 8, 8]
    """
    largest = max(max(spec.window) for spec in config.stages())
    is_square = isinstance(plain_windows(config.stage_windows), int)
    return config if is_square or not are_equivalent(config, largest) else _with_windows(config, largest)


def are_equivalent(config: Swinv2Config, window_size: Windows) -> bool:
    """Whether all stages have the same windows and shifts with another `window_size`, in any notation of the field."""
    return _with_windows(config, window_size).stages() == config.stages()


def _with_windows(config: Swinv2Config, window_size: Windows) -> Swinv2Config:
    other = copy.deepcopy(config)
    other.window_size = plain_windows(as_windows("window_size", window_size, len(config.depths)))
    return other
