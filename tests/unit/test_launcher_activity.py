"""What a rank is at, told from stacks as torch 2.13 leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from switchgear.launcher import loops, stacks
from switchgear.launcher.activity import Activity, from_stack
from switchgear.launcher.loops import Place
from switchgear.launcher.stacks import STACK_BYTES_MAX, Frame

PACKAGES = "/opt/venv/lib/python3.11/site-packages"
TORCH = f"{PACKAGES}/torch"
MAIN = Frame("<module>", "/job/train.py", 40)
FORWARD = Frame("forward", "/job/model.py", 12)
BACKWARD = Frame("_engine_run_backward", f"{TORCH}/autograd/graph.py", 869)
MODULE = Frame("_call_impl", f"{TORCH}/nn/modules/module.py", 1800)
DDP = Frame("forward", f"{TORCH}/nn/parallel/distributed.py", 1700)
C10D = Frame("all_reduce", f"{TORCH}/distributed/distributed_c10d.py", 3000)
LOGGER = Frame("wrapper", f"{TORCH}/distributed/c10d_logger.py", 83)


def at(
    *frames: Frame,
    sleeps: bool = True,
    writing: bool = False,
    place: Place = Place.INSIDE,
    line: str = "",
    call: Sequence[Frame] = (MAIN,),
) -> Activity:
    return from_stack(
        frames,
        writing=writing,
        importing=loops.imports(frames, call),
        sleeps=sleeps,
        beyond=loops.beyond(frames, call),
        place_of=lambda stack: place,
        line_of=lambda frame: line,
    )


@pytest.mark.parametrize(
    ("stack", "activity"),
    [
        ((MAIN,), Activity.STEP),
        ((MAIN, FORWARD), Activity.STEP),
        ((MAIN, DDP, MODULE, FORWARD), Activity.STEP),
        ((MAIN, LOGGER, C10D), Activity.COLLECTIVE),
        ((MAIN, BACKWARD), Activity.COLLECTIVE),
        ((MAIN, BACKWARD, FORWARD), Activity.STEP),  # a backward function of the user's
        ((MAIN, DDP), Activity.COLLECTIVE),
        ((MAIN, Frame("_clip", f"{TORCH}/distributed/tensor/_redistribute.py", 3)), Activity.COLLECTIVE),
        ((MAIN, Frame("fetch", f"{TORCH}/utils/data/_utils/fetch.py", 52), Frame("__getitem__", "/job/data.py", 3)), Activity.DATA),
        ((MAIN, Frame("get", "/usr/lib/python3.11/queue.py", 171)), Activity.STEP),
        ((MAIN, Frame("_compile", f"{TORCH}/_dynamo/convert_frame.py", 5)), Activity.COMPILE),
        ((MAIN, Frame("compile_wrapper", f"{TORCH}/_dynamo/eval_frame.py", 5), FORWARD), Activity.STEP),
        ((MAIN, Frame("run", f"{TORCH}/_inductor/compile_fx.py", 5)), Activity.STEP),  # a CUDA graph is replayed
        ((MAIN, Frame("compile_fx_inner", f"{TORCH}/_inductor/compile_fx.py", 5)), Activity.COMPILE),
        ((MAIN, Frame("_save", f"{TORCH}/serialization.py", 900)), Activity.CHECKPOINT),
        ((MAIN, Frame("load", f"{TORCH}/serialization.py", 900)), Activity.STEP),
        ((MAIN, Frame("save", f"{TORCH}/distributed/checkpoint/state_dict_saver.py", 90), C10D), Activity.CHECKPOINT),
        ((MAIN, Frame("save_file", f"{PACKAGES}/safetensors/torch.py", 90)), Activity.CHECKPOINT),
        ((MAIN, Frame("evaluate", "/job/train.py", 7), C10D), Activity.EVALUATION),
        ((MAIN, Frame("run_validation", "/job/train.py", 7)), Activity.EVALUATION),
        ((MAIN, Frame("get_valid_mask", "/job/train.py", 7)), Activity.STEP),
        ((MAIN, Frame("evaluation_loop", f"{PACKAGES}/transformers/trainer.py", 7)), Activity.EVALUATION),
        ((), Activity.UNKNOWN),
    ],
)  # fmt: skip
def test_what_a_sleeping_rank_is_at(stack: tuple[Frame, ...], activity: Activity) -> None:
    assert at(*stack) is activity


def test_a_rank_that_computes_waits_for_nobody_unless_it_is_in_a_collective() -> None:
    assert [at(MAIN, inner, sleeps=False) for inner in (BACKWARD, DDP, C10D)] == [
        Activity.STEP,
        Activity.STEP,
        Activity.COLLECTIVE,
    ]


def test_a_rank_that_imports_compiles_unless_its_whole_program_runs_in_an_import() -> None:
    load = Frame("_find_and_load", "<frozen importlib._bootstrap>", 1176)
    assert at(MAIN, load, FORWARD) is Activity.COMPILE
    assert loops.imports([MAIN, load, FORWARD], [MAIN, load, FORWARD]) is False


def test_a_line_that_waits_tells_of_c_code_below_it() -> None:
    assert at(MAIN, line="    work.wait()") is Activity.COLLECTIVE
    assert at(MAIN, line="    work.wait()", sleeps=False) is Activity.STEP
    assert at(MAIN, line="total += loss.item()", sleeps=False) is Activity.COLLECTIVE
    assert at(MAIN, BACKWARD, FORWARD, line="time.sleep(5)") is Activity.STEP


def test_whatever_is_outside_of_the_loop_of_the_steps_is_no_step() -> None:
    assert [at(MAIN, place=Place.OUTSIDE), at(MAIN, C10D, place=Place.OUTSIDE)] == [Activity.EVALUATION] * 2
    assert [at(MAIN, place=Place.BETWEEN), at(MAIN, C10D, place=Place.BETWEEN)] == [Activity.UNKNOWN] * 2


def test_a_function_that_steps_are_made_in_is_no_evaluation_whatever_it_is_called() -> None:
    trains = Frame("train_and_evaluate", "/job/train.py", 30)
    call = [MAIN, trains]
    assert at(MAIN, Frame("train_and_evaluate", "/job/train.py", 31), FORWARD, call=call) is Activity.STEP
    assert at(MAIN, trains, Frame("evaluate", "/job/train.py", 7), call=call) is Activity.EVALUATION


def test_a_file_that_is_being_written_makes_a_checkpoint() -> None:
    assert [at(MAIN, writing=True), at(writing=True)] == [Activity.CHECKPOINT] * 2


PROGRAM = """\
def epoch():
    for batch in range(9):
        loss = forward()
        make_step()
    report()

