"""Networks of a user's own in bfloat16 on two processes, sharded and whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import launch, once, recipe
from tests.trainers.engine.test_data_parallel import Report, difference
from tests.trainers.runs.test_own_precision import NETWORKS, Sinusoids, save_own

pytestmark = pytest.mark.usefixtures("trusted_code")

UPDATES = 2


@pytest.fixture(scope="module")
def reports(shared: Path) -> Path:
    """The folder of what two ranks reported of each network, once for all tests."""

    def make(folder: Path) -> None:
        cases = {}
        for kind in NETWORKS:
            save_own(kind, folder / kind.__name__)
            for layout, more in {"sharded": {"sharding": {}}, "whole": {}}.items():
                settings = recipe(folder / kind.__name__, precision="bfloat16", **more)
                cases[f"{kind.__name__} {layout}"] = {"settings": settings, "updates": UPDATES}
        (folder / "cases.json").write_text(json.dumps(cases))
        program = str(Path(__file__).with_name("worker.py"))
        job = launch([program, str(folder / "cases.json"), str(folder)], folder / "output.txt", world=2)
        assert job.finish(timeout=600) == 0, job.text

    return once(shared, "own_sharded", make)


def report(folder: Path, case: str) -> Report:
    return load_file(folder / f"{case}.safetensors")


@pytest.mark.parametrize("kind", NETWORKS)
def test_shards_of_own_networks_train_as_whole_ones(kind: type, reports: Path) -> None:
    """Autocast rounds the same weights in both: gathered weights are float32, norms and tables too."""
    sharded, whole = (report(reports, f"{kind.__name__} {layout}") for layout in ("sharded", "whole"))
    assert int(sharded["skipped"].sum()) == 0 and bool(sharded["losses"].isfinite().all())
    for player in ("generator", "fake"):
        assert sharded[f"{player} after"].dtype == sharded["average"].dtype == torch.float32
        assert difference(sharded[f"{player} before"], sharded[f"{player} after"]) > 1e-4
        assert difference(whole[f"{player} gradient"], sharded[f"{player} gradient"]) < 2e-3
        assert difference(whole[f"{player} after"], sharded[f"{player} after"]) < 1e-3
    assert difference(whole["losses"], sharded["losses"]) < 1e-5
    held, gathered, _ = sharded["bytes"].tolist()
    four = 4 * 4 * len(whole["fake before"])  # bytes of four networks in float32, as a sharded teacher is
    assert held < 0.55 * four and gathered > 0
    assert (int(whole["bytes"][0]) < 0.95 * four) == (kind is not Sinusoids)  # a teacher on each process is in bfloat16


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("layout", ["sharded", "whole"])
def test_all_ranks_have_the_same_buffers(kind: type, layout: str, reports: Path) -> None:
    """The running statistics of BatchNorm follow the samples of a rank, and a resume has those of one rank alone."""
    found = report(reports, f"{kind.__name__} {layout}")
    assert all(bool(found[f"{player} buffers equal on all ranks"]) for player in ("generator", "fake"))
