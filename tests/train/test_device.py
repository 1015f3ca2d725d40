from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError, LeanstreamError
from train.device import (
    Recorder,
    halving,
    keep_to_limit,
    layout,
    limit_memory,
    outside_bytes,
    peak_bytes,
    pinned,
    precision_of,
    settle_device,
    to_device,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIB = 1 << 30


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"amx_bf16": True}, "bf16"), ({"amx_bf16": False}, "no"), ({}, "no")]
)
def test_on_a_cpu_auto_follows_its_units(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision_of("auto", CPU) == expected
    assert precision_of("auto", torch.device("mps")) == "no"
    assert precision_of("no", CPU) == "no"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_on_a_gpu_auto_is_what_it_multiplies_without_emulation(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    def supported(*, including_emulation: bool) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision_of("auto", CUDA) == expected


def test_a_run_on_the_cpu_beside_a_gpu_does_not_take_the_gpus_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert precision_of("auto", CPU) == "no"


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_cuda_fp16_is_refused(device: str) -> None:
    assert precision_of("bf16", torch.device(device)) == "bf16"
    with pytest.raises(ConfigError, match="must have a CUDA GPU"):
        precision_of("fp16", torch.device(device))


class FakeCuda:
    """The driver's answers about one GPU of 16 GiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, used: int, reserved: int, mine: int | None) -> None:
        self.limits: list[tuple[float, torch.device]] = []
        properties = type("Properties", (), {"total_memory": 16 * GIB, "uuid": "0"})
        for name, answer in {
            "current_device": lambda: 0,
            "set_device": lambda _: None,
            "get_device_properties": lambda _: properties,
            "memory_reserved": lambda _: reserved,
            "max_memory_reserved": lambda _: 3 * GIB,
            "mem_get_info": lambda _: (16 * GIB - used, 16 * GIB),
            "set_per_process_memory_fraction": lambda share, device: self.limits.append((share, device)),
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr("train.device._bytes_by_driver", lambda _: mine)


def test_a_gpu_without_an_index_gets_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    for name in ("benchmark", "deterministic", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    FakeCuda(monkeypatch, used=0, reserved=0, mine=None)
    assert settle_device(torch.device("cuda")) == CUDA
    assert settle_device(CPU) == CPU
    assert asked == ["high"]
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_the_limit_of_memory_leaves_room_for_cudas_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch, used=3 * GIB, reserved=2 * GIB, mine=5 * GIB // 2)
    outside = GIB // 2 + (96 << 20)
    assert limit_memory(CUDA, 4 * GIB) == (outside, 4 * GIB)
    assert fake.limits == [((4 * GIB - outside) / (16 * GIB), CUDA)]
    assert limit_memory(CUDA, None) == (outside, 16 * GIB)
    assert limit_memory(CUDA, 64 * GIB) == (outside, 16 * GIB)
    with pytest.raises(ConfigError, match=rf"budget.gpu must be more than CUDA's own {outside:,} bytes; got 1,024"):
        limit_memory(CUDA, 1024)


def test_what_cuda_loads_later_is_taken_from_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch, used=3 * GIB, reserved=2 * GIB, mine=3 * GIB)
    keep_to_limit(CUDA, 4 * GIB, GIB)
    keep_to_limit(CUDA, None, 0)
    keep_to_limit(CPU, 4 * GIB, 0)
    assert fake.limits == []
    keep_to_limit(CUDA, 4 * GIB, GIB // 2)
    assert fake.limits == [(3 / 16, CUDA)]


def test_where_the_driver_does_not_tell_processes_apart_a_context_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, used=3 * GIB, reserved=GIB * 5 // 2, mine=None)
    assert outside_bytes(CUDA) == GIB // 2
    assert peak_bytes(CUDA) == 3 * GIB + GIB // 2
    assert peak_bytes(CUDA, 5) == 3 * GIB + 5
    FakeCuda(monkeypatch, used=12 * GIB, reserved=GIB, mine=None)
    assert outside_bytes(CUDA) == GIB


def test_without_cuda_there_is_nothing_to_limit_or_record() -> None:
    assert (outside_bytes(CPU), peak_bytes(CPU)) == (0, 0)
    assert Recorder.of(CPU, "auto") is None
    assert Recorder.of(CUDA, "no") is None
    assert Recorder.of(CUDA, "auto") is not None
    assert (layout(CPU), layout(CUDA)) == (torch.channels_last, torch.contiguous_format)
    assert to_device([1.5, 2.0], CPU).equal(torch.tensor([1.5, 2.0]))


def test_memory_for_copies_is_registered_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    class Runtime:
        def cudaHostRegister(self, at: int, size: int, _: int) -> int:  # noqa: N802
            calls.append(("register", at))
            return 0

        def cudaHostUnregister(self, at: int) -> int:  # noqa: N802
            calls.append(("unregister", at))
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    memory = pinned(100, CUDA)
    assert not memory.any()
    assert memory.shape == (100,)
    view, at = memory[5:], memory.data_ptr()
    del memory
    assert calls == [("register", at)]
    del view
    assert calls == [("register", at), ("unregister", at)]


class Small:
    """Takes at most two at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, values: torch.Tensor, more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append(len(values))
        if len(values) > 2:
            raise torch.OutOfMemoryError
        return values + more, values * 2


def test_what_does_not_fit_is_computed_by_halves() -> None:
    call, values = Small(), torch.arange(7.0)
    added, doubled = halving(call, values, torch.ones(7))
    assert added.equal(values + 1)
    assert doubled.equal(values * 2)
    assert call.asked == [7, 4, 2, 2, 3, 2, 1]


def test_one_that_does_not_fit_is_an_error() -> None:
    def call(_: torch.Tensor) -> Any:
        raise torch.OutOfMemoryError

    with pytest.raises(LeanstreamError, match="one image must fit the GPU's memory"):
        halving(call, torch.ones(4))
