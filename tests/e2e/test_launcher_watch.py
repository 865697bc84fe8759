"""What a launcher tells of ranks that make no step, with real ranks on gloo that all tests of this file start from one zygote."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from textwrap import indent

import pytest
import pytest_asyncio
from launcher_world import Launcher

from switchgear.launcher import proc, watcher
from switchgear.v1alpha import launcher_service_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")
generations = itertools.count(1)

#: After six quick steps rank 1 calls `trouble`; rank 0 goes on to its next collective operation.
SCRIPT = """
import os, sys, time
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
dist.init_process_group("gloo")
rank, folder = dist.get_rank(), os.environ["SWITCHGEAR_CHECKPOINT_DIR"]
ddp = DDP(torch.nn.Linear(4, 4))
optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)

{trouble}

for step in range(10_000):
    if step == 6 and rank == 1:
        trouble()
    optimizer.zero_grad()
    ddp(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    time.sleep(0.02)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Launcher]:
    folder = tmp_path_factory.mktemp("job")
    (folder / "checkpoints").mkdir()
    environment = {"TORCH_FR_DUMP_TEMP_FILE": str(folder / "flight-")}
    spec = {"checkpoint_directory": str(folder / "checkpoints"), "environment": environment}
    async with Launcher(folder, spec=spec) as launcher:
        await launcher.wait(0, "hello", where=lambda hello: hello.ready)
        yield launcher


@pytest_asyncio.fixture(loop_scope="module")
async def g(launcher: Launcher) -> AsyncIterator[int]:
    """A generation that no other test has used; what runs in it is stopped."""
    generation = next(generations)
    yield generation
    await launcher.stop(generation)
    await launcher.wait(generation, "attempt_stopped")


async def told(launcher: Launcher, generation: int, **expected: int) -> dict[int, pb.RankWatch]:
    """The first watch in which these ranks ("r0", "r1") are at these activities."""
    wanted = {int(name[1:]): activity for name, activity in expected.items()}

    def fits(watch: pb.Watch) -> bool:
        found = {rank.rank: rank.activity for rank in watch.ranks}
        return all(found.get(rank) == activity for rank, activity in wanted.items())

    found = await launcher.wait(generation, "watch", where=fits, timeout_s=10)
    return {rank.rank: rank for rank in found[0].ranks}


async def test_a_rank_that_sleeps_in_its_step_is_told_from_the_one_that_waits_for_it(
    launcher: Launcher, g: int
) -> None:
    launcher.becomes(SCRIPT.format(trouble="def trouble():\n    time.sleep(600)"))
    (launcher.folder / "flight-1").touch()  # of an earlier attempt
    await launcher.start(g)
    await launcher.pids(g)
    (launcher.folder / "flight-0").touch()
    await launcher.wait_for_steps(g, 6)
    ranks = await told(launcher, g, r0=pb.RankWatch.COLLECTIVE, r1=pb.RankWatch.STEP)
    culprit, waiting = ranks[1], ranks[0]
    script = launcher.folder / "script.py"
    assert culprit.where == f"trouble ({script}:11)"
    assert culprit.stack.splitlines()[-2:] == [
        f'  File "{script}", line 15, in <module>',
        f'  File "{script}", line 11, in trouble',
    ]
    assert waiting.stack.startswith(f"flight recorder: {launcher.folder / 'flight-0'}\n  File ")
    assert culprit.stack.startswith("  File ")
    assert waiting.where.startswith(f"<module> ({script}:")
    assert (culprit.count, waiting.count) == (6, 6)
    assert 0 < culprit.step_seconds < 0.5
    assert culprit.process_state == pb.RankWatch.SLEEPING
    assert culprit.cpu_share < 0.2
    silent_s = (launcher.of(g, "watch")[-1].time_unix_ns - culprit.progress_time_unix_ns) / 1e9
    assert 1 < silent_s < 5


async def test_a_stopped_rank_is_told_of_within_two_seconds_and_its_going_on_ends_that(
    launcher: Launcher, g: int
) -> None:
    launcher.becomes(SCRIPT.format(trouble="def trouble(): pass"))
    await launcher.start(g)
    pid = (await launcher.pids(g))[1]
    await launcher.wait_for_steps(g, 3)
    os.kill(pid, signal.SIGSTOP)
    watches = await launcher.wait(g, "watch", where=lambda w: any(r.rank == 1 for r in w.ranks), timeout_s=2)
    stopped = next(rank for rank in watches[0].ranks if rank.rank == 1)
    assert stopped.process_state == pb.RankWatch.STOPPED
    os.kill(pid, signal.SIGCONT)
    await launcher.wait(g, "watch", where=lambda watch: not watch.ranks, timeout_s=5)
    before = len(launcher.of(g, "watch"))
    await asyncio.sleep(1.2)
    assert len(launcher.of(g, "watch")) == before, "nothing is told while all is well"


