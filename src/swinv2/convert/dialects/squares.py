"""Other windows with the same effect.

In: a configuration. Out: one square window that does what its windows do, for libraries that have no others; and
whether two ways to say windows come to the same. What counts is what each stage has after its map clips it.
"""

import copy

from swinv2.config import Swinv2Config
from swinv2.lengths import Windows, as_windows, plain_windows


def equivalent_square(config: Swinv2Config) -> int | None:
    """The side in tokens of one square window with which all stages have the windows and shifts that they have.

    Args:
        config: The configuration.

    Returns:
        The side as it is configured, or the smallest that does the same; None if none does.

    Example:

        >>> equivalent_square(Swinv2Config(image_size=256, window_size=[16, 16, 16, 8]))
        16
        >>> equivalent_square(Swinv2Config(image_size=256, window_size=[16, 16, 8, 8])) is None
        True
    """
    configured = plain_windows(config.stage_windows)
    if isinstance(configured, int):
        return configured
    largest = max(max(spec.window) for spec in config.stages())
    return largest if are_equivalent(config, largest) else None


def with_equivalent_square(config: Swinv2Config) -> Swinv2Config:
    """The configuration with the one square window that does what its windows do; as it is if there is none.

    Args:
        config: The configuration.
    """
    side = equivalent_square(config)
    return config if side is None else _with_windows(config, side)


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
