from __future__ import annotations

import json
import math
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from llmtrain.errors import DataError, LlmtrainError, PeerLostError
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.integrity import verify_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.distributed.world import World, _are_equal, rendezvous_store
from llmtrain.train.run_directory.directory import RunDirectory
from tests.pinned import pinned_keywords, pinned_options
from tests.train.harness import (
    LIMIT_S,
    Files,
    Llmtrain,
    RunAlone,
    Start,
    steps_of,
    wait_until,
)

TRAIN = ("train", "-p", "tiny.yaml", "--out", "run", *pinned_options())
LONG = ("--steps", 150, "--set", "eval.every_steps=500", "--set", "eval.sample_every_steps=500")


def launched(run: Path) -> dict[str, Any]:
    """What run.yaml says was launched for the last session."""
    found: dict[str, Any] = RunDirectory(run).read_record()["sessions"][-1]["ranks"]
    return found


def losses(course: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in course if "loss" in line]


@pytest.fixture(scope="module")
def alone(run_alone: RunAlone) -> Files:
    return run_alone(**pinned_keywords())


def assert_trained_as_alone(run: Files, alone: Files) -> None:
    ours, theirs = losses(run.course()), losses(alone.course())
    assert len(ours) == 20
    assert all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(ours, theirs, strict=True))
    ours, theirs = ([m["val_loss"] for m in f.course() if "val_loss" in m] for f in (run, alone))
    assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(ours, theirs, strict=True))


def test_two_processes_train_the_function_that_one_does(
    start: Start, place: Path, alone: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = place / "temporary"
    temporary.mkdir()
    for variable in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(variable, str(temporary))
    process = start(*TRAIN, "--nproc", 2, "--json")
    out, err = process.communicate(timeout=LIMIT_S)
    assert not list(temporary.glob("torchelastic_*")), "the launcher leaves nothing behind"
    assert not list(temporary.glob("llmtrain-*"))

    assert process.returncode == 0, err
    document = json.loads(out)
    assert (document["steps"], document["tokens"]) == (20, 20 * 256)
    assert err.count("training run") == 1
    assert launched(place / "run") == {
        "by": "llmtrain",
        "processes": 2,
        "of_machines": [2],
        "backend": "gloo",
    }
    assert_trained_as_alone(Files(place / "run"), alone)


def test_two_processes_share_packed_and_masked_documents(
    start: Start, place: Path, run_alone: RunAlone
) -> None:
    """Each divides by the targets of both, though padding differs."""
    packed = {"data.packing": "best_fit", "data.mask_documents": "true"}
    settings = [word for name, value in packed.items() for word in ("--set", f"{name}={value}")]
    process = start(*TRAIN, "--nproc", 2, *settings)
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    masked = {"data__packing": "best_fit", "data__mask_documents": True}
    alone = run_alone(**pinned_keywords(), **masked)
    assert_trained_as_alone(Files(place / "run"), alone)


def test_torchrun_starts_it_too(start: Start, place: Path, alone: Files) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "llmtrain")
    process = start(*TRAIN, "--json", module=torchrun)
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    assert json.loads(out)["stopped"] == "done"
    assert launched(place / "run")["by"] == "torchrun"
    assert launched(place / "run")["of_machines"] == [2]
    assert_trained_as_alone(Files(place / "run"), alone)


FAULTY = """
import hashlib, os, torch
from llmtrain.cli.app import main
from llmtrain.engine import train_run

build, rank = train_run.build_run, int(os.environ["RANK"])

def faulty(*args):
    run = build(*args)
    gain, unscale = run.model.model.norm.weight, run.scaler.unscale_
    step = lambda: run.position.windows // 8 + 1  # of an undisturbed run

    def before_ranks_add_up(gradient):
        return gradient * float("nan") if rank == 1 and step() == 3 else gradient

    def after_they_did(optimizer):
        unscale(optimizer)
        if rank == 1 and step() in range(6, 10):
            gain.grad.fill_(float("inf"))

    def record(*_):
        weights = b"".join(p.detach().numpy().tobytes() for p in run.model.parameters())
        with open(f"rank{rank}.txt", "a") as file:
            print(run.position.step, hashlib.sha256(weights).hexdigest(), file=file)

    gain.register_hook(before_ranks_add_up)
    run.scaler.unscale_ = after_they_did
    run.optimizer.register_step_post_hook(record)
    return run

train_run.build_run = faulty
main()
"""


