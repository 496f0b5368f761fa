"""A plan as lines of text, and its bytes in units."""

from __future__ import annotations

import re

from distill.errors import UserError
from trainers.plan.ledger import ALL, Traffic
from trainers.plan.trace import Plan
from trainers.recipe.run import Run

UNITS = {"": 1.0, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MIB": 2.0**20, "GIB": 2.0**30, "TIB": 2.0**40}


def table(run: Run, found: Plan, nodes: int) -> list[str]:
    """Lines that tell a plan."""
    share = run.batch_size // found.processes
    lines = [
        f"{run.name} on {found.processes} GPUs in {nodes} machines: {share} samples a GPU and update,"
        f" in {run.micro_batches} micro-batches",
        f"peak {gigabytes(found.peak.bytes)} a GPU in: {found.phase}; largest: {found.largest}",
    ]
    for kind, size in sorted(found.peak.kinds.items(), key=lambda item: -item[1]):
        lines += [f"  {kind:28}{gigabytes(size):>12}"] if size else []
    lines += [f"in host memory, for each GPU: {gigabytes(found.host)}"] if found.host else []
    lines += ["peak of each phase"]
    lines += [f"  {phase:28}{gigabytes(peak.bytes):>12}" for phase, peak in found.peaks.items()]
    lines += ["communication of an update: messages, what a GPU sends, what leaves its machine"]
    for (phase, operation, who), traffic in found.traffic.items():
        name = f"{phase}, {operation.strip('_')}{'' if who == ALL else f', {who}'}"
        sizes = (traffic.bytes, *travels(found, operation, who, traffic, nodes))
        lines += [f"  {name:46}" + "".join(f"{gigabytes(size):>12}" for size in sizes)]
    return lines if found.traffic else [*lines, "  none"]


def travels(found: Plan, operation: str, who: str, traffic: Traffic, nodes: int) -> tuple[float, float]:
    """Bytes that a GPU sends at least, and that leave a machine, on the average of all."""
    groups, machine = found.groups(who), found.processes // nodes
    machines = [len({rank // machine for rank in group}) for group in groups]
    outside = sum(parties * sent(operation, traffic, parties) for parties in machines) / nodes
    return sent(operation, traffic, len(groups[0])), outside


def sent(operation: str, traffic: Traffic, parties: int) -> float:
    """Bytes that one of `parties` sends at least: (n-1)/n of what it gathers or scatters, twice that to reduce all."""
    return traffic.bytes * (parties - 1) / parties * (2 if "reduce" in operation and "scatter" not in operation else 1)


def gigabytes(size: float) -> str:
    """10^9 bytes, or 10^6 of what is small."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


def read_bytes(text: str) -> float:
    """The bytes of a size such as 80GB; raises UserError for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", text.strip())
    if found is None or found[2].upper() not in UNITS or not float(found[1]):
        raise UserError(f"--memory: must be a size as 80GB or 80GiB, got {text!r}")
    return float(found[1]) * UNITS[found[2].upper()]
