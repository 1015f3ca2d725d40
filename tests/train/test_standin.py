"""The stand-in for a GPU, whole runs on it, and what an update asks of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.format import ShardSet
from tests.standin import GPU, accelerate_hands_it_out, counting
from tests.train.test_run import PNG, Run
from tests.train.tiny import FakeAccelerator, tiny_config, tiny_model, updates
from train.objectives import Likelihood, factors_of, objective
from train.state import TrainState

KINDS = ["conv", "residual", "keras"]
QUICK = ["--train.threads", "1"]
MOST_MORE = 60
"""Operators of an update beyond those that any training makes."""


def on_gpu(run: Run, *arguments: str) -> int:
    with accelerate_hands_it_out():
        return run(*arguments)


def losses(run: Run) -> list[float]:
    return [record["loss"] for record in run.folder.read_metrics() if "loss" in record]


def test_its_numbers_are_the_cpus() -> None:
    results = []
    for device in (torch.device("cpu"), GPU):
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.SiLU(),
            nn.Dropout(),
            nn.Flatten(),
            nn.LazyLinear(2),
        )
        net = nn.Sequential(*layers)
        net(torch.zeros(2, 3, 8, 8))
        net.to(device)
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        for _ in range(3):
            images = torch.rand(2, 3, 8, 8).to(device, non_blocking=True).requires_grad_()
            net(images).square().sum().backward()
            norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in net.parameters()])
            optimizer.step()
        assert {value.device for value in (*net.state_dict().values(), images.grad, norm)} == {device}
        results.append([value.cpu() for value in (*net.state_dict().values(), images.grad, norm)])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(there, here)


def test_a_tensor_left_on_the_cpu_is_an_error() -> None:
    here, there = torch.ones(2), torch.ones(2, device=GPU)
    for mix in (torch.add, torch.dot, torch.equal):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            mix(there, here)
    with pytest.raises(RuntimeError, match="same device"):
        nn.Linear(2, 2).to(GPU)(here)
    with pytest.raises(RuntimeError, match="same device"):
        torch._foreach_add_([there], [here])
    assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0]  # One number may come from anywhere, as on CUDA.


def test_other_tests_do_not_notice_it() -> None:
    assert torch.ones(1).device == torch.tensor(1).device == torch.device("cpu")
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with torch.random.fork_rng():
        torch.rand(5)
    assert torch.rand(2).equal(expected)


def test_views_are_free_and_what_the_host_reads_is_a_wait() -> None:
    values = torch.arange(6.0, device=GPU)
    with counting() as counted:
        turned = values.view(2, 3).t()[1:].detach()
        assert turned.shape == (2, 2)
        torch.empty_like(values)
    assert not counted.operators
    assert not counted.waits
    with counting() as counted:
        assert float((values * 2).sum()) == 30.0
        assert turned.tolist() == [[1.0, 4.0], [2.0, 5.0]]
        assert bool(values[1])
        torch.empty(6).copy_(values)
    assert {name.split(" at ")[0] for name in counted.operators} >= {"mul", "sum"}
    names = [name for name in counted.waits if name.split(" at ")[1].startswith("tests/train/test_standin.py:")]
    assert len(names) == counted.waits.total() == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_interrupted_and_resumed_with_the_losses_of_the_cpu(
    kind: str, tiny_toml: Path, faces: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dropout(self: nn.Dropout, values: Tensor) -> Tensor:
        # The same draws for every layout of memory.
        kept = torch.rand(values.shape) >= self.p if self.training else torch.ones(values.shape)
        return values * kept.to(values) / (1 - self.p if self.training else 1)

    monkeypatch.setattr(nn.Dropout, "forward", dropout)
    there, here = (Run(tiny_toml, faces, tmp_path / name) for name in ("there", "here"))
    arguments = [*QUICK, "--model.kind", kind, "--train.total-images", "64"]
    with counting() as counted:
        assert on_gpu(there, *arguments, "--run.max-minutes", "1e-9") == 75
        assert on_gpu(there, *arguments) == 0
    assert counted.operators.total() > 1_000
    assert not [name for name in counted.types if "float64" in name]  # Apple's GPUs know none.
    assert there.events == ["start", "saved", "resume", "saved", "saved", "finished"]
    grids = sorted(there.folder.grids.iterdir())
    assert [path.name for path in grids] == ["000000000048.png", "000000000064.png"]
    assert all(path.read_bytes().startswith(PNG) for path in grids)

    assert here(*arguments) == 0
    assert len(losses(there)) == 4
    assert losses(there) == pytest.approx(losses(here), rel=1e-3)
    psnr_db = (run.summary["scores"]["val"]["psnr_db"] for run in (there, here))
    assert next(psnr_db) == pytest.approx(next(psnr_db), rel=1e-3)


def test_a_run_in_bf16_computes_in_bf16(tiny_toml: Path, faces: ShardSet, tmp_path: Path) -> None:
    there, here = (Run(tiny_toml, faces, tmp_path / name) for name in ("there", "here"))
    arguments = [*QUICK, "--train.mixed-precision", "bf16", "--train.total-images", "32"]
    seen = set()
    hook = nn.modules.module.register_module_forward_hook(
        lambda layer, _, answer: seen.add((answer.device, answer.dtype)) if isinstance(layer, nn.Conv2d) else None
    )
    with hook:
        assert on_gpu(there, *arguments) == 0
    assert (GPU, torch.bfloat16) in seen
    assert here(*arguments) == 0
    assert losses(there) == pytest.approx(losses(here), rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_waits_once_and_adds_few_operators(kind: str, faces: ShardSet) -> None:
    config = tiny_config(model={"kind": kind})
    state = TrainState.create(tiny_model(config), config.optim, GPU, config.train.batch_size // 2)
    found = updates(state, config, faces, 3, FakeAccelerator(device=GPU))
    next(found), next(found)
    with counting() as update:
        next(found)
    found.close()

    images = torch.zeros(config.train.batch_size, 3, 32, 32, device=GPU)
    noise = torch.zeros(config.train.batch_size, state.model.latent, device=GPU)
    factors = factors_of(config.loss, Likelihood.of(config.loss, state.error), images[0].numel())
    with counting() as bare:
        for part, draws in zip(images.split(state.micro_batch), noise.split(state.micro_batch), strict=True):
            objective(config.loss, state.model(part, draws), part, factors).loss.sum().backward()
        state.optimizer.step()
    assert update.waits.total() == 1, update.waits
    assert not bare.waits
    more = update.operators.total() - bare.operators.total()
    assert 0 < more <= MOST_MORE, update.operators.most_common()
