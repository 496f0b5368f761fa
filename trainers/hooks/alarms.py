"""Alarms: rules about the lines of log.jsonl and health.jsonl. Each says what goes wrong, and what to do about it.

docs/health.md has the runs in which the bounds were found.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite, log
from statistics import median
from typing import Any

from trainers.engine.meter import BINS
from trainers.io.console import plain

Line = Mapping[str, Any]
RECOVERED = 3  # lines in a row without an alarm, after which it may come again
LINES_BACK = 1_000  # lines back at most to which a number is compared with its smallest

# The bounds. Behind each is the worst number of a healthy run, and that of a failing one at its alarm.
LAG = 1.5  # the fake's error over the teacher's at some noise level, in two lines running: 1.03 and 11
GAP = 1.5  # the gap over its smallest since the start, in means of 3 lines: 1.2. No failing run of ours had more
FAKE_LOSS = 1.5  # of an element: 0.5 and 3.9. A denoiser that is a linear function of x_t has up to 1.25
NOISE = 0.02  # of the distance: thrice that between two sets of 256 samples of a teacher
STALLED, LEAST_DISTANCE = 0.5, 0.05  # of the distance at the start: 0.4 and 0.6. Good students come below 0.05
DIVERSITY = 0.93  # of the diversity at the start: 1.0 and 0.9
LEAST_DIVERSITY = 0.7  # of the teacher's, after a tenth of the comparisons
DRIFT = 5.0  # of a gradient norm over its smallest, in medians of 5 lines: at most 3.6 in 75 runs
SATURATED = 0.95  # of the judgements of a discriminator, in 5 lines running: 0.64 at most in 9 runs
RECALL = 0.8  # of the best recall, in two evaluations running


@dataclass(frozen=True)
class Rule:
    """A rule about the lines of a log.

    Attributes:
        name: The name of the alarm, and its anchor in docs/health.md.
        look: (lines until now) -> the numbers that are seen, with their bound, or None while all is well.
        meaning: The meaning of these numbers.
        cure: The changes of the recipe to try first.
    """

    name: str
    look: Callable[[Sequence[Line]], str | None]
    meaning: str
    cure: str


class Alarms:
    """The alarms of one log: a rule warns when it is first broken, and again only after it has recovered.

    Its state is a function of the lines alone, so that a resume neither repeats an alarm nor loses one.

    Args:
        rules: The rules.
        lines: The lines that the run has written already.

    Attributes:
        lines: The lines until now.
    """

    def __init__(self, rules: Sequence[Rule], lines: Iterable[Line] = ()) -> None:
        self.rules, self.lines = rules, list[Line]()
        self._well = {rule.name: RECOVERED for rule in rules}  # lines in a row in which a rule was kept
        known = [_finite(line) for line in lines]
        self.lines += known[:-RECOVERED]
        for line in known[-RECOVERED:]:  # these decide which alarms may come again
            self._new(line)

    def judge(self, line: dict[str, Any]) -> dict[str, Any]:
        """Return a new line with the `alarms` that it raises, if it raises any, and print them."""
        if new := self._new(line):
            line = {**line, "alarms": new}
            for alarm in new:
                plain(stderr=True).print(f"alarm at {line['images']:,} images: {alarm}", style="yellow")
        return line

    def _new(self, line: Line) -> list[str]:
        """Return the alarms that a new line raises."""
        self.lines.append(_finite(line))
        raised = []
        for rule in self.rules:
            seen = rule.look(self.lines)
            if seen is not None and self._well[rule.name] >= RECOVERED:
                raised.append(f"{seen}: {rule.meaning}. {rule.cure} (docs/health.md#{rule.name})")
            self._well[rule.name] = self._well[rule.name] + 1 if seen is None else 0
        return raised


def _finite(line: Line) -> Line:
    """Return a line without the numbers that are not finite, which would hide what comes after them."""
    return {key: value for key, value in line.items() if not (isinstance(value, float) and not isfinite(value))}


def fake_lags(lines: Sequence[Line], from_start: bool) -> str | None:
    """Return the worst noise level, if the fake lags there in two lines running, and did so or not in the first two."""
    worst = _lag(lines[-2:])
    return None if worst is None or (_lag(lines[:2]) is not None) != from_start else worst


def _lag(lines: Sequence[Line]) -> str | None:
    """Return the noise level of the highest ratio that is above its bound in both of two lines, or None."""
    if len(lines) < 2:
        return None
    names = [f"health/fake_vs_teacher/{one}" for one in BINS]
    ratios = {name: min(line[name] for line in lines) for name in names if all(name in line for line in lines)}
    worst = max(ratios, key=lambda name: ratios[name], default=None)
    if worst is None or ratios[worst] <= LAG:
        return None
    return f"{worst} is {ratios[worst]:.3g}, above {LAG}"


def gap_grows(lines: Sequence[Line]) -> str | None:
    """Return the gap, if it has grown since it was smallest after its first rise."""
    gaps = [line["health/gap"] for line in lines[-LINES_BACK:] if "health/gap" in line]
    means = [sum(gaps[end - 3 : end]) / 3 for end in range(4, len(gaps) + 1)]  # without the first, at which the fake
    if len(means) < 2 or means[-1] <= GAP * (least := min(means)):  # is still the teacher
        return None
    return f"health/gap is {means[-1]:.3g} in the mean of 3 lines, above {GAP} times its smallest such mean {least:.3g}"


def fake_loss(lines: Sequence[Line]) -> str | None:
    """Return the fake's loss of an element, if it is above its bound."""
    loss = lines[-1].get("health/fake_loss", 0)
    return f"health/fake_loss is {loss:.3g}, above {FAKE_LOSS}" if loss > FAKE_LOSS else None


