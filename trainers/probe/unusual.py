"""The unusual facts about a teacher, in words."""

from math import isfinite

from trainers.probe.findings import Findings
from trainers.probe.levels import MIDDLE, middle_level

CLEAR = 0.05
"""The part by which a number must differ before it is told."""


def unusual(found: Findings) -> list[str]:
    """Return what is unusual about a teacher, a sentence or two for each fact."""
    told = []
    if (share := found.facts.train_mode) > 1e-4:
        differs = f"computes otherwise: its outputs differ by {share:.0%}" if isfinite(share) else "fails"
        told.append(
            f"In train mode the network {differs}."
            " Generator and fake train in eval mode (`dropout: off`), as the network that is sampled."
        )
    mean = [one for one in found.levels if one.error > (1 + CLEAR) * found.whole]
    if mean:
        told.append(
            f"At noise-to-signal ratios from {mean[0].nsr:.3g} on, its error is larger than that of the mean of its"
            " samples: it was hardly trained there. The laws of the recipe seldom go there."
        )
    poor = [one for one in found.levels if one.ceiling is not None and found.whole > one.error > 1.1 * one.ceiling]
    if poor:
        told.append(
            f"At the ratio {poor[0].nsr:.3g} its error is {poor[0].error:.3g}, and the best possible is below"
            f" {poor[0].ceiling:.3g}: it has not learnt all that its data say."
        )
    first = found.levels[0]
    if first.error > first.nsr**2:
        told.append(
            f"At the ratio {first.nsr:.2g} its error of {first.error:.3g} is above that of the noise,"
            f" {first.nsr**2:.2g}, as in networks that predict the sample. The weights keep such levels"
            " from ruling the fake's loss."
        )
    if middle_level(found.levels, found.whole) is None:
        told.append(f"Its error never crosses {MIDDLE} of its largest. The law of times is EDM's, which is a guess.")
    if found.facts.prediction == "edm" and not 0.5 < found.std / found.sigma_data < 2:
        told.append(f"It states sigma_data {found.sigma_data:g}, and its samples have {found.std:.3g}.")
    ends = [distance for _, distance in found.sampled.values() if distance is not None]
    if ends and ends[-1] > 1.5 * min(ends):
        told.append("More evaluations make its samples worse, so some of its estimates may be wrong: see samples.png.")
    if found.fakes and (best := min(found.fakes, key=lambda one: one.loss)).worst > 1.1:
        told.append(
            f"After {best.steps} steps at the rate {best.rate:g} the fake's error is still {best.worst:.1f} times the"
            f" teacher's at {best.where}."
        )
    if found.students and min(one.after for one in found.students) >= found.students[0].before:
        told.append("No rate brought the student nearer to its target in the trial. The recipe may not work.")
    coarse = [one for one in found.levels if one.bfloat16 > 0.01]
    if coarse:
        told.append(
            f"bfloat16 changes its estimates by {coarse[0].bfloat16:.0%} of its squared error at the ratio"
            f" {coarse[0].nsr:.3g}."
        )
    return told