@pytest.mark.parametrize(
    "troubles",
    [
        {
            "STEP": "def trouble():\n    while True: sum(range(1000))",
            "DATA": """
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 1
    def __getitem__(self, n): time.sleep(600)
def trouble(): next(iter(torch.utils.data.DataLoader(Slow())))""",
        },
        {
            "EVALUATION": "def trouble():\n    ddp.eval()\n    time.sleep(600)",
            "COMPILE": """
from switchgear.train import progress
def trouble():
    with progress.phase("compile"): time.sleep(600)""",
        },
        {
            "CHECKPOINT": """
class Slow:
    def __reduce__(self): time.sleep(600)
def trouble(): torch.save(Slow(), folder + "/slow.pt")""",
            "EVALUATION": "def evaluate(): time.sleep(600)\ntrouble = evaluate",
        },
        {
            "CHECKPOINT": "def trouble():\n    with open(folder + '/own.tmp', 'wb') as file: time.sleep(600)",
            # A log in the folder of the checkpoints is none.
            "STEP": "def trouble():\n    with open(folder + '/train.log', 'a') as file: time.sleep(600)",
        },
    ],
    ids=lambda troubles: " ".join(troubles).lower(),
)
async def test_what_silent_ranks_are_at(launcher: Launcher, g: int, troubles: dict[str, str]) -> None:
    """Each rank of a pair is in a trouble of its own."""
    both = "".join(f"\nif rank == {rank}:\n{indent(code, '    ')}" for rank, code in enumerate(troubles.values()))
    launcher.becomes(SCRIPT.format(trouble=f"time.sleep(0.1){both}").replace(" and rank == 1", ""))
    await launcher.start(g)
    expected = {f"r{rank}": pb.RankWatch.Activity.Value(name) for rank, name in enumerate(troubles)}
    await told(launcher, g, **expected)


async def test_coming_back_from_the_data_and_steps_of_a_second_optimizer_are_progress(
    launcher: Launcher, g: int
) -> None:
    """Rank 0 gets its data late, and then sleeps in its step; rank 1 goes on with another optimizer for as long."""
    trouble = """
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 1
    def __getitem__(self, n):
        time.sleep(2.5)
        return 0
other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
def trouble():
    if rank == 0:
        next(iter(torch.utils.data.DataLoader(Slow())))
        time.sleep(600)
    for _ in range(8):
        other.step()
        time.sleep(0.5)
    time.sleep(600)
"""
    launcher.becomes(SCRIPT.format(trouble=trouble).replace(" and rank == 1", ""))
    await launcher.start(g)
    waits = (await told(launcher, g, r0=pb.RankWatch.DATA))[0]
    sleeps = (await told(launcher, g, r0=pb.RankWatch.STEP))[0]
    assert sleeps.progress_time_unix_ns - waits.progress_time_unix_ns > 2e9
    goes_on = (await told(launcher, g, r1=pb.RankWatch.STEP))[1]
    assert (goes_on.count, goes_on.progress_time_unix_ns - waits.progress_time_unix_ns > 3e9) == (6, True)