def main():
    for n in range(3):
        epoch()
        validate()
    upload()

def make_step():
    backward()
    for optimizer in optimizers:
        optimizer.step()
    log()

main()
"""
MADE_IN = ("<module>", "main", "epoch", "make_step")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(PROGRAM)
    return path


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ((19, 9, 4, 14), Place.INSIDE),  # the loop over optimizers is none over batches
        ((19, 9, 4, 17), Place.INSIDE),
        ((19, 9, 3), Place.INSIDE),
        ((19, 9, 2), Place.INSIDE),  # waits for the next batch
        ((19, 9, 5), Place.BETWEEN),  # after the last one
        ((19, 10), Place.BETWEEN),  # the loop over epochs goes on
        ((19, 11), Place.OUTSIDE),
        ((19,), Place.INSIDE),  # no more is known of it
    ],
)
def test_the_loop_of_the_steps_is_the_innermost_around_their_call(
    program: Path, lines: tuple[int, ...], place: Place
) -> None:
    def stack(*lines: int) -> list[Frame]:
        return [Frame(name, str(program), line) for name, line in zip(MADE_IN, lines, strict=False)]

    assert loops.place_of(stack(*lines), stack(19, 9, 4, 16)) is place


def test_loops_of_a_library_count_where_the_program_has_none(tmp_path: Path) -> None:
    script, library = tmp_path / "train.py", tmp_path / "lib/python3.11/site-packages/engine.py"
    library.parent.mkdir(parents=True)
    script.write_text("while True:\n    forward()\n    engine.step()\nengine.step()\n")
    library.write_text("def step():\n    reduce()\n    for group in groups:\n        adam.step(group)\n")

    def stack(*lines: int) -> list[Frame]:
        files = (("<module>", str(script)), ("step", str(library)))
        return [Frame(name, file, line) for (name, file), line in zip(files, lines, strict=False)]

    assert [loops.place_of(stack(*lines), stack(3, 4)) for lines in ((2,), (3, 2))] == [Place.INSIDE] * 2
    assert [loops.place_of(stack(4, n), stack(4, 4)) for n in (2, 3)] == [Place.OUTSIDE, Place.INSIDE]


def test_an_interpreter_that_winds_up_is_in_no_loop(program: Path) -> None:
    call = [Frame("<module>", str(program), 13)]
    shutdown = Frame("_shutdown", "/usr/lib/python3.11/threading.py", 1560)
    assert loops.place_of([shutdown], call) is Place.OUTSIDE
    assert loops.place_of([shutdown] * 100, call) is Place.INSIDE, (
        "the program's own frames may be among those that were cut off"
    )


def test_a_program_that_cannot_be_read_is_in_its_loop(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("for in")
    for name in ("broken.py", "missing.py"):
        path = str(tmp_path / name)
        assert loops.place_of([Frame("<module>", path, 3)], [Frame("<module>", path, 1)]) is Place.INSIDE


def test_frames_are_read_from_faulthandler_without_ours() -> None:
    text = """Current thread 0x00007f0 (most recent call first):
  File "/job/my, line 2 in x/train.py", line 12 in forward
  File "/job/train.py", line 40 in <module>
  File "/sg/train/rank.py", line 99 in _run_script
