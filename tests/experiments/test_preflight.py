"""What a run is refused for before a weight is read, and what is said about the rest."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from commands import last_line, run
from tiny import build, files_in
from toys import countries_folder, toy

import latentcomm as lc
from latentcomm.channels.calm import new_bridge
from latentcomm.channels.interlat import new_adapter
from latentcomm.channels.training.trainer import save_weights
from latentcomm.experiments import _demand
from latentcomm.experiments import job as jobs
from latentcomm.experiments import preflight as common
from latentcomm.experiments._prepared import EXPERIMENTS
from latentcomm.experiments._train_check import _n_trained
from latentcomm.experiments.capacity import free_disk, free_memory
from latentcomm.experiments.preflight import Preflight
from latentcomm.experiments.settings import Settings
from latentcomm.experiments.train import KIND
from latentcomm.models.chat import ChatFormat
from latentcomm.tasks.base import Task

GB = 2**30
CELL: dict[str, Any] = {"read_layer": 1, "write_layer": 1}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is checked here, no model is loaded."""

    def refuse(*given: Any, **options: Any) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(jobs.models, "load_model", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(countries_folder(tmp_path_factory.mktemp("models") / "tiny-countries"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(countries_folder(tmp_path_factory.mktemp("models") / "wide", d_model=24))


def cascade(**options: Any) -> lc.CascadeSettings:
    return lc.CascadeSettings(**{"sender": "here", "receiver": "here", "task": "kv-math-worked", "n": (2,), **options})


WRONG: list[tuple[Settings, str]] = [
    (lc.SweepSettings(task="gsm8k", data="sample"), "has no answer choices, and a sweep chooses its cell"),
    (lc.SweepSettings(read_layers=(1, 3)), "read_layers: layer 3 is outside here, whose layers are 0 to 2"),
    (lc.SweepSettings(write_layers=(1, 1)), "write_layers names layer 1 twice"),
    (lc.SweepSettings(n_tune=500), "n_tune is 500, and the tuning half of countries has 163 items; give at most 163"),
    (lc.SweepSettings(n_test=1), "share the answer"),
    (lc.SweepSettings(fusion=("sum", "sum")), "fusion names sum twice"),
    (lc.SweepSettings(task="mmlu", data="sample", subjects=("magic",)), "magic"),
    (lc.SweepSettings(device="nowhere"), "nowhere"),
    (lc.SweepSettings(dtype="float8"), "there is no dtype 'float8'"),
    (lc.CompareSettings(channels=("silent", "smoke")), "there is no channel 'smoke'"),
    (lc.CompareSettings(channels=("silent", "silent")), "named twice"),
    (lc.CompareSettings(controls=("placebo",)), "there is no control 'placebo'"),
    (lc.CompareSettings(controls=("zero", "zero")), "controls names zero twice"),
    (lc.CompareSettings(channels=("replace",), read_layer=1), "write_layer is not given, but read_layer is"),
    (lc.CompareSettings(channels=("replace",), task="gsm8k", data="sample"), "has no choices to choose a cell by"),
    (lc.CompareSettings(n_test=1000), "n_test is 1000, and the test half of countries has 162 items"),
    (lc.CompareSettings(controls=("same-label",), n_test=5), "alone with their answer"),
    (lc.CompareSettings(weights="nowhere"), "the folder nowhere holds no trained channel"),
    (lc.TrainSettings(), "channels names none to train"),
    (lc.TrainSettings(channels=("gated", "gated"), **CELL), "channels names gated twice"),
    (lc.TrainSettings(channels=("gated",), write_layer=1), "read_layer is not given, but write_layer is"),
    (lc.TrainSettings(channels=("gated",), **CELL, batch_size=100_000), "batch_size is 100000, and gated is trained"),
    (lc.TrainSettings(channels=("gated",), **CELL, dtype="float64"), "train in float32 or bfloat16"),
    (cascade(stop=()), "stop names none; choose among entropy-drop"),
    (cascade(stop=("soon",)), "there is no stop 'soon'"),
    (cascade(stop=("oracle", "oracle")), "stop names oracle twice"),
    (cascade(controls=("placebo",)), "there is no control 'placebo'"),
    (cascade(hand_off=("text", "text")), "hand_off names text twice"),
    (cascade(n=(500,)), "n is 500, and the large model writes"),
    (cascade(n_items=10_000), "n_items is 10000, and task"),
    (cascade(hand_off=("graft",), write_layer=9), "write_layer 9 is outside here"),
    (lc.DiagnoseSettings(fusion=("sum", "sum")), "fusion names sum twice"),
    (lc.DiagnoseSettings(documents=1_000_000), "documents is 1000000, and public_domain.jsonl has 129 documents"),
    (
        lc.DiagnoseSettings(tokens=1_000_000),
        "tokens is 1000000, and the shorter context of both models has 4000 tokens",
    ),
    (lc.CrossModalSettings(channels=("silent", "smoke")), "there is no channel for pictures 'smoke'"),
    (lc.CrossModalSettings(write_layer=9), "write_layer 9 is outside here"),
    (lc.CrossModalSettings(n_fitting=1_000_000), "n_fitting is 1000000, and the fitting half of the digits has"),
    (lc.CrossModalSettings(data="nowhere", sender="here"), "nowhere"),
]


@pytest.mark.parametrize(("settings", "sentence"), WRONG, ids=[f"{w[0].command}-{n}" for n, w in enumerate(WRONG)])
def test_a_wrong_setting_is_refused_before_a_weight_is_read(
    settings: Settings, sentence: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, tokenizer = common.models.shape_of(folder), common.models.tokenizer_of(folder)
    monkeypatch.setattr(
        common.models, "shape_of", lambda _: _demand.ModelShape(**{**vars(shape), "name": "here", "n_ctx": 4000})
    )
    monkeypatch.setattr(common.models, "tokenizer_of", lambda _: tokenizer)
    named = type(settings)(**{**vars(settings), "sender": settings.sender and "here", "receiver": ""})
    if settings.command in ("cascade", "crossmodal"):
        named = type(settings)(**{**vars(named), "receiver": "here"})
    found = lc.preflight(named)
    assert [refusal for refusal in found.refusals if sentence in refusal], found.refusals
    assert len(found.refusals) == 1, found.refusals
    with pytest.raises(ValueError, match=r"."):
        lc.run(named)


def test_weights_without_the_channel_are_refused_before_a_weight_is_read(folder: str, tmp_path: Path) -> None:
    (tmp_path / "gated.safetensors").touch()
    settings = lc.CompareSettings(sender=folder, channels=("gated", "calm"), weights=str(tmp_path), **CELL)
    damaged, missing = lc.preflight(settings).refusals
    assert "gated.safetensors" in damaged and "'calm' has parts that must be trained first" in missing


def test_a_chat_needs_a_chat_template(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = lc.SweepSettings(sender=folder, template="chat")
    assert lc.preflight(settings).refusals == ()
    tokenizer = common.models.tokenizer_of(folder)
    tokenizer.chat_template = None
    monkeypatch.setattr(common.models, "tokenizer_of", lambda _: tokenizer)
    assert "has no chat template" in lc.preflight(settings).refusals[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (lc.SweepSettings(enable_thinking=True, template="chat"), "enable_thinking is True, and the chat template of"),
        (lc.CompareSettings(date="2031-05-02", template="chat"), "date is 2031-05-02, and the chat template of"),
        (cascade(enable_thinking=False, template="chat"), "enable_thinking is False, and the chat template of"),
        (lc.CrossModalSettings(date="2031-05-02", template="chat"), "date is 2031-05-02, and the chat template of"),
    ],
)
def test_an_option_that_a_chat_template_does_not_know_is_refused(
    settings: Settings, sentence: str, folder: str
) -> None:
    named = replace(settings, sender=settings.sender and folder, receiver=folder)
    (refusal,) = lc.preflight(named).refusals
    assert refusal.startswith(sentence) and refusal.endswith("leave it out")


def test_what_a_chat_template_does_otherwise_is_noted(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = lc.SweepSettings(sender=folder, template="chat", system="Alice is")
    assert not [note for note in lc.preflight(settings).notes if "chat template" in note]
    tokenizer = common.models.tokenizer_of(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "in messages", "in messages if message['role'] != 'system'"
    )
    tokenizer.chat_template += "{{ strftime_now('%d') }}"
    monkeypatch.setattr(common.models, "tokenizer_of", lambda _: tokenizer)
    joined, pinned = [note for note in lc.preflight(settings).notes if "chat template" in note]
    assert joined.endswith("has no system turn: the system prompt is written into the user's turn")
    assert pinned.endswith("writes today's date: it writes 2024-07-26; give `date` for another")


def test_a_system_prompt_and_a_history_count_as_tokens(folder: str) -> None:
    plain = lc.SweepSettings(sender=folder, template="chat")
    long = replace(plain, system=" Alice is" * 200)
    assert lc.preflight(plain).refusals == ()
    assert "reads 40 at most; shorten it" in lc.preflight(long).refusals[0]
    short = replace(plain, history=(("user", " Alice is"), ("assistant", " Alice is")))
    assert lc.preflight(short).flops > lc.preflight(plain).flops


def test_a_task_in_memory_has_its_own_chat(folder: str) -> None:
    settings = lc.SweepSettings(sender=folder, template="chat", system="Alice is")
    task = lc.tasks.countries(template="chat")
    (refusal,) = lc.preflight(settings, task=task).refusals
    assert refusal.startswith("the task is in memory, and its prompts are not a chat (system='Alice is'); give it this")
    same = replace(task, template=ChatFormat(system="Alice is"))
    assert lc.preflight(settings, task=same).refusals == ()


class TestAllTogether:
    def test_every_refusal_of_a_run_comes_at_once(self, folder: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        settings = lc.CompareSettings(
            sender=folder, channels=("silent", "smoke"), controls=("placebo",), read_layer=7, n_test=1000
        )
        with pytest.raises(ValueError, match="6 things keep this from running") as refused:
            lc.run(settings, out=tmp_path / "file" / "out")
        lines = str(refused.value).splitlines()[1:]
        assert [line.partition(" ")[0] for line in lines] == [f"{number}." for number in range(1, 7)]
        found = (
            "is no folder",
            "'smoke'",
            "'placebo'",
            "write_layer is not given",
            "read_layer 7 is",
            "n_test is 1000",
        )
        for sentence in found:
            assert sum(sentence in line for line in lines) == 1, sentence
        assert files_in(tmp_path) == ["file"]

    def test_a_model_that_is_not_there_does_not_hide_the_rest(self, tmp_path: Path) -> None:
        found = lc.preflight(lc.SweepSettings(sender=str(tmp_path / "no"), fusion=("men",)))
        assert len(found.refusals) == 2 and "there is no file or directory" in "".join(found.refusals)

    def test_models_in_memory_are_checked_by_the_same_rules(self, tiny: lc.Model, other: lc.Model) -> None:
        found = lc.preflight(lc.CompareSettings(channels=("kv",), read_layer=2, write_layer=9), tiny, other)
        assert [refusal.partition(" ")[0] for refusal in found.refusals] == ["write_layer", "the"]
        assert "cannot pass" in found.refusals[1]

    def test_a_list_of_runs_is_checked_before_the_first_of_them_starts(self, folder: str, tmp_path: Path) -> None:
        right = lc.CompareSettings(sender=folder, channels=("silent",), n_test=6)
        with pytest.raises(ValueError, match="there is no channel 'smoke'"):
            lc.run_all([right, lc.CompareSettings(sender=folder, channels=("smoke",), n_test=6)], out=tmp_path)
        assert files_in(tmp_path) == []

    def test_widths_are_compared_from_the_configurations(self, folder: str, wide: str) -> None:
        compared = lc.CompareSettings(sender=folder, receiver=wide, channels=("deltas",))
        assert "16 and 24 wide" in "".join(lc.preflight(compared).refusals)

    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_the_defaults_of_every_command_are_right(self, name: str, tiny: lc.Model) -> None:
        needed = {"train": {"channels": ("gated",)}, "cascade": {"data": "sample", "reply_tokens": 2, "n": (1,)}}.get(
            name, {}
        )
        given = {"receiver": tiny} if name == "crossmodal" else {"sender": tiny, "receiver": tiny}
        found = lc.preflight(EXPERIMENTS[name].settings(**needed), **given)
        assert found.refusals == () and found.work and found.seconds is not None


class TestContext:
    """A tiny model reads 40 tokens, and a word is one, after a BOS token."""

    @pytest.fixture
    def task(self) -> Task:
        """Of the eight items, two to tune on and two to test; all others are too long for any of it."""
        short = toy()
        used = {item.id for half in short.split(seed=0) for item in half.take(2, seed=0).items}
        items = [item if item.id in used else replace(item, sender="Alice " * 90) for item in short.items]
        return replace(short, items=tuple(items))

    SETTINGS: ClassVar[dict[str, Any]] = {"n_tune": 2, "n_test": 2}

    @pytest.mark.parametrize("kind", [lc.SweepSettings, lc.CompareSettings])
    def test_items_that_the_run_leaves_out_may_be_longer(self, kind: Any, folder: str, task: Task) -> None:
        assert lc.preflight(kind(sender=folder, **self.SETTINGS), task=task).refusals == ()
        (refusal,) = lc.preflight(kind(sender=folder, n_tune=2, n_test=3), task=task).refusals
        assert "a prompt has 91 tokens, and" in refusal and "reads 40 at most" in refusal

    @pytest.mark.parametrize("kind", [lc.SweepSettings, lc.CompareSettings])
    def test_the_skyline_and_the_reply_count(self, kind: Any, folder: str, task: Task) -> None:
        settings = kind(sender=folder, **self.SETTINGS)
        long = replace(task, items=tuple(replace(item, skyline="Alice " * 38) for item in task.items), reply_tokens=2)
        assert lc.preflight(settings, task=long).refusals == ()
        (refusal,) = lc.preflight(settings, task=replace(long, reply_tokens=3)).refusals
        assert "a prompt has 39 tokens and 3 more are written, and" in refusal
        without = lc.CompareSettings(sender=folder, channels=("silent",), **self.SETTINGS)
        assert lc.preflight(without, task=replace(long, reply_tokens=3)).refusals == ()


class TestSmallTasks:
    def test_a_default_number_of_items_is_all_of_them_where_there_are_fewer(self, folder: str) -> None:
        found = lc.preflight(lc.CompareSettings(sender=folder, task="biographies", channels=("silent",)))
        assert found.refusals == ()
        assert any("fewer than the 100 of the default: all of them are used" in note for note in found.notes)

    def test_a_number_that_was_given_is_not(self, folder: str) -> None:
        settings = lc.CompareSettings(sender=folder, task="biographies", channels=("silent",), n_test=101)
        assert "give at most" in lc.preflight(settings).refusals[0]

    @pytest.mark.parametrize(
        ("n", "together", "sentence"),
        [
            (
                8,
                "",
                "held_out is 0.1, which of the 4 items of the tuning half leaves none to train on or none to hold out",
            ),
            (8, "country", "held_out is 0.1, which of the 4 items"),
            (1, "", "the 1 items of task toy cannot be split into a tuning and a test half; give more items"),
            (8, "all", "the 8 items of 1 all of task toy cannot be split into a tuning and a test half"),
        ],
    )
    def test_too_few_items_are_refused_in_the_words_of_the_command(
        self, n: int, together: str, sentence: str, tiny: lc.Model
    ) -> None:
        items = [replace(item, tags={**item.tags, "all": "one"}) for item in toy().items[:n]]
        settings = lc.TrainSettings(channels=("gated",), **CELL)
        found = lc.preflight(settings, tiny, task=replace(toy(), items=tuple(items), together=together))
        (refusal,) = found.refusals
        assert refusal.startswith(sentence) and "tune_fraction" not in refusal
        if n == 8 and together != "all":
            assert lc.preflight(replace(settings, held_out=0.25), tiny, task=toy()).refusals == ()

    def test_items_that_are_held_out_are_no_part_of_a_batch(self, tiny: lc.Model) -> None:
        settings = lc.TrainSettings(channels=("gated",), **CELL, batch_size=4, held_out=0.25)
        (refusal,) = lc.preflight(settings, tiny, task=toy()).refusals
        assert refusal.startswith("batch_size is 4, and gated is trained on 3 examples")
        assert lc.preflight(replace(settings, held_out=0.0), tiny, task=toy()).refusals == ()


class TestNotices:
    LAST: ClassVar[dict[str, Any]] = {"read_layer": 1, "write_layer": 2}

    @pytest.mark.parametrize(
        "settings",
        [
            lc.SweepSettings(write_layers=(2,), n_tune=2, n_test=4),
            lc.SweepSettings(**LAST, n_test=4),
            lc.CompareSettings(**LAST, n_test=4, channels=("replace",)),
        ],
    )
    def test_a_write_after_the_last_block_alone_is_noted(self, settings: Any, tiny: lc.Model) -> None:
        (note,) = lc.preflight(settings, tiny, task=toy()).notes
        assert "after the last block of tiny alone" in note.replace(tiny.name, "tiny")
        earlier = {"write_layer": 1} if settings.write_layer else {"write_layers": (1, 2)}
        assert lc.preflight(replace(settings, **earlier), tiny, task=toy()).notes == ()

    @pytest.mark.parametrize("kind", [lc.SweepSettings, lc.CompareSettings])
    def test_a_prompt_that_names_its_answer_alone_is_noted(self, kind: Any, tiny: lc.Model) -> None:
        settings = kind(n_tune=2, n_test=4)
        named = [replace(item, receiver=f"{item.answers[0].lower()}, {item.receiver}") for item in toy().items]
        (note,) = lc.preflight(settings, tiny, task=replace(toy(), items=tuple(named))).notes
        assert note.startswith("the receiver's own prompt names the answer in 4 of 4 items of toy")
        every = [replace(item, receiver=f"{' '.join(toy().candidates)} {item.receiver}") for item in named]
        parts = [replace(item, receiver=f"{item.answers[0]}n {item.receiver}") for item in toy().items]
        for items in (every, parts):
            assert lc.preflight(settings, tiny, task=replace(toy(), items=tuple(items))).notes == ()

    def test_prompts_beyond_documents_are_noted_and_beyond_tokens_refused(self, tiny: lc.Model) -> None:
        settings = lc.DiagnoseSettings(documents=24, tokens=8, prompts=12)
        few, more, most = (lc.preflight(replace(settings, prompts=n), tiny) for n in (12, 13, 97))
        assert few.notes == () and "into 12 prompts of 12 held-out documents" in few.work[1]
        assert more.notes[0].startswith("13 prompts are of 12 held-out documents")
        assert most.refusals == ("prompts is 97, and the held-out half has 96 tokens to graft at; give at most 96",)

    def test_a_run_that_shows_its_progress_shows_the_notices(
        self, tiny: lc.Model, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = lc.CompareSettings(**self.LAST, n_test=4, channels=("replace",), controls=())
        for progress in (True, False):
            lc.run(settings, tiny, task=toy(), progress=progress)
            assert ("note: states are written after the last block" in capsys.readouterr().err) == progress


class TestMemoryAndDisk:
    SETTINGS: ClassVar[dict[str, Any]] = {"channels": ("silent",), "n_test": 6}

    def test_more_memory_than_is_free_is_refused_with_both_numbers(
        self, folder: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(common, "free_memory", lambda _: 2 * GB)
        shape = common.models.shape_of(folder)
        large = {**vars(shape), "n_parameters": 3 * GB}
        monkeypatch.setattr(common.models, "shape_of", lambda _: _demand.ModelShape(**large))
        settings = lc.CompareSettings(sender=folder, **self.SETTINGS)
        (refusal,) = lc.preflight(settings).refusals
        assert refusal.startswith("this run needs 12.0 GB of memory (weights 12.0 GB") and "2.0 GB are free" in refusal
        monkeypatch.setattr(common, "free_memory", lambda _: 13 * GB)
        assert lc.preflight(settings).refusals == ()

    def test_the_weights_of_one_model_count_once(self, folder: str, wide: str) -> None:
        one, two = (
            lc.preflight(lc.CompareSettings(sender=folder, receiver=other, **self.SETTINGS)) for other in ("", wide)
        )
        assert two.memory > one.memory > 0

    def test_captured_states_are_counted_in_proportion_to_the_documents(self, folder: str, tmp_path: Path) -> None:
        needed = []
        for n in (24, 48, 96):
            checks = common.Checks(lc.DiagnoseSettings(sender=folder, documents=n), jobs.Job())
            EXPERIMENTS["diagnose"].check(checks.settings, checks)
            needed.append(checks.on_host["captured states"])
            written = common.Checks(checks.settings, jobs.Job(out=tmp_path))
            EXPERIMENTS["diagnose"].check(checks.settings, written)
            assert "captured states" not in written.on_host and written.disk >= needed[-1]
        assert needed[2] == 2 * needed[1] == 4 * needed[0] > 0

    def test_more_than_fits_on_the_disk_is_refused(
        self, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(common, "free_disk", lambda _: 1 << 20)
        (refusal,) = lc.preflight(lc.CompareSettings(sender=folder, **self.SETTINGS), out=tmp_path).refusals
        assert "writes 14 MB" in refusal and "1.0 MB are free there" in refusal

    def test_this_machine_says_what_is_free(self, tmp_path: Path) -> None:
        memory, disk = free_memory("cpu"), free_disk(tmp_path / "not" / "yet")
        assert disk is not None and disk > 0
        assert memory is None or memory > 1 << 20

    @pytest.mark.parametrize("version", [1, 2])
    def test_a_container_has_less_than_its_machine(
        self, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = {
            1: {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "700",
                "memory.stat": "total_inactive_file 50",
            },
            2: {"memory.max": "1000", "memory.current": "700", "memory.stat": "inactive_file 50"},
        }[version]
        group = tmp_path / "memory" if version == 1 else tmp_path
        group.mkdir(exist_ok=True)
        for name, content in files.items():
            (group / name).write_text(content)
        monkeypatch.setattr("latentcomm.experiments.capacity.GROUPS", tmp_path)
        assert free_memory("cpu") == 350


class TestMemoryOfADevice:
    """A GPU's own memory is compared with what passes need, the machine's with what is computed from states."""

    @pytest.fixture(autouse=True)
    def gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(common.models, "resolve_device", lambda name: name)
        monkeypatch.setattr(common, "_rate", lambda *_: 1e9)
        monkeypatch.setattr(_demand, "TOKENIZER", 0)  # that of a tiny model is larger than its weights

    @staticmethod
    def free(monkeypatch: pytest.MonkeyPatch, **free: int) -> None:
        monkeypatch.setattr(common, "free_memory", lambda device: free[device])

    def test_captured_states_need_the_host_and_weights_the_gpu(
        self, folder: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = lc.DiagnoseSettings(sender=folder, device="cuda")
        self.free(monkeypatch, cuda=GB, cpu=GB)
        found = lc.preflight(settings)
        assert found.refusals == () and found.free_memory == GB == found.free_host_memory
        states = 4 * 4 * 3 * 16 * 96 * 40  # four times 4 bytes, 3 layers of 16, at most 96 documents of 40 tokens
        references = 8 * 3 * 16 * (3 * 16 + 96 * 40 / 2) + 4 * 2 * 16 * 16  # of 3 layers, and maps of 2
        assert 0.2 * states < found.host_memory <= states + references
        assert [line.partition(":")[0] for line in found.lines()][2:4] == ["memory", "host memory"]
        self.free(monkeypatch, cuda=GB, cpu=found.host_memory - 1)
        assert lc.preflight(settings).refusals[0].startswith("this run needs 2.8 MB of host memory (captured")
        self.free(monkeypatch, cuda=found.memory - 1, cpu=GB)
        (refusal,) = lc.preflight(settings).refusals
        assert "of memory on cuda (" in refusal and "captured" not in refusal and "weights" in refusal

    def test_weights_pass_through_the_host(self, folder: str, wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free(monkeypatch, cuda=GB, cpu=GB)
        settings = lc.CompareSettings(sender=folder, receiver=wide, channels=("silent",), n_test=6, device="cuda")
        larger = common.models.shape_of(wide).n_parameters
        assert larger is not None and lc.preflight(settings).host_memory == 4 * larger

    def test_a_device_in_the_memory_of_the_machine_needs_both_there(
        self, folder: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.free(monkeypatch, cpu=GB, cuda=GB)
        settings = lc.DiagnoseSettings(sender=folder)
        one, two = lc.preflight(settings), lc.preflight(replace(settings, device="cuda"))
        assert one.host_memory == 0 and one.free_host_memory is None
        assert one.memory == two.memory + two.host_memory


class TestMemoryOfATraining:
    def test_models_are_in_float32_whatever_the_arithmetic(self, folder: str) -> None:
        settings = lc.TrainSettings(sender=folder, channels=("gated",), **CELL)
        n = common.models.shape_of(folder).n_parameters
        assert n is not None
        checked = {}
        for dtype in ("float32", "bfloat16"):
            checks = common.Checks(replace(settings, dtype=dtype), jobs.Job())
            EXPERIMENTS["train"].check(checks.settings, checks)
            checked[dtype] = checks
            assert checks.on_device["weights"] == 4 * n
            assert checks.on_host["trained weights, gradients and moments"] == 4 * 4 * 16 * 32
        assert checked["bfloat16"].on_device["weights in bfloat16"] == 2 * n
        assert "weights in bfloat16" not in checked["float32"].on_device

    def test_the_numbers_that_a_channel_trains(self, tiny: lc.Model, other: lc.Model) -> None:
        sides = [_demand.Side.in_memory(model).shape for model in (tiny, other)]
        made = {
            "interlat": new_adapter(tiny, other, n_heads=1).weights,
            "calm": new_bridge(tiny, other, every=2, n_heads=1).weights,
        }
        for name, weights in made.items():
            matrices = sum(weight.numel() for weight in weights.values() if weight.ndim == 2)
            assert _n_trained(name, *sides, every=2) == matrices > 0

    def test_autocast_holds_a_copy_of_every_frozen_weight_for_backward(self) -> None:
        tiny, held = build("llama", dtype=torch.float32), {}
        tiny.hooked.requires_grad_(False)
        shapes = {weight.shape for weight in tiny.hooked.parameters() if weight.ndim == 2}
        shapes |= {shape[::-1] for shape in shapes}

        def note(saved: torch.Tensor) -> torch.Tensor:
            if saved.dtype == torch.bfloat16 and saved.shape in shapes:
                held[saved.data_ptr()] = saved.numel()
            return saved

        added = torch.zeros(32, requires_grad=True)
        hooks = [("blocks.0.hook_resid_post", lambda value, hook: value + added)]
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved),
            torch.autocast("cpu", torch.bfloat16),
        ):
            logits = tiny.forward(torch.arange(6)[None], hooks=hooks, with_grad=True)
        above = [*tiny.hooked.original_model.model.layers[1:].parameters(), tiny.hooked.original_model.lm_head.weight]
        assert logits.requires_grad
        assert sum(held.values()) == sum(weight.numel() for weight in above if weight.ndim == 2)


class TestDryRun:
    def test_it_says_what_would_run_and_writes_nothing(self, folder: str, tmp_path: Path) -> None:
        options = ("--channels", "silent,replace", "--n-tune", "4", "--n-test", "6", "--out", tmp_path / "out")
        found = run("compare", "--sender", folder, *options, "--dry-run")
        assert found.exit_code == 0, found.output
        for words in ("would run: a sweep for the cell on 4 items", "silent, replace on 6 items", "memory: about",
                      "disk: about", "free", "time: about",
                      "operations: about", "weights read: about"):  # fmt: skip
            assert words in found.stdout
        assert not [line for line in found.stdout.splitlines() if line.startswith("--")]  # a report names no options
        assert files_in(tmp_path) == []

    def test_it_ends_with_1_and_every_refusal_in_flags(self, folder: str, tmp_path: Path) -> None:
        found = run(
            "sweep", "--sender", folder, "--n-tune", "500", "--read-layers", "7", "--dry-run", "--out", tmp_path
        )
        assert found.exit_code == 1
        assert "1. --read-layers: layer 7 is outside" in found.stderr and "2. --n-tune is 500" in found.stderr

    def test_more_work_takes_longer(self, tiny: lc.Model) -> None:
        few, many = (lc.preflight(lc.SweepSettings(n_test=n), tiny).seconds for n in (20, 160))
        assert few is not None and many is not None and many > few > 0

    def test_a_pass_of_few_rows_costs_more_than_its_rows(self, tiny: lc.Model) -> None:
        checks = common.Checks(lc.CompareSettings(), jobs.Job())
        side, counted = _demand.Side.in_memory(tiny), []
        for at_once in (1, 8, 32):
            before = checks.flops + checks.pass_flops
            checks.runs(side, 32, n_new=1, at_once=at_once)
            counted.append(checks.flops + checks.pass_flops - before)
        row = (counted[2] - counted[1]) / (1 / 32 - 1 / 8) / 32 / _demand.PASS_ROWS  # 32 and 4 passes less 1
        assert counted[0] == pytest.approx(32 * row * (1 + _demand.PASS_ROWS), rel=0.01)

    def test_a_diagnosis_takes_longer_with_more_documents_layers_and_prompts(self, tiny: lc.Model) -> None:
        few = lc.DiagnoseSettings(documents=24, tokens=8, prompts=2, layers=1)
        seconds = [lc.preflight(few, tiny).seconds or 0]
        for more in ({"documents": 48}, {"layers": 2}, {"prompts": 12}):
            seconds.append(lc.preflight(replace(few, **more), tiny).seconds or 0)
        assert all(each > seconds[0] > 0 for each in seconds[1:])

    def test_the_time_is_a_range(self) -> None:
        assert Preflight(seconds=50.0).lines() == ["time: about 50 s to 2 min, and the time to load the models"]

    def test_the_refusals_of_a_report_are_numbered_where_there_are_several(self) -> None:
        with pytest.raises(ValueError, match=r"^one$"):
            Preflight(refusals=("one",)).check()
        with pytest.raises(ValueError, match=r"2 things keep this from running:\n1\. one\n2\. two"):
            Preflight(refusals=("one", "two")).check()
        Preflight().check()


class TestTrainedChannels:
    def test_a_file_that_is_none_is_refused_before_a_weight_is_read(self, folder: str, tmp_path: Path) -> None:
        settings = lc.CompareSettings(sender=folder, channels=("silent",), n_test=6, weights=str(tmp_path))
        file = tmp_path / "gated.safetensors"
        lc.alignment.fit_procrustes(torch.eye(9, 4), torch.eye(9, 4)).save(file)
        (refusal,) = lc.preflight(settings).refusals
        assert "gated.safetensors holds" in refusal
        file.write_bytes(file.read_bytes()[:-9])
        (refusal,) = lc.preflight(settings).refusals
        assert "gated.safetensors cannot be read" in refusal

    def test_one_that_the_folder_lacks_is_refused_too(self, folder: str, tmp_path: Path) -> None:
        save_weights(tmp_path / "gated.safetensors", {"weight": torch.eye(2)}, kind=KIND, configuration={})
        settings = lc.CompareSettings(sender=folder, channels=("silent", "calm"), n_test=6, weights=str(tmp_path))
        (refusal,) = lc.preflight(settings).refusals
        assert "the channel 'calm' has parts that must be trained first" in refusal


class TestEmptyLists:
    @pytest.mark.parametrize("option", ["--channels", "--subjects"])
    def test_an_empty_list_is_not_taken_for_no_option(self, option: str, folder: str, tmp_path: Path) -> None:
        found = run("compare", "--sender", folder, option, "", "--out", tmp_path)
        assert found.exit_code == 1 and last_line(found.stderr).startswith(f"latentcomm: {option} names nothing")

    def test_nor_is_one_in_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text("channels = []\n")
        found = run("compare", "--config", tmp_path / "run.toml", "--out", tmp_path / "out")
        assert found.exit_code == 1 and "channels names nothing" in found.stderr

    def test_a_plan_shorter_than_its_latents_is_refused(self) -> None:
        with pytest.raises(ValueError, match="plan_tokens is 4, and n_steps compresses the plan to 8"):
            lc.TrainSettings(channels=("interlat",), plan_tokens=4, n_steps=8)


def test_a_negative_layer_does_not_mean_that_one_is_chosen() -> None:
    for read, write in itertools.permutations((-1, 1)):
        with pytest.raises(ValueError, match="layer is -1; layers count from 0"):
            lc.LearningPlan(read_layer=read, write_layer=write)