async def test_a_source_that_cannot_be_read_blinds_nobody(
    launcher: Launcher, g: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes to, as a file of a dead mount."""
    monkeypatch.setattr(watcher, "READ_TIMEOUT_S", 0.2)
    source = launcher.folder / "dead.py"
    os.mkfifo(source)
    pipe = os.open(source, os.O_RDWR)
    trouble = f'exec(compile("def trouble(): time.sleep(600)", {str(source)!r}, "exec"))'
    launcher.becomes(SCRIPT.format(trouble=trouble).replace(" and rank == 1", ""))
    try:
        await launcher.start(g)
        ranks = await told(launcher, g, r0=pb.RankWatch.ACTIVITY_UNSPECIFIED, r1=pb.RankWatch.ACTIVITY_UNSPECIFIED)
    finally:
        source.unlink()
        os.close(pipe)
    assert {rank.where for rank in ranks.values()} == {f"trouble ({source}:1)"}
    await told(launcher, g, r0=pb.RankWatch.STEP, r1=pb.RankWatch.STEP)


async def test_what_comes_after_the_last_step_is_no_step(launcher: Launcher, g: int) -> None:
    launcher.becomes(SCRIPT.format(trouble="def trouble(): pass").replace("10_000", "8") + "\ntime.sleep(600)\n")
    await launcher.start(g)
    await told(launcher, g, r0=pb.RankWatch.EVALUATION, r1=pb.RankWatch.EVALUATION)


async def test_a_loop_without_an_optimizer_counts_and_names_its_steps(launcher: Launcher, g: int) -> None:
    """What the script says itself wins over what an optimizer beside it says."""
    exits = await launcher.run(
        """
import torch
from switchgear.train import progress
weight = torch.nn.Parameter(torch.zeros(1))
weight.grad = torch.ones(1)
optimizer = torch.optim.SGD([weight], lr=0.1)
for step in range(41, 51):
    optimizer.step()
    with progress.phase("evaluation"): pass
    progress.step(step)
""",
        generation=g,
    )
    assert [(e.exit_code, e.step, e.stderr_tail) for e in exits] == [(0, 50, "")] * 2
    exits = await launcher.run(
        "from switchgear.train import progress\nfor step in range(41, 51): progress.step(step)",
        generation=next(generations),
    )
    assert [(e.exit_code, e.step) for e in exits] == [(0, 50)] * 2


async def test_the_time_of_checkpoints_is_told_with_the_steps(launcher: Launcher, g: int) -> None:
    launcher.becomes(
        """
import os, time, torch
class Slow:
    def __reduce__(self):
        time.sleep(0.2)
        return (int, ())
path = os.environ["SWITCHGEAR_CHECKPOINT_DIR"] + "/" + os.environ["RANK"]
weight = torch.nn.Parameter(torch.zeros(1))
weight.grad = torch.ones(1)
optimizer = torch.optim.SGD([weight], lr=0.1)
optimizer.step()
torch.save(Slow(), path + ".pt")
with open(path + ".tmp", "wb") as file:
    file.write(bytes(10))
    time.sleep(0.1)
os.replace(path + ".tmp", path + ".bin")
with open(path + ".txt", "w"):
    time.sleep(0.5)
optimizer.step()
time.sleep(600)
"""
    )
    await launcher.start(g)
    progress = await launcher.wait_for_steps(g, 2)
    assert all(0.3e9 <= rank.checkpoint_ns < 0.45e9 for rank in progress.ranks), progress


async def test_an_exception_that_record_has_seen_is_told_although_the_program_hides_it(
    launcher: Launcher, g: int
) -> None:
    script = """
import os
from torch.distributed.elastic.multiprocessing.errors import record

@record
def main():
    raise ValueError("bad batch")

try:
    main()
except ValueError:
    os._exit(7)
"""
    exits = await launcher.run(script, generation=g)
    assert {(e.exit_code, e.exception) for e in exits if not e.stopped_by_us} == {(7, "ValueError: bad batch")}


async def test_each_way_to_end_is_told_as_what_it_is(
    launcher: Launcher, g: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits = await launcher.run(
        """
import os, sys, threading, time
def work(): raise ValueError("in a thread")
if os.environ["RANK"] == "0":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    sys.exit("no GPU is free")
time.sleep(600)
""",
        generation=g,
    )
    assert (exits[0].exit_code, exits[0].exception) == (1, "SystemExit: no GPU is free")
    assert "ValueError: in a thread" in exits[0].stderr_tail
    assert exits[0].stderr_tail.endswith("no GPU is free\n")
    assert exits[1].stopped_by_us
    exits = await launcher.run("import os; os._exit(3)", generation=next(generations))
    assert {(e.exit_code, e.exception, e.stderr_tail) for e in exits if not e.stopped_by_us} == {(3, "", "")}
    generation = next(generations)
    launcher.becomes("import time; time.sleep(600)")
    await launcher.start(generation)
    pids = await launcher.pids(generation)
    kills = proc.oom_kills()
    monkeypatch.setattr(proc, "oom_kills", lambda: kills + 1)
    os.kill(pids[0], signal.SIGKILL)
    exits = await launcher.wait(generation, "rank_exited", 2)
    killed = next(e for e in exits if e.rank == 0)
    assert (killed.exit_code, killed.stopped_by_us) == (-signal.SIGKILL, False)
    assert "killed a process of this machine for want of memory" in killed.stderr_tail
    await launcher.wait(generation, "attempt_stopped")
