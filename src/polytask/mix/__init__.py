"""Mix: which streams feed the next step."""

from polytask.mix.base import Mix
from polytask.mix.proportional import Proportional
from polytask.mix.schedule import Schedule
from polytask.mix.temperature import Temperature
from polytask.mix.uniform import Uniform

__all__ = ["Mix", "Proportional", "Schedule", "Temperature", "Uniform"]
