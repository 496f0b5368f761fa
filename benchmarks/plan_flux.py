"""Plans for a teacher of the size of FLUX (11.9 billion parameters) on 8, 64 and 1024 GPUs, for docs/scaling.md.

`make plan-flux` prints them, from the configs of FLUX.1-dev alone. The network has 19 blocks of one kind and 38 of
another, and every number of a plan is affine in these two counts. The table therefore follows from traces of (1, 1),
(2, 1) and (1, 2) blocks, in minutes instead of an hour. `--check` also traces (2, 3) blocks, and prints the error of
this rule.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from trainers.io.console import plain
from trainers.plan.ledger import Peak, Traffic
from trainers.plan.report import bytes_out, gigabytes
from trainers.plan.trace import Plan, plan
from trainers.recipe.load import build_experiment
from trainers.recipe.run import Run

BLOCKS = (19, 38)
COMMON: dict[str, Any] = {
    "objective": "sid",
    "data": {"name": "data_free", "shape": [16, 128, 128]},
    "images": 10**6,
    "precision": "bfloat16",
    "gradient_checkpointing": True,
    "backprop": "one_by_one",
    "entry": {"preset": "noise_flow"},
}
LORA = {"lora": {"rank": 64}}
CASES: dict[str, Callable[[int], dict[str, Any]]] = {  # (number of machines) -> changes of the recipe
    "whole networks, DDP": lambda machines: {},
    "adapters of rank 64, DDP": lambda machines: {"generator": LORA, "fake": LORA},
    "whole networks, sharded": lambda machines: {"sharding": {}},
    "whole networks, sharded in each machine": lambda machines: {"sharding": {"replicas": machines}},
}
GPUS = (8, 64, 1024)
MACHINE = 8
COLUMNS = ["configuration", "GPUs", "peak a GPU", "weights", "optimizers", "average", "gradients", "activations"]
COLUMNS += ["sent a GPU", "out of its machine"]


def skeleton(folder: Path, blocks: tuple[int, int]) -> str:
    """Write the folder of FLUX.1-dev without weights, and return it.

    Args:
        folder: The folder to write.
        blocks: The numbers of double and of single blocks.
    """
    import diffusers

    levels: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
    }
    with torch.device("meta"):
        network = diffusers.FluxTransformer2DModel(
            num_layers=blocks[0], num_single_layers=blocks[1], guidance_embeds=True
        )
        vae = diffusers.AutoencoderKL(**levels, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16)
    parts = {"transformer": network, "vae": vae, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)}
    for name, part in parts.items():
        part.save_config(folder / name)
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", **index}))
    return str(folder)


def traced(blocks: tuple[int, int], gpus: int, changes: Mapping[str, Any]) -> Plan:
    """Trace a network with these numbers of blocks, with one sample for each GPU, and return the plan."""
    settings = {**COMMON, **changes, "name": "flux", "batch_size": gpus}
    with tempfile.TemporaryDirectory() as folder:
        teacher = skeleton(Path(folder), blocks)
        return plan(cast(Run, build_experiment({**settings, "teacher": teacher}, "flux")), gpus)


def extrapolated(corner: Plan, double: Plan, single: Plan, blocks: tuple[int, int]) -> Plan:
    """Return the plan with `blocks`, extrapolated from the plans with (1, 1), (2, 1) and (1, 2) blocks."""

    def line(number_of: Any) -> int:
        first = number_of(corner)
        more = (blocks[0] - 1) * (number_of(double) - first) + (blocks[1] - 1) * (number_of(single) - first)
        return int(first + more)

    peaks = {}
    for phase, peak in corner.peaks.items():
        kinds = {kind: line(lambda one, p=phase, k=kind: one.peaks[p].kinds.get(k, 0)) for kind in peak.kinds}
        peaks[phase] = Peak(sum(kinds.values()), kinds)
    rest = {kind: line(lambda one, k=kind: one.rest.get(k, 0)) for kind in corner.rest}
    traffic = {
        key: Traffic(line(lambda one, k=key: one.traffic[k].calls), line(lambda one, k=key: one.traffic[k].bytes))
        for key in corner.traffic
    }
    host = line(lambda one: one.host)
    return replace(corner, peaks=peaks, rest=rest, traffic=traffic, host=host)


def plan_of_all_blocks(gpus: int, changes: Mapping[str, Any], blocks: tuple[int, int] = BLOCKS) -> Plan:
    """Return the plan of the complete network, extrapolated from three traces."""
    corner, double, single = (traced(few, gpus, changes) for few in ((1, 1), (2, 1), (1, 2)))
    return extrapolated(corner, double, single, blocks)


def row(name: str, found: Plan) -> str:
    """Return a row of the table."""
    sizes = found.peak.kinds
    weights = sum(size for kind, size in sizes.items() if kind.endswith(": weights"))
    state = sum(size for kind, size in sizes.items() if kind.endswith(": optimizer"))
    average, activations = sizes.get("average", 0), sizes.get("activations and temporaries", 0)
    gradients = found.peak.bytes - weights - state - average - activations
    nodes, traffic = max(1, found.processes // MACHINE), found.traffic.items()
    talk = [bytes_out(found, operation, who, each, nodes) for (_, operation, who), each in traffic]
    cells = [found.peak.bytes, weights, state, average, gradients, activations, *map(sum, zip(*talk, strict=True))]
    return f"| {name} | {found.processes} | {' | '.join(gigabytes(cell) for cell in cells)} |"


def main() -> None:
    """Print the table."""
    console = plain()
    if "--check" in sys.argv:
        left, right = plan_of_all_blocks(8, {}, (2, 3)), traced((2, 3), 8, {})
        console.print(f"(2, 3) blocks: {left.peak.bytes / right.peak.bytes - 1:+.2%} of the traced peak")
        return
    console.print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|")
    for name, case in CASES.items():
        for gpus in GPUS:
            changes = case(gpus // MACHINE)
            if gpus == GPUS[0] or "sharding" in changes:
                found = plan_of_all_blocks(gpus, changes)
            # Under DDP the plan of one GPU does not depend on the number of GPUs.
            console.print(row(name, replace(found, processes=gpus)))


if __name__ == "__main__":
    main()
