"""The charts of a report: which numbers each shows, and in words what is normal and what is alarming."""

from dataclasses import dataclass

from trainers.hooks import alarms

WORSE = "a rise that stays"


@dataclass(frozen=True)
class Sign:
    """A chart of a report.

    Attributes:
        title: Its title.
        source: The file whose numbers it shows: log, health or metrics.
        names: A regular expression for the whole names of its numbers.
        normal: What a healthy run shows.
        alarming: What a failing run shows.
        logarithmic: Whether its axis is logarithmic.
        bounds: The values at which alarms lie, drawn as lines.
        by_name: Whether each number has a chart of its own.
    """

    title: str
    source: str
    names: str
    normal: str
    alarming: str
    logarithmic: bool = False
    bounds: tuple[float, ...] = ()
    by_name: bool = False


QUALITY_SIGNS = (
    Sign(
        "Student: {name}",
        "metrics",
        r"(?!halves$|samples$)[\w ]+",
        "It approaches that of the teacher, fast at first and then slowly.",
        "It turns back and stays there: the best weights are in best/.",
        by_name=True,
    ),
    Sign(
        "Distance to the teacher's samples",
        "health",
        "distance",
        f"It falls to 0.3 of its start in a few updates, and ends below {alarms.LEAST_DISTANCE:g}.",
        f"It is above that at the start, or stays above {alarms.STALLED:g} of it.",
    ),
    Sign(
        "Diversity of the samples of one condition",
        "health",
        "diversity",
        "It rises from the blurred start to above 0.85. 1 is that of the teacher.",
        f"It falls below {alarms.DIVERSITY:g} of its start, or below {alarms.LEAST_DIVERSITY:g} later: samples become"
        " alike.",
        bounds=(alarms.LEAST_DIVERSITY,),
    ),
    Sign(
        "Contrast over the teacher's",
        "health",
        r"contrast(/.*)?",
        "Every channel goes to 1.",
        "A channel moves away from 1: samples fade or overshoot.",
        bounds=(1.0,),
    ),
    Sign(
        "Shift of the mean, in standard deviations",
        "health",
        r"mean(/.*)?",
        "Every channel stays within 0.06 of 0.",
        "A channel is beyond 0.2: samples become brighter or darker.",
        bounds=(-0.2, 0.2),
    ),
    Sign(
        "Power by octave, ln over the teacher's",
        "health",
        r"spectrum(/.*)?",
        "Every octave goes to 0.",
        "An octave moves beyond 0.4: samples lose or gain detail of this size.",
        bounds=(-0.4, 0.4),
    ),
)
"""The charts of what the samples are like."""

TRAINING_SIGNS = (
    Sign(
        "Loss of the fake: {name}",
        "log",
        r"fake/(?!grad_norm|lr|updates|skipped).*",
        "It settles in the first lines, and then follows the student.",
        "It jumps by a factor, or is not finite.",
        by_name=True,
    ),
    Sign(
        "Loss of the generator: {name}",
        "log",
        r"generator/(?!grad_norm|lr|updates|skipped).*",
        "A surrogate: it may have any value and need not fall.",
        "It grows without end.",
        by_name=True,
    ),
    Sign(
        "Loss of the teacher",
        "log",
        r"teacher/(?!grad_norm|lr|updates|skipped).*",
        "It falls, slower and slower.",
        WORSE,
    ),
    Sign(
        "Gradient norms before clipping",
        "log",
        r"\w+/grad_norm",
        "They stay within a factor of 3 from line to line.",
        "They drift upwards by factors. Spikes precede skipped updates.",
        logarithmic=True,
    ),
    Sign(
        "Gap between teacher and fake",
        "log",
        r"health/gap(/.*)?",
        "It rises from 0, then falls or stays: the distance still to go, as the networks see it.",
        f"It grows to {alarms.GAP:g} times its smallest mean of three lines.",
    ),
    Sign(
        "Error of the fake over that of the teacher",
        "log",
        r"health/fake_vs_teacher(/.*)?",
        "It is at most 1.03 at every noise level, and 1.25 in single lines.",
        f"It is above {alarms.LAG:g} at some level in two lines running: the fake lags behind the student.",
        bounds=(1.0, alarms.LAG),
    ),
    Sign(
        "Loss of the fake, per element",
        "log",
        "health/fake_loss",
        "It is below 1.",
        f"It is above {alarms.FAKE_LOSS:g}: the fake learns low noise alone.",
        bounds=(alarms.FAKE_LOSS,),
    ),
    Sign(
        "Weight of the loss",
        "log",
        r"health/weight(/.*)?",
        "No noise level is far above the others.",
        "One level leads by a factor of 100: the normaliser is near its floor.",
        logarithmic=True,
    ),
    Sign(
        "Right judgements of the discriminator",
        "log",
        "health/accuracy.*",
        "Around 0.5 it sees no difference, and between 0.5 and 0.95 it is of use.",
        f"It is above {alarms.SATURATED:g} for long: it has won, and its gradients say little.",
        bounds=(0.5, alarms.SATURATED),
    ),
    Sign(
        "Norms of the terms at the sample",
        "log",
        r"health/\w+_at_x",
        "The matching term leads.",
        "An adversarial or reward term leads: it drives the samples away from the teacher.",
        logarithmic=True,
    ),
)
"""The charts of how the networks train."""

MACHINE_SIGNS = (
    Sign(
        "Learning rates", "log", r"\w+/lr", "They follow the schedule of the recipe.", "A rate that you did not mean."
    ),
    Sign(
        "Updates of the fake in a round",
        "log",
        "fake/updates_a_round",
        "1 to 3, changing.",
        "5 for long: the pace cannot keep up.",
    ),
    Sign(
        "Skipped updates so far",
        "log",
        r"\w+/skipped",
        "0.",
        "A rise: losses or gradients were not finite.",
    ),
    Sign(
        "Images per second", "log", "time/images_per_second", "It is level.", "It falls: memory or data are in the way."
    ),
    Sign("Peak memory, GiB", "log", "time/peak_memory_gib", "It is level after the first lines.", "It grows."),
)
"""The charts of speed, memory and rates."""
