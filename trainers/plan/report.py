"""A plan as text, and numbers of bytes in units."""

import re
from typing import NamedTuple

from distill.errors import UserError
from trainers.plan.ledger import ALL, Traffic
from trainers.plan.trace import Plan
from trainers.recipe.run import Run

UNITS = {"": 1.0, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MIB": 2.0**20, "GIB": 2.0**30, "TIB": 2.0**40}


class Speeds(NamedTuple):
    """The speeds of a GPU and of its links, by its data sheet.

    Attributes:
        bfloat16: Operations a second of products in bfloat16.
        tf32: The same in TF32.
        float32: The same in float32.
        within: Bytes a second that a GPU sends to others of its machine.
        between: Bytes a second that it sends to other machines.
    """

    bfloat16: float
    tf32: float
    float32: float
    within: float
    between: float

    def flops(self, run: Run) -> float:
        """Return half of the GPU's operations a second in the precision of a run, which a run may reach."""
        name = "bfloat16" if run.precision == "bfloat16" else "tf32" if run.tf32 else "float32"
        return float(getattr(self, name)) / 2


SPEEDS = {
    "h200": Speeds(989e12, 494e12, 67e12, 450e9, 50e9),
    "h100": Speeds(989e12, 494e12, 67e12, 450e9, 50e9),
    "a100": Speeds(312e12, 156e12, 19.5e12, 300e9, 25e9),
}
"""The kinds of GPUs: links are NVLink's and those of one 400 Gb/s (A100: 200 Gb/s) adapter for each GPU."""


def plan_lines(run: Run, found: Plan, nodes: int, gpu: str = "h200") -> list[str]:
    """Return the lines in which `distill plan` shows a plan.

    Args:
        run: The recipe.
        found: The plan.
        nodes: The number of machines that the processes are divided over.
        gpu: A name in SPEEDS.
    """
    share = run.batch_size // found.processes
    kinds = sorted(found.peak.kinds.items(), key=lambda item: -item[1])
    lines = [
        f"{run.name} on {found.processes} GPUs in {nodes} machines: {share} samples a GPU and update,"
        f" in {run.micro_batches} micro-batches",
        f"peak {gigabytes(found.peak.bytes)} a GPU in: {found.phase}; largest: {kinds[0][0]}",
    ]
    if run.compile:
        lines += ["  before compilation, which may take less (docs/plan.md)"]
    for kind, size in kinds:
        lines += [f"  {kind:28}{gigabytes(size):>12}"] if size else []
    lines += [f"in host memory, for each GPU: {gigabytes(found.host)}"] if found.host else []
    lines += ["peak of each phase"]
    lines += [f"  {phase:28}{gigabytes(peak.bytes):>12}" for phase, peak in found.peaks.items()]
    lines += ["communication of an update: messages, what a GPU sends, what leaves its machine"]
    for (phase, operation, who), traffic in found.traffic.items():
        name = f"{phase}, {operation.strip('_')}{'' if who == ALL else f', {who}'}"
        sizes = (traffic.bytes, *bytes_out(found, operation, who, traffic, nodes))
        lines += [f"  {name:46}" + "".join(f"{gigabytes(size):>12}" for size in sizes)]
    if not found.traffic:
        return [*lines, "  none"]
    lines += [f"of it, what computation cannot hide on {gpu.upper()}s at half of their peak"]
    for phase in found.overlaps:
        sending, shown = exposed_seconds(run, found, phase, nodes, SPEEDS[gpu])
        lines += [f"  {phase:46}{1000 * shown:>9,.2f} of {1000 * sending:,.2f} ms"]
    return lines


def exposed_seconds(run: Run, found: Plan, phase: str, nodes: int, speeds: Speeds) -> tuple[float, float]:
    """Return the seconds that the messages of a phase take, and the fewest of them that no computation can hide.

    The messages of an update run beside the operations that follow the first of them. Nothing follows the last.

    Args:
        run: The recipe.
        found: The plan.
        phase: The phase.
        nodes: The number of machines.
        speeds: The speeds of a GPU and of its links.
    """
    machine = found.processes // nodes

    def seconds(operation: str, who: str, traffic: Traffic) -> float:
        sent, outside = bytes_out(found, operation, who, traffic, nodes)
        return max(sent / speeds.within, outside / machine / speeds.between)

    kinds = found.traffic.items()
    sending = sum(seconds(operation, who, traffic) for (one, operation, who), traffic in kinds if one == phase)
    shown, updates = 0.0, found.overlaps[phase]
    for after in updates:
        last = seconds(after.operation, after.group, Traffic(1, after.bytes))
        shown += max(last, sending / len(updates) - after.flops / speeds.flops(run))
    return sending, shown


def bytes_out(found: Plan, operation: str, who: str, traffic: Traffic, nodes: int) -> tuple[float, float]:
    """Return the fewest bytes that leave a GPU, and that leave a machine, for a kind of collective.

    Args:
        found: The plan, which knows the groups of processes.
        operation: The collective, by torch's name, such as `allreduce_`.
        who: The processes that take part: ALL, WITHIN or BETWEEN of trainers.plan.ledger.
        traffic: The messages of one GPU.
        nodes: The number of machines.
    """
    groups, machine = found.groups(who), found.processes // nodes
    machines = [len({rank // machine for rank in group}) for group in groups]
    # Between machines a ring passes each message once, as if every machine were one party; averaged over the machines.
    outside = sum(parties * bytes_sent(operation, traffic, parties) for parties in machines) / nodes
    return bytes_sent(operation, traffic, len(groups[0])), outside


def bytes_sent(operation: str, traffic: Traffic, parties: int) -> float:
    """Return the fewest bytes that one of n parties sends in a collective.

    That is (n - 1) / n of a message that is gathered or scattered, and twice as much of one that is all-reduced.
    """
    return traffic.bytes * (parties - 1) / parties * (2 if "reduce" in operation and "scatter" not in operation else 1)


def gigabytes(size: float) -> str:
    """Return a number of bytes as text, in GB (10^9 bytes), or in MB if it is small."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


def parse_bytes(text: str) -> float:
    """Return the number of bytes of a size such as 80GB or 80GiB.

    Raises:
        UserError: The text is no positive size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", text.strip())
    if found is None or found[2].upper() not in UNITS or not float(found[1]):
        raise UserError(f"--memory: must be a size as 80GB or 80GiB, got {text!r}")
    return float(found[1]) * UNITS[found[2].upper()]