def gradients_drift(lines: Sequence[Line]) -> str | None:
    """Return the gradient norm that has grown the most since it was smallest, if one is above its bound."""
    worst, seen = DRIFT, None
    for name in (key for key in lines[-1] if key.endswith("/grad_norm")):
        norms = [line[name] for line in lines[-LINES_BACK:] if name in line]
        medians = [median(norms[end - 5 : end]) for end in range(5, len(norms) + 1)]
        if len(medians) > 1 and medians[-1] > worst * (least := min(medians)) > 0:
            worst = medians[-1] / least
            seen = (
                f"{name} is {medians[-1]:.3g} in the median of 5 lines, above {DRIFT:g} times its smallest {least:.3g}"
            )
    return seen


def discriminator_wins(lines: Sequence[Line]) -> str | None:
    """Return the share of right judgements, if it is above its bound in five lines running."""
    shares = [line["health/accuracy"] for line in lines[-5:] if "health/accuracy" in line]
    if len(shares) < 5 or min(shares) <= SATURATED:
        return None
    return f"health/accuracy is {shares[-1]:.3g}, above {SATURATED} in 5 lines running"


def recall_falls(lines: Sequence[Line]) -> str | None:
    """Return the recall, if it is below its bound in two evaluations running. Other protocols do not count."""
    same = [line for line in lines if all(line.get(key) == lines[-1].get(key) for key in ("protocol", "samples"))]
    found = [line["recall"] for line in same if "recall" in line]
    if len(found) < 3 or max(found[-2:]) >= RECALL * max(found):
        return None
    return f"recall is {found[-1]:.3g}, below {RECALL:g} of its best {max(found):.3g}"


def worse_than_start(lines: Sequence[Line]) -> str | None:
    """Return the distance, if it is greater than before training."""
    now, bound = lines[-1]["distance"], 1.1 * lines[0]["distance"] + NOISE
    return f"distance is {now:.3g}, above {bound:.3g}, since it was {lines[0]['distance']:.3g}" if now > bound else None


def stalled(lines: Sequence[Line]) -> str | None:
    """Return the distance, if it is still large and does not fall. While the fake trains alone, it does not count."""
    start = lines[0]["distance"]
    moved = [line["distance"] for line in lines if line["distance"] != start]
    bound = max(STALLED * start, LEAST_DISTANCE)
    if len(moved) < 3 or min(moved[-3:]) <= bound or moved[-1] < 0.85 * moved[-3] or worse_than_start(lines):
        return None
    return f"distance is {moved[-1]:.3g}, above {bound:.3g}, and was {moved[-3]:.3g} two comparisons ago"