def test_a_fault_of_one_rank_is_skipped_and_rewound_by_all(start: Start, place: Path) -> None:
    (place / "faulty.py").write_text(FAULTY)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start("faulty.py", *TRAIN, "--json", module=torchrun)
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    assert json.loads(out)["steps"] == 20
    ranks = [(place / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    stepped = [int(line.split()[0]) for line in ranks[0].splitlines()]
    assert stepped == [0, 1, 3, 4, *range(20)]
    assert "step 3 is skipped: its gradient norm is nan" in err
    assert "rewound from step 9 to step 0" in err
    assert load_checkpoint(Files(place / "run").newest).state.windows == (20 + 9) * 8


OVERFLOWING = """
import hashlib, math, os, torch
from llmtrain.cli.app import main
from llmtrain.engine import train_run
build, rank = train_run.build_run, int(os.environ["RANK"])

def overflowing(*args):
    run = build(*args)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    gain, unscale, update = run.model.model.norm.weight, run.scaler.unscale_, run.scaler.update

    def overflow_after_all_reduce(optimizer):
        if rank == 1 and run.position.step == 2:
            gain.grad.fill_(math.inf)
        unscale(optimizer)

    def update_and_record(*args):
        update(*args)
        weights = b"".join(p.detach().numpy().tobytes() for p in run.model.parameters())
        with open(f"rank{rank}.txt", "a") as file:
            print(run.scaler.get_scale(), hashlib.sha256(weights).hexdigest(), file=file)

    run.scaler.unscale_, run.scaler.update = overflow_after_all_reduce, update_and_record
    return run

train_run.build_run = overflowing
main()
"""


def test_an_overflow_on_one_rank_skips_the_update_on_all(start: Start, place: Path) -> None:
    """It appears after the all-reduce of gradients; all ranks keep the same weights and scale."""
    (place / "overflowing.py").write_text(OVERFLOWING)
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start("overflowing.py", *TRAIN, "--steps", 5, module=torchrun)
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    ranks = [(place / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    scales, weights = zip(*(line.split() for line in ranks[0].splitlines()), strict=True)
    assert scales == ("1024.0", "1024.0", "512.0", "512.0", "512.0")
    assert weights[1] == weights[2] != weights[3]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
def test_signal_to_the_launcher_saves_and_a_resume_goes_on(start: Start, place: Path) -> None:
    process = start(*TRAIN, "--nproc", 2, "--json", *LONG)
    wait_until(lambda: steps_of(place / "run") > 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 75, err
    document = json.loads(out)
    assert document["stopped"] == "interrupted"
    assert Path(document["checkpoint"]) == Files(Path("run")).newest

    process = start("train", "--out", "run", "--resume", "auto", "--json")
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    assert "not bitwise" not in err  # two processes again, as the run was begun

    whole = ("--out", "whole", "--nproc", 2)
    assert start(*TRAIN, *LONG, *whole).wait(LIMIT_S) == 0
    assert Files(place / "run").course() == Files(place / "whole").course()
    assert Files(place / "run").digests() == Files(place / "whole").digests()


def test_bad_data_ends_all_ranks_with_rank_0s_code(start: Start, place: Path) -> None:
    (place / "latin1.txt").write_bytes(b"caf\xe9\n" * 100)
    process = start(*TRAIN, "--nproc", 2, "--json", "--data", "latin1.txt")
    out, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 5, err
    assert json.loads(out)["error"]["code"] == 5
    assert err.count("error:") == 1
    assert "latin1.txt" in err
    assert "Traceback" not in err
    assert not (place / "run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_save_on_request_and_then_a_rank_that_is_suspended(start: Start, place: Path) -> None:
    process = start(*TRAIN, "--nproc", 2, *LONG, "--set", "device.collective_timeout=2s")
    wait_until(lambda: steps_of(place / "run") > 1, process)
    process.send_signal(signal.SIGUSR1)
    checkpoints = place / "run" / "checkpoints"
    wait_until(lambda: bool(list_checkpoints(checkpoints)), process)
    seen = steps_of(place / "run")
    wait_until(lambda: steps_of(place / "run") > seen, process)  # it goes on

    family = psutil.Process(process.pid).children(recursive=True)
    next(member for member in family if member.environ().get("RANK") == "1").suspend()
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 1
    assert err.count("error:") == 1
    assert "rank 0 waited 2s for rank 1, which is suspended (device.collective_timeout)" in err
    assert not any(member.is_running() for member in family)
    assert [verify_checkpoint(path) for path in list_checkpoints(checkpoints)] == [None]


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_ranks_that_torchrun_starts_again_go_on(start: Start, place: Path) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    restarts = ("--max-restarts", "3", "-m", "llmtrain")
    often = ("--set", "checkpoint.every_steps=1", "--steps", 40)
    process = start(*TRAIN, *often, module=torchrun + restarts)
    wait_until(lambda: steps_of(place / "run") > 3, process)
    family = psutil.Process(process.pid).children(recursive=True)
    next(member for member in family if member.environ().get("RANK") == "1").kill()
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 0, err
    record = RunDirectory(place / "run").read_record()
    first, second = (session["from_step"] for session in record["sessions"])
    assert first == 0 < second
    assert record["result"]["steps"] == 40


def test_killed_rank_ends_the_others(start: Start, place: Path) -> None:
    process = start(*TRAIN, "--nproc", 2, *LONG)
    wait_until(lambda: steps_of(place / "run") > 1, process)
    family = psutil.Process(process.pid).children(recursive=True)
    victim = next(member for member in family if member.environ().get("RANK") == "1")
    victim.kill()
    _, err = process.communicate(timeout=LIMIT_S)

    assert process.returncode == 1
    assert err.count("error:") == 1
    assert "error: rank 1 was killed by SIGKILL" in err
    assert "Traceback" not in err
    assert not any(member.is_running() for member in family)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("-p", "tinny.yaml"), 2),
        (("-p", "tiny.yaml", "--set", "model.colour=red"), 2),
        (("-p", "tiny.yaml", "--set", "train.tokens_per_step=32"), 2),  # half a window a process
        (("-p", "tiny.yaml", "--set", "model.num_layers=10000000"), 3),
    ],
)
def test_what_can_be_known_before_is_known_before_launching(
    arguments: tuple[str, ...], code: int, llmtrain: Llmtrain
) -> None:
    outcome = llmtrain("train", *arguments, "--nproc", 2)

    assert outcome.code == code
    assert "error: " in outcome.err
    assert "rank" not in outcome.err.split("hint:")[0]
    assert outcome.out == ""


def test_ranks_learn_what_rank_0_found() -> None:
    store = dist.HashStore()
    first, second = (World(rank=rank, size=2, store=store) for rank in (0, 1))

    assert first.broadcast_from_main("key", lambda: "found it") == "found it"
    assert second.broadcast_from_main("key", lambda: "never asked") == "found it"


def test_ranks_do_not_wait_for_a_rank_0_that_failed() -> None:
    store = dist.HashStore()
    failures: list[LlmtrainError] = []

    def wait() -> None:
        try:
            World(rank=1, size=2, store=store).broadcast_from_main("key", lambda: "never asked")
        except LlmtrainError as error:
            failures.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()

    def fail() -> str:
        raise DataError("no such text")

    with pytest.raises(DataError, match="no such text"):
        World(rank=0, size=2, store=store).broadcast_from_main("key", fail)
    waiting.join(LIMIT_S)
    assert "rank 0" in failures[0].message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]", "rank 0 lost"),
        ("Timed out waiting 90000ms for recv operation to complete", "waited 1m 30s for another"),
    ],
)
def test_a_peer_that_is_gone_is_no_riddle(words: str, told: str) -> None:
    with pytest.raises(PeerLostError, match=told), World(size=2)._peer_errors_mapped(90.0):
        raise RuntimeError(words)


