"""What the judges read out of a reply: each case read by hand, and beside each rule the reply that must not pass."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import COUNTRIES, model

from latentcomm._core.files import digest
from latentcomm.hooks.decode import next_token_logits
from latentcomm.models import encode
from latentcomm.tasks import Begins, Contains, Judge, JudgedBy, Letter, Mentions, Number, Verdict
from latentcomm.tasks.numbers import answered_number, before_the_next_question, written

NUMBERS = {
    # behind the mark of the data set
    "#### 18": "18",
    "####18": "18",
    "#### $1,000.00": "1000",
    "#### 18 eggs": "18",
    "#### -3.50": "-3.5",
    "#### **18**": "18",
    "#### The answer is 18": "18",
    "#### \\boxed{18}": "18",
    "9 * 2 = 20\n#### 18": "18",
    "#### 18\n#### 20": "18",  # the first mark ends the answer; what follows is another problem's
    "#### 18\n\nJohn has 5 apples.\n#### 7": "18",
    "#### Step 1: add\n#### Step 2: halve\nThe answer is 18.": "18",  # headings
    "#### 1. Eggs\n3 * 4\nSo the answer is 12.": "12",
    # behind words
    "The answer is 5 apples, which cost 3 dollars.": "5",
    "The answer is that she makes 18 dollars.": "18",
    "The answer is 16 - 7 = 9.": "9",
    "The answer is therefore about 18 (3 tries).": "18",
    "The answer is 18. I checked 3 times.": "18",
    "The answer is 5. Wait, the answer is 7.": "7",
    "**Answer:** 18": "18",
    "Final answer:\n\n**18**": "18",
    "The answer is not 5 but 7": "7",
    "It would be 5, so the answer would be $-2$": "-2",
    # in a box
    "\\boxed{18}, of 3": "18",
    "\\boxed{\\frac{3}{4}}": "0.75",
    "The answer is $\\boxed{1{,}234}$.": "1234",
    "\\boxed{\\text{18 eggs}}": "18",
    "\\boxed{x}, that is 18": "18",
    # the last one
    "3 and then 4": "4",
    "1,2,3": "3",
    "72 clips, altogether.": "72",
    "It costs $29.00.": "29",
    "10 * 2 = 20 dollars": "20",
    "4 + 5 = 9 points in the 40 minutes": "9",
    "She has 5.\n\nQuestion: How many are 3 and 4?\nAnswer: 7": "5",
    "\nQuestion: How many?\nAnswer: 7": "7",  # nothing stands before it
    "<<16-3=13>>13 eggs": "13",
    # how numbers are written
    "1,000.00": "1000",
    "12,345.67": "12345.67",
    "1\N{NARROW NO-BREAK SPACE}000": "1000",
    "$400 000 - $282 000 = $118 000": "118000",
    "$1 000.50": "1000.5",
    "1,000,000 people": "1000000",
    "-5": "-5",
    "\N{MINUS SIGN}5": "-5",
    "x = -3": "-3",
    "-$5": "-5",
    "$-5": "-5",
    "10-3": "3",
    "5\N{EN DASH}7": "7",
    "3/4 cup": "0.75",
    "1 1/2": "1.5",
    "1\\frac{1}{2}": "1.5",
    "1/3": "1/3",
    ".5": "0.5",
    "18%": "18",
    "18\\%": "18",
    "€5": "5",
    "18km": "18",
    "the 2nd": "2",
    "2 million dollars": "2000000",
    "1e3": "1000",
    "1.2 x 10^6": "1200000",
    "1.2 \\times 10^{6}": "1200000",
    "10^6": "1000000",
    "COVID-19 infected 7": "7",
    "18 . ": "18",
}
NO_NUMBERS = (
    "",
    " \n",
    "-",
    "####",
    "I do not know.",
    "eighteen",
    "H2O",
    "The answer is 3 + 4",  # left to the reader
    "#### 3 + 4",
    "The answer is 5-7.",
    "at 3:30",
    "on 12/25/2020",
    "version 1.2.3",
    "5/0",
    "10^99999999",
    "9" * 5000,
    "9^" + "9" * 5000,
)


class TestNumber:
    @pytest.mark.parametrize(("reply", "number"), NUMBERS.items())
    def test_it_reads_the_number_that_a_person_would(self, reply: str, number: str) -> None:
        verdict = Number()(reply, (number,))
        assert verdict == Verdict(is_right=True, is_parsed=True, found=number)

    @pytest.mark.parametrize(("reply", "number"), NUMBERS.items())
    def test_another_number_is_wrong_but_parsed(self, reply: str, number: str) -> None:
        verdict = Number()(reply, ("123456789",))
        assert (verdict.is_right, verdict.is_parsed, verdict.found) == (False, True, number)

    @pytest.mark.parametrize("reply", NO_NUMBERS)
    def test_a_reply_without_one_number_is_not_parsed_rather_than_wrong(self, reply: str) -> None:
        assert Number()(reply, ("18",)) == Verdict(is_right=False, is_parsed=False, found="")

    def test_numbers_are_compared_by_what_they_are_worth(self) -> None:
        for reply in ("1000", "1,000.00", "$1,000", "10^3", "2000/2", "1 thousand"):
            assert Number()(reply, ("1,000",)).is_right, reply
            assert Number()(reply, ("5", "1000.0")).is_right, reply
        assert not Number()("1000.01", ("1000",)).is_right
        assert not Number()("0.33", ("1/3",)).is_right

    def test_an_accepted_answer_that_is_no_number_is_refused(self) -> None:
        with pytest.raises(ValueError, match="'a dozen' is no number"):
            Number()("18", ("18", "a dozen"))
        with pytest.raises(ValueError, match="answers are"):
            Number()("18", ())

    @given(st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**4))
    def test_what_is_written_is_read_again(self, value: Fraction) -> None:
        assert answered_number(f"The answer is {written(value)}.") == value
        assert answered_number(f"#### {written(value)}") == value

    @given(st.integers(-(10**12), 10**12), st.sampled_from(["", "$", "€"]), st.sampled_from(["", " eggs", "%", ".00"]))
    def test_dress_does_not_change_it(self, value: int, currency: str, unit: str) -> None:
        sign = "-" if value < 0 else ""
        assert answered_number(f"3 eggs. It is {sign}{currency}{abs(value):,}{unit}.") == value

    @given(st.text(max_size=300))
    def test_no_text_breaks_it(self, text: str) -> None:
        value = answered_number(text)
        assert value is None or answered_number(written(value)) == value

    def test_decimals_end_or_a_fraction_stands(self) -> None:
        assert [written(Fraction(*pair)) for pair in ((5, 1), (1, 8), (-1, 20), (1, 3), (7, 6), (0, 1))] == [
            "5", "0.125", "-0.05", "1/3", "7/6", "0",
        ]  # fmt: skip


LETTERS = {
    "(B)": "B",
    " B": "B",
    "B.": "B",
    "B) Paris": "B",
    "B: Paris": "B",
    "**B**": "B",
    "`D`": "D",
    '"B"': "B",
    "[C]": "C",
    "b": "B",
    "b)": "B",
    "a": "A",
    "A": "A",
    "A.": "A",
    "A is correct": "A",
    "C is the best": "C",
    "B, because of C": "B",
    "B\nA train": "B",
    "Answer: B": "B",
    "the answer is B": "B",
    "The answer is (b).": "B",
    "The answer is: \n\nD": "D",
    "The answer is A because it rains": "A",
    "The answer is B, because A is wrong": "B",
    "The answer to the question is B.": "B",
    "The correct answer is option D.": "D",
    "**Answer:** (C)": "C",
    "Answer: **B. Paris**": "B",
    "So it is **B. Paris**": "B",
    "I would go with C.": "C",
    "Option B is right": "B",
    "Let me think. (C) fits.": "C",
    "\\boxed{B}": "B",
    "$\\boxed{\\text{B}}$": "B",
    "A. Rome\nB. Bari\nThe answer is C": "C",
    " B\n\nQuestion: What?\nA. x\nAnswer: C": "B",
}
NO_LETTERS = (
    "",
    "A train leaves at noon",
    "A Train",
    "The answer is a train",
    "The answer is A train",
    "B cells are made there",
    "Vitamin C",
    "A.M. radio",
    "The U.S.A. won",
    "A-level",
    "D'Artagnan",
    "Because",
    "E",
    "A or B",
    "A and C",
    "A/B",
    "Both A and B",
    "neither A nor B",
    "The answer is A or B",
    "The answer is B, C",
    "The answer is A. No, the answer is B.",
    "The answer is not A.",
    "(A) is wrong, so (C)",
    "A. Rome\nB. Bari\nC. Pisa\nD. Turin",
    "Don't know",
    "The capital is Paris",
)


class TestLetter:
    @pytest.mark.parametrize(("reply", "letter"), LETTERS.items())
    def test_it_reads_the_letter_that_a_person_would(self, reply: str, letter: str) -> None:
        assert Letter()(reply, (letter,)) == Verdict(is_right=True, is_parsed=True, found=letter)
        other = "ABCD"[("ABCD".index(letter) + 1) % 4]
        assert Letter()(reply, (other,)) == Verdict(is_right=False, is_parsed=True, found=letter)

    @pytest.mark.parametrize("reply", NO_LETTERS)
    def test_none_or_more_than_one_is_not_parsed_rather_than_wrong(self, reply: str) -> None:
        for letter in "ABCD":
            assert Letter()(reply, (letter,)) == Verdict(is_right=False, is_parsed=False, found="")

    def test_more_letters_can_be_had(self) -> None:
        assert Letter("ABCDE")("The answer is E.", ("E",)).is_right
        assert not Letter()("The answer is E.", ("A",)).is_parsed

    @given(st.text(alphabet="ABCDabcd().*, \nor isanwe", max_size=60))
    def test_no_text_breaks_it_and_what_is_found_is_a_letter(self, reply: str) -> None:
        verdict = Letter()(reply, ("A",))
        assert verdict.is_parsed == (verdict.found in tuple("ABCD"))

    def test_bad_letters_are_refused(self) -> None:
        for letters in ("", "A", "AAB", "ab", "A1"):
            with pytest.raises(ValueError, match="letters are"):
                Letter(letters)
        with pytest.raises(ValueError, match="'E' is none of the letters ABCD"):
            Letter()("B", ("E",))


class TestContains:
    @pytest.mark.parametrize(
        ("reply", "answer"),
        [
            ("She was born in Warsaw, Poland.", "Warsaw"),
            ("WARSAW", "Warsaw"),
            ("in **Warsaw**", "Warsaw"),
            ("in the United\nStates", "the United States"),
            ("It was 1867.", "1867"),
            ("Santa María", "Santa Maria"),
            ("in St. Helena", "St. Helena"),
            ("the US of old", "US"),
            ("She was not born in Warsaw", "Warsaw"),  # a denial is not seen, as the docs say
        ],
    )
    def test_an_answer_anywhere_counts(self, reply: str, answer: str) -> None:
        assert Contains()(reply, ("Nowhere", answer)) == Verdict(is_right=True, is_parsed=True, found="Nowhere")

    @pytest.mark.parametrize(
        ("reply", "answer"),
        [
            ("Romania", "Oman"),
            ("Nigeria", "Niger"),
            ("Guinea-Bissau", "Guinea"),
            ("Guinea-Bissau", "Bissau"),
            ("in 18670", "1867"),
            ("tell us", "US"),
            ("Paris\nQuestion: Where?\nAnswer: Warsaw", "Warsaw"),
        ],
    )
    def test_a_part_of_a_word_and_a_further_question_do_not(self, reply: str, answer: str) -> None:
        assert Contains()(reply, (answer,)) == Verdict(is_right=False, is_parsed=True, found="")

    def test_an_empty_reply_is_not_parsed(self) -> None:
        assert not Contains()(" ...", ("Warsaw",)).is_parsed


class TestMentions:
    FACTS = ("Warsaw|Warszawa", "polonium", "1934")

    def test_right_takes_all_facts_each_by_any_alias(self) -> None:
        assert Mentions()("Born in Warszawa, died 1934; found polonium.", self.FACTS).is_right
        assert not Mentions()("Born in Warsaw, died 1934.", self.FACTS).is_right

    def test_the_share_is_that_of_facts_not_of_aliases(self) -> None:
        assert Mentions().share("Warsaw, Warszawa, 1934", self.FACTS) == pytest.approx(2 / 3)
        assert Mentions()("Warsaw, Warszawa, 1934", self.FACTS).found == "Warsaw; 1934"

    def test_a_smaller_share_can_be_enough(self) -> None:
        assert Mentions(needed=0.6)("Warsaw 1934", self.FACTS).is_right
        assert not Mentions(needed=0.6)("Warsaw", self.FACTS).is_right

    def test_bad_options_and_empty_facts_are_refused(self) -> None:
        for needed in (0.0, 1.1, -1.0, float("nan")):
            with pytest.raises(ValueError, match="needed is"):
                Mentions(needed)
        for facts in ((), ("Warsaw|",)):
            with pytest.raises(ValueError, match="answers are"):
                Mentions()("Warsaw", facts)


class TestAModelAsJudge:
    def judge(self, *, question: str = "{reply} {answers} is", yes: str = " Greece", no: str = " Italy") -> JudgedBy:
        return JudgedBy(model("llama"), template="raw", question=question, yes=yes, no=no)

    def test_it_says_what_the_logits_of_the_model_say(self) -> None:
        verdicts = set()
        for reply in COUNTRIES:
            for answer in COUNTRIES:
                verdict = self.judge()(reply, (answer,))
                logits = next_token_logits(model("llama"), encode(model("llama"), [f"{reply} {answer} is"]))[0]
                yes, no = (logits[model("llama").first_token(word)] for word in (" Greece", " Italy"))
                assert verdict == Verdict(bool(yes > no), True, reply)
                verdicts.add(verdict.is_right)
        assert verdicts == {True, False}

    def test_yes_and_no_exchanged_say_the_opposite(self) -> None:
        turned = self.judge(yes=" Italy", no=" Greece")
        for reply in COUNTRIES:
            assert turned(reply, ("Peru",)).is_right != self.judge()(reply, ("Peru",)).is_right

    def test_an_empty_reply_is_not_parsed_and_the_model_is_not_asked(self) -> None:
        assert self.judge()(" ...", ("Peru",)) == Verdict(is_right=False, is_parsed=False, found="")

    def test_a_further_question_is_not_read(self) -> None:
        judge = self.judge()
        assert judge("Peru\nQuestion: The note?", ("Oman",)) == judge("Peru", ("Oman",))

    def test_it_stands_in_records_by_name_and_weights(self) -> None:
        other = JudgedBy(
            model("llama", seed=1), template="raw", question="{reply} {answers}", yes=" Greece", no=" Peru"
        )
        same = self.judge()
        assert same == self.judge() and digest(same) == digest(self.judge())
        assert same.fingerprint == model("llama").fingerprint
        assert digest(other) != digest(same)

    def test_bad_questions_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"needs \{answers\} and \{reply\}"):
            self.judge(question="Is {reply} right?")
        with pytest.raises(ValueError, match="same token"):
            self.judge(no=" Greece")


def test_every_judge_keeps_the_protocol() -> None:
    for judge in (Begins(), Number(), Letter(), Contains(), Mentions(), Mentions(0.5)):
        assert isinstance(judge, Judge)
        assert digest(judge) == digest(judge)


def test_a_run_on_is_cut_at_the_next_question_alone() -> None:
    assert before_the_next_question("4\n\nQ: and?\nA: 5") == "4"
    assert before_the_next_question("4\nProblem 2: and?") == "4"
    assert before_the_next_question("The question: 4\nSo 5") == "The question: 4\nSo 5"
