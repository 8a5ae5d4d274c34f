"""Chats: the ids are those that the tokenizer itself gives, whatever the family of its template, on any day."""

import datetime
from typing import Any

import pytest
import subwords
import torch
from tiny import tokenizer, transformers_model
from transformers.utils import chat_template_utils

import latentcomm as lc
from latentcomm.channels import state_deltas
from latentcomm.channels.soft_decoding import with_slot
from latentcomm.channels.soft_slots import with_gap
from latentcomm.models import Model, around_gap, encode, scaffold, wrap_model
from latentcomm.models.chat import PINNED_DATE, ChatFormat, as_turn, check_template
from latentcomm.tasks.catalogue import make_task

MARKS = ("<|im_start|>", "<|im_end|>", "<|h|>", "<|/h|>", "<|eot|>", "<turn>", "</turn>", "[INST]", "[/INST]")
CHATML = """
{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}
{%- for each in messages %}{{ '<|im_start|>' + each['role'] + '\n' + each['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
THINKING = """
{%- for each in messages %}
    {%- set text = each.content %}
    {%- if '</think>' in text %}{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}
    {{- '<|im_start|>' + each.role + '\n' + text + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""
DATED = """{{- bos_token }}
{%- if date_string is not defined %}
    {%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|h|>system<|/h|>\n\nToday Date: ' + date_string + '\n\n' + system + '<|eot|>' }}
{%- for each in messages %}{{ '<|h|>' + each.role + '<|/h|>\n\n' + each.content | trim + '<|eot|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|h|>assistant<|/h|>\n\n' }}{% endif %}"""
STRICT = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}
{%- for each in messages %}
    {%- if (each.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns must alternate') }}{% endif %}
    {{- '<turn>' + ('model' if each.role == 'assistant' else each.role) + '\n' + each.content | trim + '</turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"""
JOINING = STRICT.replace(
    "{{ raise_exception('No system role') }}{% endif %}",
    r"{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set first = '' %}{% endif %}",
).replace("each.content | trim", "(first if loop.first else '') + each.content | trim")
INST = """{{ bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{%- for each in messages %}
    {%- if each.role == 'user' %}{{ '[INST] ' + (system if loop.last else '') + each.content + '[/INST]' }}
    {%- else %}{{ ' ' + each.content + eos_token }}{% endif %}
{%- endfor %}"""
FAMILIES = {"chatml": CHATML, "thinking": THINKING, "dated": DATED, "strict": STRICT, "joining": JOINING, "inst": INST}
"""Templates as Qwen2.5, Qwen3, Llama 3.2, Gemma 2, Gemma 3 and Mistral have them."""
HISTORY = (("user", "Is it at Petra?"), ("assistant", "The note says so."))
TEXT = "Alice is in the end"


def words(template: str | None) -> Any:
    """A tokenizer of subwords that adds a BOS token to raw text, with a chat template."""
    from tokenizers import processors

    found = subwords.byte_level()
    found.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": list(MARKS)})
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", found.bos_token_id)]
    )
    found.chat_template = template
    return found


def model(template: str | None, *, name: str = "tiny") -> Model:
    found = wrap_model(transformers_model("llama", n_vocabulary=400), words(template), name=name)
    found.hooked.cfg.n_ctx = 4096
    return found


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    def to(year: int, month: int, day: int) -> None:
        class Stopped(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:
                return datetime.datetime(year, month, day, tzinfo=tz)

        monkeypatch.setattr(chat_template_utils, "datetime", Stopped)

    return to


def own_ids(tokenizer: Any, turns: list[tuple[str, str]], **options: Any) -> list[int]:
    """The ids of a chat by the tokenizer itself."""
    messages = [{"role": role, "content": text} for role, text in turns]
    return tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, **options
    )["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("history", [(), HISTORY])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_ids_are_those_of_the_tokenizer(family: str, history: tuple, system: str | None, set_clock: Any) -> None:
    tiny = model(FAMILIES[family])
    turns = [*history, ("user", TEXT)]
    if system is not None and family == "strict":
        turns[0] = ("user", f"{system}\n\n{turns[0][1]}")
    elif system is not None:
        turns = [("system", system), *turns]
    set_clock(2024, 7, 26)
    found = encode(tiny, [TEXT], template=ChatFormat(system=system, history=history)).ids(0).tolist()
    assert found == own_ids(tiny.tokenizer, turns)
    assert found.count(tiny.tokenizer.bos_token_id) == (0 if "im_start" in FAMILIES[family] else 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_options_a_chat_is_the_plain_one(family: str, set_clock: Any) -> None:
    tiny = model(FAMILIES[family])
    set_clock(2024, 7, 26)
    expected = own_ids(tiny.tokenizer, [("user", TEXT)])
    assert encode(tiny, [TEXT], template="chat").ids(0).tolist() == expected
    assert encode(tiny, [TEXT], template=ChatFormat()).ids(0).tolist() == expected


@pytest.mark.parametrize("thinking", [None, True, False])
def test_thinking_is_what_the_template_makes_of_it(thinking: bool | None) -> None:
    tiny = model(THINKING)
    history = (("user", "Hi"), ("assistant", "<think>\nsecret\n</think>\n\nHello."))
    found = encode(tiny, [TEXT], template=ChatFormat(history=history, enable_thinking=thinking)).ids(0).tolist()
    given = {} if thinking is None else {"enable_thinking": thinking}
    assert found == own_ids(tiny.tokenizer, [*history, ("user", TEXT)], **given)
    text = tiny.tokenizer.decode(found)
    assert "secret" not in text
    assert text.endswith("</think>\n\n") == (thinking is False)


def test_two_days_give_the_same_ids_and_a_date_its_own(set_clock: Any) -> None:
    tiny = model(DATED)
    rows = []
    for day in (1, 2):
        set_clock(2031, 5, day)
        rows.append(encode(tiny, [TEXT], template="chat").ids(0).tolist())
    unpinned = own_ids(tiny.tokenizer, [("user", TEXT)])
    assert rows[0] == rows[1] != unpinned
    assert rows[0] == own_ids(tiny.tokenizer, [("user", TEXT)], date_string="26 Jul 2024")
    found = encode(tiny, [TEXT], template=ChatFormat(date="2031-05-02")).ids(0).tolist()
    assert found == unpinned


@pytest.mark.parametrize("asked", ["%Y-%m-%d", "%d %B %Y", "%A, %-d %b %y", "%B %d, %Y at %H:%M", "%j %p %%"])
def test_a_clock_is_pinned_whatever_it_is_asked(asked: str, set_clock: Any) -> None:
    template = "\n  {% if true %}\n{{ strftime_now('" + asked + "') }}{% endif %}" + CHATML
    found = words(template)
    set_clock(2031, 5, 2)
    day = as_turn("tiny", found, TEXT, ChatFormat(date="2031-05-02"))
    messages = [{"role": "user", "content": TEXT}]
    assert day == found.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert day != as_turn("tiny", found, TEXT)


def test_a_date_is_written_by_a_template_without_a_clock() -> None:
    found = words(DATED.replace("strftime_now is defined", "false").replace("strftime_now('%d %b %Y')", "''"))
    assert "Today Date: 26 Jul 2024" in as_turn("tiny", found, TEXT)
    assert "Today Date: 02 May 2031" in as_turn("tiny", found, TEXT, ChatFormat(date="2031-05-02"))


def test_a_system_prompt_without_a_turn_is_joined_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = "the chat template of {} has no system turn: the system prompt is written into the user's turn"
    for family in ("strict", "joining", "inst"):
        tiny = model(FAMILIES[family], name=f"joined-{family}")
        encode(tiny, [TEXT, TEXT], template=ChatFormat(system="Be brief."))
        assert capsys.readouterr().err == f"note: {said.format(tiny.name)}\n"
    assert check_template("new", words(STRICT), ChatFormat(system="Be brief.")) == [said.format("new")]
    for family in ("chatml", "thinking", "dated"):
        encode(model(FAMILIES[family]), [TEXT], template=ChatFormat(system="Be brief.", date=None))
    encode(model(STRICT), [TEXT], template=ChatFormat(system=" "))
    assert capsys.readouterr().err == ""


def test_a_template_that_drops_a_system_prompt_gets_it_joined() -> None:
    dropping = words(CHATML.replace("for each in messages", "for each in messages if each.role != 'system'"))
    assert "user\nBe brief.\n\nAlice" in as_turn("dropping", dropping, TEXT, ChatFormat(system="Be brief."))


def test_the_pinned_date_is_noted_where_there_is_a_clock() -> None:
    assert check_template("tiny", words(DATED), "chat") == [
        f"the chat template of tiny writes today's date: it writes {PINNED_DATE}; give `date` for another"
    ]
    assert check_template("tiny", words(DATED), ChatFormat(date="2031-05-02")) == []
    assert check_template("tiny", words(CHATML), "chat") == check_template("tiny", words(None), "raw") == []


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (CHATML, ChatFormat(enable_thinking=False), "enable_thinking is False, and the chat template of tiny does not"),
        (CHATML, ChatFormat(date="2031-05-02"), "date is 2031-05-02, and the chat template of tiny writes none; leave"),
        (STRICT, ChatFormat(history=(("user", "Hi"),)), "the chat template of tiny refuses this chat: Turns must"),
        (None, ChatFormat(system="Be brief."), "the tokenizer of tiny has no chat template; use template='raw'"),
    ],
)
def test_what_a_template_does_not_know_is_refused(template: str, chat: ChatFormat, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        encode(model(template), [TEXT], template=chat)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        check_template("tiny", words(template), chat)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"history": (("system", "Be brief."),)}, "history has the role 'system' in turn 0; give user or assistant"),
        ({"history": (*HISTORY, ("user", " "))}, "history has an empty text in turn 2; leave the turn out"),
        ({"date": "26 Jul 2024"}, "date is '26 Jul 2024'; give a day as year-month-day, such as 2024-07-26"),
    ],
)
def test_a_format_that_is_none_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatFormat(**given)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_gap_is_in_the_last_user_turn(family: str, system: str | None) -> None:
    tiny, chat = model(FAMILIES[family]), ChatFormat(system=system, history=HISTORY)
    head, tail = around_gap(tiny, "Alice", " is in", template=chat)
    whole = tiny.tokenizer.decode(encode(tiny, ["Alice is in"], template=chat).ids(0))
    assert tiny.tokenizer.decode(head) + tiny.tokenizer.decode(tail) == whole
    assert tiny.tokenizer.decode(head).endswith("Alice")
    assert "The note says so." in tiny.tokenizer.decode(head)
    ((before, after),) = with_gap(tiny, [TEXT], template=chat)
    assert [*before, *after] == encode(tiny, [TEXT], template=chat).ids(0).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_what_channels_put_into_a_chat_is_in_the_last_user_turn(family: str, system: str | None) -> None:
    tiny, chat = model(FAMILIES[family]), ChatFormat(system=system, history=HISTORY)
    found = with_slot(tiny, [TEXT], [torch.ones(2, tiny.d_model, dtype=torch.float64)], template=chat, between=". ")
    assert found.soft is not None
    ids, (first, last) = found.prompts.ids(0).tolist(), found.soft.positions[0].tolist()
    head, tail = tiny.tokenizer.decode(ids[:first]), tiny.tokenizer.decode(ids[last + 1 :])
    assert "The note says so." in head and "Alice" not in head and last == first + 1
    assert head + tail == tiny.tokenizer.decode(encode(tiny, [f". {TEXT}"], template=chat).ids(0))
    sent = tiny.tokenizer("The note", add_special_tokens=False).input_ids
    spliced, start = state_deltas._spliced(tiny, "The note", sent, ". ", TEXT, chat)
    assert spliced[start : start + len(sent)] == sent
    assert tiny.tokenizer.decode(spliced[:start]) == head
    whole = encode(tiny, [f"The note. {TEXT}"], template=chat).ids(0)
    assert tiny.tokenizer.decode(spliced) == tiny.tokenizer.decode(whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scaffold_is_the_chat_without_a_content(family: str, set_clock: Any) -> None:
    tiny, chat = model(FAMILIES[family]), ChatFormat(history=HISTORY)
    set_clock(2024, 7, 26)
    assert scaffold(tiny).ids(0).tolist() == own_ids(tiny.tokenizer, [("user", "")])
    assert scaffold(tiny, template=chat).ids(0).tolist() == own_ids(tiny.tokenizer, [*HISTORY, ("user", "")])
    assert scaffold(tiny, text=TEXT).ids(0).tolist() == encode(tiny, [TEXT], template="chat").ids(0).tolist()


def test_a_scaffold_needs_a_chat_template() -> None:
    with pytest.raises(ValueError, match="the tokenizer of tiny has no chat template, so its prompts have no scaffold"):
        scaffold(model(None))
    with pytest.raises(ValueError, match="template is 'raw', and a raw prompt has no scaffold around its text"):
        scaffold(model(CHATML), template="raw")
    small = wrap_model(transformers_model("llama"), tokenizer(), name="small")
    with pytest.raises(ValueError, match="the scaffold has 63 tokens and small reads 40 at most"):
        scaffold(small, text=" of" * 60)


def test_a_task_of_a_chat_format_is_that_of_a_chat() -> None:
    chat = ChatFormat(system="Be brief.")
    task, plain = make_task("countries", template=chat), make_task("countries", template="chat")
    assert task.template == chat
    assert (task.items, task.candidates, task.settings) == (plain.items, plain.candidates, plain.settings)
    assert make_task("countries", template=ChatFormat()) == plain
    sender = model(CHATML)
    found = lc.channels.Text(max_tokens=2, allow_empty=True).send(sender, task.take(2, seed=0))
    assert found.texts is not None


@pytest.mark.real_weights
def test_the_built_in_tokenizer_gives_its_own_ids() -> None:
    found = lc.load_model("smollm2-135m-instruct")
    for system in (None, "Be brief."):
        turns = [*HISTORY, ("user", TEXT)] if system is None else [("system", system), *HISTORY, ("user", TEXT)]
        ids = encode(found, [TEXT], template=ChatFormat(system=system, history=HISTORY)).ids(0).tolist()
        assert ids == own_ids(found.tokenizer, turns)
    plain = encode(found, [TEXT], template="chat").ids(0).tolist()
    assert plain == own_ids(found.tokenizer, [("user", TEXT)])
    assert scaffold(found).ids(0).tolist() == own_ids(found.tokenizer, [("user", "")])