def test_other_failures_are_not_blamed_on_a_peer() -> None:
    with pytest.raises(RuntimeError, match="shapes"), World(size=2)._peer_errors_mapped(90.0):
        raise RuntimeError("shapes do not fit")


def test_ranks_that_are_started_again_do_not_meet_those_before_them() -> None:
    store, limit = dist.HashStore(), timedelta(seconds=LIMIT_S)

    def meeting(order: list[int]) -> list[str]:
        """What each of three ranks, that start in this order, reads of what rank 0 left."""
        with ThreadPoolExecutor(3) as threads:
            waiting = {}
            for rank in order:
                waiting[rank] = threads.submit(rendezvous_store, store, rank, 3, limit)
                time.sleep(0.05)
            parts = [waiting[rank].result(LIMIT_S) for rank in range(3)]
        assert not parts[1].check(["place"])
        parts[0].set("place", f"found in {order}")
        return [part.get("place").decode() for part in parts]

    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert meeting(order) == [f"found in {order}"] * 3


def test_a_rank_whose_others_never_come_says_so() -> None:
    for rank in (0, 1):
        with pytest.raises(PeerLostError, match=f"rank {rank} waited .* for other ranks to start"):
            rendezvous_store(dist.HashStore(), rank, 2, timedelta(seconds=0.1))


@pytest.mark.parametrize(
    ("local_sizes", "are_equal"),
    [([2, 2, 2, 2], True), ([2, 2, 1, 1], False), ([2, 2, 0, 0], False), ([0, 2, 2, 2], False)],
)
def test_rank_0_knows_whether_machines_have_as_many_ranks(
    local_sizes: list[int], are_equal: bool
) -> None:
    """0: the ranks of a machine are in another order."""
    store = dist.HashStore()
    others = [_are_equal(store, rank, 4, local_sizes[rank]) for rank in (1, 2, 3)]
    assert all(others), "they do not wait for it"
    assert _are_equal(store, 0, 4, local_sizes[0]) == are_equal


def test_of_agents_that_share_a_store_it_says_how_they_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(PeerLostError) as raised:
        rendezvous_store(dist.HashStore(), 1, 2, timedelta(seconds=0.1))
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(raised.value.hint)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
def test_a_signal_to_one_machine_saves_and_stops_the_ranks_of_all(
    start: Start, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As clusters start them; each machine's ranks end with 75, to be started again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = []
    for rank in range(2):
        for name, value in (shared | {"RANK": str(rank)}).items():
            monkeypatch.setenv(name, value)
        ranks.append(start(*TRAIN, "--resume", "auto", *LONG))
    wait_until(lambda: steps_of(place / "run") > 3, ranks[0])
    ranks[1].send_signal(signal.SIGTERM)
    for process in ranks:
        process.communicate(timeout=LIMIT_S)
    assert [process.returncode for process in ranks] == [75, 75]
    ranks_of_run = launched(place / "run")
    assert (ranks_of_run["by"], ranks_of_run["of_machines"]) == ("environment", [1, 1])
    assert Files(place / "run").checkpoints
