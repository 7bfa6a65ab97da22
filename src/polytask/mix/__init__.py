"""Mix: which streams feed the next step.

Everything is imported when it is first used (PEP 562).
"""

from typing import TYPE_CHECKING

from polytask.lazily import lazily

if TYPE_CHECKING:
    from polytask.mix.alternating import Alternating
    from polytask.mix.base import (
        Mix,
        Now,
        Observer,
        Optimised,
        State,
        StreamOptimiser,
        Streams,
        Varies,
        optimiser_for,
    )
    from polytask.mix.curriculum import Curriculum
    from polytask.mix.dmt import DMT
    from polytask.mix.fixed_rates import FixedRates
    from polytask.mix.hinting import Hinting
    from polytask.mix.loss_driven import LossDriven
    from polytask.mix.losses import task_mean
    from polytask.mix.mixture import Mixture, Row, Sampler
    from polytask.mix.mt_adamw import MTAdamW
    from polytask.mix.nested import Nested
    from polytask.mix.over_time import OverTime
    from polytask.mix.packing import Packed, first_fit_decreasing, pack
    from polytask.mix.padding import pad, token_batches
    from polytask.mix.programs import Programs
    from polytask.mix.proportional import Proportional
    from polytask.mix.rich_first import RichFirst
    from polytask.mix.schedule import Schedule, steps_per_epoch
    from polytask.mix.skill_it import SkillIt, edges
    from polytask.mix.temperature import Temperature
    from polytask.mix.uniform import Uniform
    from polytask.mix.unmixed import Unmixed

_WHERE = {
    "Alternating": "alternating",
    "Mix": "base",
    "Now": "base",
    "Observer": "base",
    "Optimised": "base",
    "State": "base",
    "StreamOptimiser": "base",
    "Streams": "base",
    "Varies": "base",
    "optimiser_for": "base",
    "Curriculum": "curriculum",
    "DMT": "dmt",
    "FixedRates": "fixed_rates",
    "Hinting": "hinting",
    "LossDriven": "loss_driven",
    "task_mean": "losses",
    "Mixture": "mixture",
    "Row": "mixture",
    "Sampler": "mixture",
    "MTAdamW": "mt_adamw",
    "Nested": "nested",
    "OverTime": "over_time",
    "Packed": "packing",
    "first_fit_decreasing": "packing",
    "pack": "packing",
    "pad": "padding",
    "token_batches": "padding",
    "Programs": "programs",
    "Proportional": "proportional",
    "RichFirst": "rich_first",
    "Schedule": "schedule",
    "steps_per_epoch": "schedule",
    "SkillIt": "skill_it",
    "edges": "skill_it",
    "Temperature": "temperature",
    "Uniform": "uniform",
    "Unmixed": "unmixed",
}

__getattr__, __dir__ = lazily(__name__, _WHERE)

__all__ = [
    "DMT",
    "Alternating",
    "Curriculum",
    "FixedRates",
    "Hinting",
    "LossDriven",
    "MTAdamW",
    "Mix",
    "Mixture",
    "Nested",
    "Now",
    "Observer",
    "Optimised",
    "OverTime",
    "Packed",
    "Programs",
    "Proportional",
    "RichFirst",
    "Row",
    "Sampler",
    "Schedule",
    "SkillIt",
    "State",
    "StreamOptimiser",
    "Streams",
    "Temperature",
    "Uniform",
    "Unmixed",
    "Varies",
    "edges",
    "first_fit_decreasing",
    "optimiser_for",
    "pack",
    "pad",
    "steps_per_epoch",
    "task_mean",
    "token_batches",
]
