"""Chat formats: what a chat holds besides the text, and the text as its last turn by the model's own chat template."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from latentcomm._core.files import first_line
from latentcomm._core.progress import say
from latentcomm.models.prompts import Template

PINNED_DATE = "2024-07-26"
"""What templates that write today's date get instead, so that two days give the same ids: the date that Llama 3.1 and
3.2 write where there is no clock."""
ROLES = ("user", "assistant")
"""Of the turns of a history."""
_JOINT = "\n\n"
"""Between a system prompt and the user's text where a template has no turn for the first, as Gemma and Mistral join."""
_DIRECTIVES = "aAbBcdfGHIjmMpSuUVwWxXyYzZ"
"""What a template may ask of the clock, as `strftime` names it."""
_PROBE = "\N{REPLACEMENT CHARACTER}system\N{REPLACEMENT CHARACTER}"
_SAID: set[str] = set()


@dataclass(frozen=True)
class ChatFormat:
    """What a chat holds besides the text of its last turn, for sender and receiver alike.

    In place of the template "chat", whose default it is, wherever prompts take one: `encode`, or a task's `template`.

    Attributes:
        system: the system prompt; None leaves it to the model's template (Qwen2.5 and SmolLM2 insert one of their own,
            Qwen3 and Llama none). A template that has no turn for it (Gemma, Mistral) gets it before the user's text.
        history: earlier turns, each ("user" or "assistant", text), oldest first.
        enable_thinking: of templates that know it (Qwen3): whether the model may reason before it answers; None leaves
            it to the template, which usually lets it.
        date: of templates that write one (Llama 3), as 2024-07-26; None leaves it to the template, but where that reads
            the clock it is `PINNED_DATE`, so that two days give the same prompts.

    Raises:
        ValueError: a turn of another role or without text, or a date that is none.

    >>> ChatFormat(system="Be brief.", history=(("user", "Hi"), ("assistant", "Hello.")))
    ChatFormat(system='Be brief.', history=(('user', 'Hi'), ('assistant', 'Hello.')), enable_thinking=None, date=None)
    >>> print(ChatFormat(enable_thinking=False))
    chat (enable_thinking=False)
    """

    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()
    enable_thinking: bool | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        for number, (role, text) in enumerate(self.history):
            if role not in ROLES:
                raise ValueError(
                    f"history has the role {role!r} in turn {number}; give user or assistant, and a system prompt as "
                    "`system`"
                )
            if not text.strip():
                raise ValueError(f"history has an empty text in turn {number}; leave the turn out")
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError:
                raise ValueError(
                    f"date is {self.date!r}; give a day as year-month-day, such as {PINNED_DATE}"
                ) from None

    def __str__(self) -> str:
        given = [(each.name, getattr(self, each.name)) for each in fields(self)]
        shown = ", ".join(f"{name}={value!r}" for name, value in given if value not in (None, ()))
        return f"chat ({shown})" if shown else "chat"


AnyTemplate = Template | ChatFormat
"""How a text becomes a prompt: "raw", "chat", or a chat of this format."""


def as_turn(name: str, tokenizer: Any, text: str, template: AnyTemplate = "chat") -> str:
    """The text as the user's turn of a chat with the model of this name, the assistant's turn opened.

    A system prompt is a turn of its own where the template has one; else it is joined to the user's first turn, which
    is reported once.

    Raises:
        ValueError: no chat template, an `enable_thinking` or a date that it does not know, or a chat that it refuses.
    """
    chat = _Chat(name, tokenizer, template if isinstance(template, ChatFormat) else ChatFormat())
    if (note := chat.note_on_system()) is not None and note not in _SAID:
        _SAID.add(note)
        say(f"note: {note}")
    return chat.rendered(chat.turns(text))


def check_template(name: str, tokenizer: Any, template: AnyTemplate) -> list[str]:
    """What the chat template of the model of this name does otherwise than one might think, a sentence each.

    What is returned is not reported again by `as_turn`.

    Raises:
        ValueError: as `as_turn`.
    """
    if template == "raw":
        return []
    chat = _Chat(name, tokenizer, template if isinstance(template, ChatFormat) else ChatFormat())
    notes = [note for note in (chat.note_on_system(),) if note is not None]
    _SAID.update(notes)
    as_turn(name, tokenizer, "text", template)
    if chat.reads_the_clock and chat.format.date is None:
        notes.append(
            f"the chat template of {name} writes today's date: it writes {PINNED_DATE}; give `date` for another"
        )
    return notes


class _Chat:
    """A format with the chat template of one tokenizer."""

    def __init__(self, name: str, tokenizer: Any, chat: ChatFormat) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"the tokenizer of {name} has no chat template; use template='raw'")
        self.name, self.tokenizer, self.format = name, tokenizer, chat
        self.source = tokenizer.get_chat_template()
        self.reads_the_clock = "strftime_now" in self.source
        self.options: dict[str, Any] = {}
        if chat.enable_thinking is not None:
            if "enable_thinking" not in self.source:
                raise ValueError(
                    f"enable_thinking is {chat.enable_thinking}, and the chat template of {name} does not know it; "
                    "leave it out"
                )
            self.options["enable_thinking"] = chat.enable_thinking
        day = datetime.date.fromisoformat(chat.date or PINNED_DATE)
        if self.reads_the_clock:
            self.options["chat_template"] = _stopped_clock(day) + self.source
        elif chat.date is not None:
            if "date_string" not in self.source:
                raise ValueError(f"date is {chat.date}, and the chat template of {name} writes none; leave it out")
            self.options["date_string"] = day.strftime("%d %b %Y")

    def rendered(self, turns: Sequence[tuple[str, str]]) -> str:
        """These turns as the template writes them."""
        from jinja2 import TemplateError

        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.options
            )
        except TemplateError as error:
            raise ValueError(f"the chat template of {self.name} refuses this chat: {first_line(error)}") from error

    def turns(self, text: str) -> list[tuple[str, str]]:
        """All turns, the text as the last."""
        turns, system = [*self.format.history, ("user", text)], self.format.system
        if system is None:
            return turns
        if self._place_of_system is not None:
            return [("system", system), *turns]
        if not system.strip():
            return turns
        first = next(number for number, (role, _) in enumerate(turns) if role == "user")
        turns[first] = ("user", f"{system}{_JOINT}{turns[first][1]}")
        return turns

    def note_on_system(self) -> str | None:
        """What becomes of a system prompt that has no turn of its own."""
        if not (self.format.system or "").strip() or self._place_of_system == "turn":
            return None
        return f"the chat template of {self.name} has no system turn: the system prompt is written into the user's turn"

    @cached_property
    def _place_of_system(self) -> str | None:
        """Where the template writes a system prompt: in a "turn" of its own, in the "user" turn, or (None) nowhere."""
        try:
            found = self.rendered([("system", _PROBE), ("user", "text")])
        except ValueError:
            return None
        if _PROBE not in found:
            return None
        return "user" if found == self.rendered([("user", f"{_PROBE}{_JOINT}text")]) else "turn"


def _stopped_clock(day: datetime.date) -> str:
    """The beginning of a template that then reads this day from its clock, in whatever form it asks for."""
    midnight = datetime.datetime.combine(day, datetime.time())
    written = {f"%{each}": midnight.strftime(f"%{each}") for each in _DIRECTIVES}
    written |= {f"%-{each}": written[f"%{each}"].lstrip("0") or "0" for each in "dHIjmMSy"} | {"%%": "%"}
    steps = "".join(f" | replace({directive!r}, {value!r})" for directive, value in written.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{steps} }}}}{{%- endmacro %}}\n"  # the line end is trimmed
