"""Who asked hears how a run goes and how it ends, however it ends."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from kept_news import keeping_command, kept
from transformers import TrainerCallback

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.news import RunNews


def arguments(folder, **settings):
    settings = {"per_device_train_batch_size": 8, "use_cpu": True, "disable_tqdm": True, "report_to": [], **settings}
    return ClipTrainingArguments(str(folder / "my run"), save_strategy="no", **settings)


class Raise(TrainerCallback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise self.error


class Scores:
    def __init__(self, *values):
        self.values = iter(values)

    def __call__(self, model):
        return {"score": next(self.values)}


def test_start_better_scores_and_end_are_told(tmp_path, clip, pairs):
    settings = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "score"}
    trainer = ClipTrainer(
        clip(),
        arguments(tmp_path, notify=keeping_command(tmp_path), **settings),
        train_dataset=pairs(32),
        eval_dataset=pairs(8),
        evaluators=[Scores(0.5, 0.25, 0.75, 0.75)],
    )
    trainer.train()
    told = kept(tmp_path)
    assert [message["event"] for message in told] == ["started", "improved", "improved", "finished"]
    assert [message.get("value") for message in told] == [None, 0.5, 0.75, None]
    assert [message["step"] for message in told] == [0, 1, 3, 4]
    assert told[2]["text"] == "Best score so far: 0.75 (before: 0.5)."
    assert told[3]["scores"]["eval_score"] == 0.75
    assert all(message["run"] == "my run" and message["max_steps"] == 4 for message in told)


def test_lower_is_better_where_it_is(tmp_path, clip, pairs):
    settings = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"metric_for_best_model": "score", "greater_is_better": False}
    trainer = ClipTrainer(
        clip(),
        arguments(tmp_path, notify=keeping_command(tmp_path), **settings),
        train_dataset=pairs(32),
        eval_dataset=pairs(8),
        evaluators=[Scores(0.5, 0.25, 0.75)],
    )
    trainer.train()
    assert [message.get("value") for message in kept(tmp_path)] == [None, 0.5, 0.25, None]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (ClipDomainError("--option 3: expected 4."), "--option 3: expected 4."),
        (KeyboardInterrupt(), "interrupted from the keyboard"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_failure_is_told_with_its_reason_and_goes_on(tmp_path, clip, pairs, error, reason):
    trainer = ClipTrainer(
        clip(),
        arguments(tmp_path, notify=keeping_command(tmp_path), live_page=True, max_steps=4),
        train_dataset=pairs(32),
        callbacks=[Raise(error)],
    )
    with pytest.raises(type(error)):
        trainer.train()
    told = kept(tmp_path)
    assert [message["event"] for message in told] == ["started", "failed"]
    assert told[1]["reason"] == reason and told[1]["step"] == 2
    page = (tmp_path / "my run" / "run.html").read_text()
    assert 'class="state failed">failed</span></p><p>' + reason + "</p>" in page and "refresh" not in page


def test_every_replay_is_on_the_page_and_the_first_is_told(tmp_path, clip, pairs):
    class Replay(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.news.tell("out_of_memory", f"Repeated with {64 // 2**state.global_step} rows.", rows=3)

    trainer = ClipTrainer(
        clip(),
        arguments(tmp_path, notify=keeping_command(tmp_path), live_page=True, max_steps=3),
        train_dataset=pairs(32),
        callbacks=[Replay()],
    )
    for _ in range(2):
        trainer.train()
    (first, second) = [message for message in kept(tmp_path) if message["event"] == "out_of_memory"]
    assert first["text"] == "Repeated with 32 rows." and first["rows"] == 3 and first["step"] == 1
    page = (tmp_path / "my run" / "run.html").read_text()
    assert all(f"Repeated with {rows} rows." in page for rows in (32, 16, 8))
    assert {"event": "Repeated with 16 rows.", "step": 2} in trainer.state.log_history


def test_a_hook_that_fails_stops_nothing(tmp_path, clip, pairs, caplog):
    settings = {"notify": "http://127.0.0.1:1/", "max_steps": 2}
    trainer = ClipTrainer(clip(), arguments(tmp_path, **settings), train_dataset=pairs(32))
    trainer.train()
    assert trainer.state.global_step == 2
    assert sum("Notification failed" in record.message for record in caplog.records) == 1


def test_the_address_is_in_nothing_that_is_kept(tmp_path, clip, pairs):
    args = arguments(tmp_path, notify="http://127.0.0.1:1/secret", max_steps=1, live_page=True)
    assert args.notify.endswith("secret")
    trainer = ClipTrainer(clip(), args, train_dataset=pairs(32))
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "run.html"} <= {path.name for path in files}
    assert not any(b"secret" in path.read_bytes() for path in files)
    assert "secret" not in args.to_json_string() + str(args.to_sanitized_dict())
    assert pickle.loads(pickle.dumps(args)).notify is None and args.notify is not None


@pytest.mark.parametrize("target", ["example.com", "command: no-such-program"])
def test_a_target_that_cannot_be_is_refused_before_the_run(tmp_path, target):
    with pytest.raises(ClipDomainError, match="--notify"):
        arguments(tmp_path, notify=target)


def test_the_outermost_with_decides_about_the_end(tmp_path, clip, pairs):
    args = arguments(tmp_path, notify=keeping_command(tmp_path), max_steps=1)
    with pytest.raises(OSError), RunNews(args) as news:
        ClipTrainer(clip(), args, train_dataset=pairs(32), news=news).train()
        raise OSError(28, "No space left on device")
    assert [message["event"] for message in kept(tmp_path)] == ["started", "failed"]
    assert kept(tmp_path)[1]["reason"] == "OSError: [Errno 28] No space left on device"


def test_sigterm_is_left_to_who_handles_it_and_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with RunNews(arguments(tmp_path, live_page=True)):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    with RunNews(arguments(tmp_path)):  # nobody listens
        assert signal.getsignal(signal.SIGTERM) is before


PROGRAM = textwrap.dedent(
    """
    import sys, time
    from importlib.util import module_from_spec, spec_from_file_location
    from hf_clip_domain.cli.processes import start_promised_processes

    start_promised_processes()

    from transformers import TrainerCallback
    from hf_clip_domain.arguments import ClipTrainingArguments
    from hf_clip_domain.training import ClipTrainer

    spec = spec_from_file_location("shared", sys.argv[1])
    shared = module_from_spec(spec)
    spec.loader.exec_module(shared)
    folder, target, what = sys.argv[2:5]

    class Act(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if what == "wait":
                open(folder + "/waiting", "w").close()
                time.sleep(60)
            if state.global_step == 2 and args.process_index == 1:
                raise ValueError("the second process has had enough")

    arguments = ClipTrainingArguments(
        folder, per_device_train_batch_size=4, use_cpu=True, disable_tqdm=True, save_strategy="no", report_to=[],
        max_steps=50, logging_steps=1, notify=target, live_page=True,
    )
    ClipTrainer(shared.make_clip(), arguments, train_dataset=shared.Pairs(40), callbacks=[Act()]).train()
    """
)


def start(tmp_path, what, launcher=()):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "run").mkdir()
    shared = Path(__file__).with_name("conftest.py")
    command = [sys.executable, *launcher, str(tmp_path / "program.py"), str(shared), str(tmp_path / "run")]
    command += [keeping_command(tmp_path), what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_terminated_run_says_so(tmp_path):
    run = start(tmp_path, "wait")
    deadline = time.monotonic() + 400
    while not (tmp_path / "run" / "waiting").exists():
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=300)
    assert run.returncode == 128 + signal.SIGTERM
    assert [message["event"] for message in kept(tmp_path)] == ["started", "failed"]
    assert kept(tmp_path)[1]["reason"] == "terminated (SIGTERM)"
    assert "terminated (SIGTERM)" in (tmp_path / "run" / "run.html").read_text()


@pytest.mark.slow
def test_the_reason_of_another_process_arrives_once(tmp_path):
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1", "--num_processes", "2"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29747"]
    run = start(tmp_path, "fail", launcher)
    _, errors = run.communicate(timeout=700)
    assert run.returncode != 0 and b"had enough" in errors
    told = kept(tmp_path)
    assert [message["event"] for message in told] == ["started", "failed"], errors[-3000:]
    assert told[1]["reason"] == "ValueError: the second process has had enough"
    assert told[0]["process"] == 0 and told[1]["process"] == 1
    page = (tmp_path / "run" / "run.html").read_text()
    assert "had enough" in page and "failed" in page