"""
    assert stacks.from_faulthandler(text, "/sg/train/") == [
        Frame("<module>", "/job/train.py", 40),
        Frame("forward", "/job/my, line 2 in x/train.py", 12),
    ]
    assert stacks.from_faulthandler("  <no Python frame>\n", "/sg/train/") == []
    later = 'Stack (most recent call first):\n  File "/job/train.py", line 41 in <module>\n'
    assert stacks.from_faulthandler(text + later, "/sg/train/") == [Frame("<module>", "/job/train.py", 41)]


def test_the_main_thread_is_read_from_py_spy() -> None:
    text = """[{"os_thread_id": 8, "frames": []}, {"os_thread_id": 7, "frames": [
      {"name": "f", "filename": "/job/a.py", "line": 2}, {"name": "run", "filename": "/sg/rank.py", "line": 1}]}]"""
    assert stacks.from_py_spy(text, 7, "/sg/") == [Frame("f", "/job/a.py", 2)]
    for bad in ("[]", "{", '[{"os_thread_id": 7}]', "null"):
        with pytest.raises(ValueError, match=r"no stack of thread|Expecting"):
            stacks.from_py_spy(bad, 7, "/sg/")


def test_the_user_s_frame_is_the_innermost_that_is_no_library_s() -> None:
    library = Frame("train", f"{PACKAGES}/lightning/loop.py", 3)
    queue = Frame("get", "/root/.pyenv/versions/3.11.7/lib/python3.11/queue.py", 171)
    assert stacks.where([MAIN, library, MODULE, FORWARD, C10D, queue]) == "forward (/job/model.py:12)"
    assert stacks.where([library, C10D, queue]) == f"train ({PACKAGES}/lightning/loop.py:3)"
    assert stacks.where([C10D, queue]) == ""


def test_a_deep_stack_keeps_its_innermost_frames() -> None:
    text = stacks.text([Frame(f"f{n}", "/job/ü.py", n) for n in range(1000)])
    assert len(text.encode()) <= STACK_BYTES_MAX
    assert text.endswith('  File "/job/ü.py", line 999, in f999\n')
    assert text.startswith('  File "')