def diversity_lost(lines: Sequence[Line]) -> str | None:
    """Return the diversity, if it is below that at the start, or low after the first comparisons."""
    now = lines[-1]["diversity"]
    bound = max(DIVERSITY * min(lines[0]["diversity"], 1), LEAST_DIVERSITY if len(lines) > 10 else 0)
    return f"diversity is {now:.3g}, below {bound:.3g}" if now < bound else None


def drifts(lines: Sequence[Line], name: str, least: float, more: float) -> str | None:
    """Return the worst part of a statistic that is 0 for equal samples, if it moves away from 0.

    Args:
        lines: The lines until now.
        name: contrast, whose logarithm is taken, mean or spectrum.
        least: A part within -least to least is no drift.
        more: A part is one when it is farther from 0 than at the start by this much.
    """

    def parts(line: Line) -> dict[str, float]:
        """Return the parts of a line, those of channels or bands where there are several."""
        found = {key: value for key, value in line.items() if key.startswith(f"{name}/")} or {name: line.get(name, 0)}
        return {key: log(max(value, 1e-8)) if name == "contrast" else value for key, value in found.items()}

    start = parts(lines[0])
    over = {key: abs(value) - max(least, abs(start.get(key, 0)) + more) for key, value in parts(lines[-1]).items()}
    worst = max(over, key=lambda key: over[key])
    if over[worst] <= 0:
        return None
    return f"{worst} is {lines[-1].get(worst, 0):.3g}, and was {lines[0].get(worst, 0):.3g} at the start"


SLOWER = "Lower generator.lr to a third, or raise fake_updates"  # the cure where the student outruns the fake

LOG_RULES = (
    Rule(
        "fake-lags-from-the-start",
        partial(fake_lags, from_start=True),
        "at this noise level the fake estimates the student worse than the teacher does, from the first lines on",
        "Lower fake.lr to a third, and let objective.fake_times and fake_weight visit this level; more updates or a"
        " higher rate make it worse",
    ),
    Rule(
        "fake-lags",
        partial(fake_lags, from_start=False),
        "the fake followed the student, and no longer does",
        SLOWER,
    ),
    Rule("gap-grows", gap_grows, "the student moves away from the teacher, or the fake from the student", SLOWER),
    Rule(
        "fake-loss",
        fake_loss,
        "the fake is worse than a linear denoiser where its weight is largest, which is at low noise, and learns little"
        " else",
        "Set objective.fake_weight to the kind of the network's prediction, such as x0",
    ),
    Rule(
        "gradients-drift", gradients_drift, "the updates grow, as before a collapse", f"{SLOWER}, or set max_grad_norm"
    ),
    Rule(
        "discriminator-wins",
        discriminator_wins,
        "the discriminator tells real from made without fail, and its gradients say little",
        "Add objective.noise, lower the discriminator's learning rate, or lower its weight",
    ),
)
HEALTH_RULES = (
    Rule("worse-than-start", worse_than_start, "training makes the student worse", SLOWER),
    Rule(
        "stalled",
        stalled,
        "the student no longer approaches the teacher",
        "Let objective.times visit the noise levels around entry.nsr and above, and check fake_weight",
    ),
    Rule(
        "diversity-lost",
        diversity_lost,
        "the samples of a condition become alike",
        "Check objective.fake_weight and fake_times, and lower generator.lr",
    ),
    Rule("contrast", partial(drifts, name="contrast", least=0.1, more=0.1), "the samples fade or overshoot", SLOWER),
    Rule("mean", partial(drifts, name="mean", least=0.2, more=0.1), "the samples become brighter or darker", SLOWER),
    Rule(
        "spectrum",
        partial(drifts, name="spectrum", least=0.4, more=0.2),
        "the samples lose or gain detail of this size, as a fraction of the highest frequency",
        "Let objective.times and fake_times visit the noise levels of this detail: low ones for a high band",
    ),
)
EVALUATION_RULES = (
    Rule(
        "recall-falls",
        recall_falls,
        "the samples cover less and less of the data, although their distance may still fall",
        "Keep the weights that cover the most by evaluation.best: recall, and lower generator.lr or stop earlier by"
        " evaluation.stop_when",
    ),
)
