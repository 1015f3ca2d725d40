"""What only CUDA can show: `pytest -m gpu`. All else is tested on a stand-in (test_standin.py)."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.format import ShardSet
from pipeline.loader import StreamingLoader
from tests.train.test_run import Run
from tests.train.tiny import TOTAL_IMAGES, FakeAccelerator, generation_of, state_sha256, tiny_config, tiny_model
from train.config import Config
from train.device import DTYPES, CudaGraph, Recorder, outside_bytes, pinned, settle_device
from train.state import TrainState
from train.update import Update, apply_update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: there is none"),
]
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def settled() -> None:
    settle_device(CUDA)


def trained(
    config: Config, shards: ShardSet, precision: str, count: int, recorder: Recorder | None, loss_scale: float = 2.0**8
) -> tuple[TrainState, list[Update]]:
    state = TrainState.create(tiny_model(config), config.optim, CUDA, 8)
    state.model.compute_dtype = DTYPES[precision]
    state.loss_scale.value = loss_scale
    state.lay_out_gradients()
    with StreamingLoader(shards, batch_size=16, noise=state.model.latent, threads=1) as loader:
        found = [
            apply_update(
                state,
                next(loader),
                config,
                FakeAccelerator(precision, device=CUDA),  # type: ignore[arg-type]
                total_images=TOTAL_IMAGES,
                epoch_samples=40,
                recorder=recorder,
            )
            for _ in range(count)
        ]
    return state, found


@pytest.mark.parametrize("precision", list(DTYPES))
@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_a_graph_trains_as_its_kernels_one_by_one(faces: ShardSet, kind: str, precision: str) -> None:
    config = tiny_config(model={"kind": kind}, loss={"kl_warmup_images": 64})
    plain, expected = trained(config, faces, precision, 6, None)
    state, found = trained(config, faces, precision, 6, Recorder(CudaGraph))
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-2)
    assert state.audit == plain.audit


@pytest.mark.parametrize("kind", ["conv", "residual"])
def test_the_same_training_gives_the_same_bits(faces: ShardSet, kind: str) -> None:
    config = tiny_config(model={"kind": kind})
    one, other = (trained(config, faces, "bf16", 6, Recorder(CudaGraph))[0] for _ in range(2))
    assert state_sha256(one) == state_sha256(other)


def test_an_overflow_is_replayed_in_a_graph(faces: ShardSet) -> None:
    _, expected = trained(tiny_config(), faces, "fp16", 3, Recorder(CudaGraph))
    _, found = trained(tiny_config(), faces, "fp16", 3, Recorder(CudaGraph), loss_scale=2.0**16)
    assert found[0].replays > 0
    for one, other in zip(found, expected, strict=True):
        assert replace(one, replays=0).loss == pytest.approx(other.loss, rel=1e-2)


@pytest.mark.parametrize("graph", ["auto", "no"])
def test_a_run_starts_is_interrupted_and_goes_on(
    graph: str, tiny_toml: Path, tmp_path: Path, faces: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tiny_toml, faces, tmp_path / "run")
    assert run("--train.cuda-graph", graph, "--run.max-minutes", "1e-9") == 75
    assert run("--train.cuda-graph", graph) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_bytes())
    assert summary["finished"]
    assert summary["peak_gpu_bytes"] > 0
    assert "cuda:0" in capsys.readouterr().out


def test_a_budget_of_gpu_memory_is_kept(tiny_toml: Path, tmp_path: Path, faces: ShardSet) -> None:
    run = Run(tiny_toml, faces, tmp_path / "run")
    assert run("--budget.gpu", "2GiB") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_bytes())
    assert outside_bytes(CUDA) < summary["peak_gpu_bytes"] <= 2 << 30


def test_memory_for_saves_is_page_locked() -> None:
    assert pinned(1 << 20, CUDA).is_pinned()


def test_a_state_on_the_gpu_saves_what_it_holds(faces: ShardSet) -> None:
    state, _ = trained(tiny_config(), faces, "no", 2, None)
    again = TrainState.create(tiny_model(tiny_config()), tiny_config().optim, CUDA, 8)
    again.restore(generation_of(state))
    assert state_sha256(again) == state_sha256(state)
