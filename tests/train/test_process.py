import datetime
import os
import signal
import time
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.train.tiny import tiny_config
from train.process import StopRequest, make_accelerator, process_began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request_and_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal == number.name
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_also_after_the_launchers_sigterm() -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_twice_is_one_request() -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == "SIGTERM"


def test_a_launcher_that_asks_for_the_cpu_gets_the_cpus_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu` on a machine with a GPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    accelerator = make_accelerator(tiny_config())
    assert (accelerator.device, accelerator.mixed_precision) == (torch.device("cpu"), "no")


def test_the_device_of_a_run_has_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate gives a single GPU none, and CUDA's limit of memory wants one."""
    monkeypatch.setattr("train.process.settle_device", lambda device: torch.device(device.type, 3))
    assert make_accelerator(tiny_config(train={"mixed_precision": "no"})).device == torch.device("cpu", 3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a GPU")
def test_what_a_launcher_exported_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = make_accelerator(tiny_config(train={"mixed_precision": "no"}))
    assert (accelerator.gradient_accumulation_steps, accelerator.mixed_precision) == (1, "no")


def test_processes_wait_for_each_other_longer_than_a_validation_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes, as NCCL has it, is less than a large validation split takes the first one."""
    asked: list[Any] = []
    original = Accelerator.__init__

    def init(self: Accelerator, **options: Any) -> None:
        asked.extend(options["kwargs_handlers"])
        original(self, **options)

    monkeypatch.setattr(Accelerator, "__init__", init)
    accelerator = make_accelerator(tiny_config())
    assert accelerator.init_handler in asked
    assert asked[0].timeout >= datetime.timedelta(hours=1)


def test_a_process_knows_when_it_began() -> None:
    assert 0 < time.monotonic() - process_began() < 24 * 3600
