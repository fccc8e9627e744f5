"""Made-up speed samples of a flywheel: the same for the same wheel on every machine."""

import math

RATED_RPM = 16_000


def _noise(state):
    """One step of a 32-bit linear congruential generator; returns the next state and a value in [-1, 1)."""
    state = (1_664_525 * state + 1_013_904_223) % 2**32
    return state, state / 2**31 - 1.0


def day(wheel, minutes):
    """Yields (minute, rpm): the wheel charges at night, discharges at noon and in the evening."""
    state = 7919 * wheel
    for minute in range(minutes):
        hour = minute / 60.0
        charge = 0.75 + 0.2 * math.cos(2 * math.pi * hour / 24)
        demand = 0.12 * math.exp(-((hour - 12) ** 2) / 4) + 0.22 * math.exp(-((hour - 19) ** 2) / 6)
        state, jitter = _noise(state)
        yield minute, round(RATED_RPM * (charge - demand) + 25 * jitter)
