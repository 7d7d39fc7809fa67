"""Other windows with the same effect.

In: a configuration. Out: one square window that does what its windows do, for libraries that have no others; and
whether two ways to say windows come to the same. What counts is what each stage has after its map clips it.
"""

import copy

from swinv2.config import Swinv2Config
from swinv2.lengths import Windows, as_windows, plain_windows


def with_equivalent_square(config: Swinv2Config) -> Swinv2Config:
    """The configuration with the one square window with which all stages have the windows and shifts that they have.

    Args:
        config: The configuration.

    Returns:
        As it is if it has one square window, or if none does the same; else with the smallest that does.

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
    """Whether all stages have the same windows and shifts with another `window_size`.

    Args:
        config: The configuration.
        window_size: As the field takes it.
    """
    return _with_windows(config, window_size).stages() == config.stages()


def _with_windows(config: Swinv2Config, window_size: Windows) -> Swinv2Config:
    other = copy.deepcopy(config)
    other.window_size = plain_windows(as_windows("window_size", window_size, len(config.depths)))
    return other
