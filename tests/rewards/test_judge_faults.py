"""Servers that fail: no call is lost, none is judged as 0, and a server that is down is left alone."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.rewards.fault_proxy import FAULTS, FaultProxy, StubJudge, response, told_by
from tests.rewards.tiny_vlm import completion
from visalign.rewards.judge import Answer, Question
from visalign.rewards.judge_patience import Breaker, Patience, seconds_of
from visalign.rewards.judged import probability_of
from visalign.rewards.server_judge import ServerJudge

QUICK = Patience(first=0.001, cooldown=0.01)
ASKED = Question("is this a red circle")


def expected(question):
    text, top = told_by(question.text, question.seed)
    return Answer(text, ("Yes",), (top,))


def all_answered(calls, rate, faults=FAULTS, retries=12):
    """Every answer is the one that its question has, through a proxy that spoils a share of the calls."""
    questions = [Question(f"question {n}") for n in range(calls)]
    with StubJudge() as url:
        proxy = FaultProxy(int(url.split(":")[2].removesuffix("/v1")), rate, delay=0.3, faults=faults)
        with proxy as front:
            answers = ServerJudge(front, "stub", timeout=0.25, retries=retries, patience=QUICK).ask(questions)
    assert answers == [expected(q) for q in questions]
    assert min(probability_of(a.logprobs[0], "yes", "no") for a in answers) > 0.7
    return proxy


@pytest.mark.parametrize("calls", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_fifth_of_faulty_calls_loses_none_and_judges_none_as_0(calls):
    proxy = all_answered(calls, 0.2)
    spoiled = sum(n for fault, n in proxy.injected.items() if fault)
    assert all(proxy.injected[fault] > calls * 0.2 / len(FAULTS) / 2 for fault in FAULTS)
    assert 0.17 < spoiled / proxy.injected.total() < 0.23
    assert proxy.injected[None] >= calls


@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "delay"])
def test_half_of_the_calls_may_fail_in_one_way(fault):
    assert all_answered(30, 0.5, (fault,)).injected[fault] > 10


class Scripted(StubJudge):
    """Replies from a list, the last one for ever; the stub's own answer where it holds None."""

    def __init__(self, *replies):
        super().__init__()
        self.replies = replies

    def answer(self, body):
        reply = self.replies[min(self.requests, len(self.replies)) - 1]
        return reply or super().answer(body)


def asked(*replies, **options):
    server = Scripted(*replies)
    with server as url:
        answer = ServerJudge(url, "stub", patience=QUICK, **options).ask([ASKED])[0]
    return answer, server.requests


BUSY = response(503, {"error": "busy"})


@pytest.mark.parametrize("retries", [0, 3])
def test_retries_are_counted(retries):
    answer, calls = asked(BUSY, retries=retries)
    assert calls == retries + 1
    assert "503" in answer.error
    assert "busy" in answer.error
    assert json.loads(answer.text) == {"error": "busy"}


def test_an_answer_after_failures_is_as_good_as_any():
    assert asked(BUSY, BUSY, None) == (expected(ASKED), 3)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_not_asked_again(status):
    answer, calls = asked(response(status, {"detail": "no such model"}))
    assert calls == 1
    assert f"{status}" in answer.error
    assert "no such model" in answer.error


def test_retry_after_is_obeyed_or_the_question_is_given_up():
    assert asked(response(429, {}, **{"retry-after": "0"}), None)[1] == 2
    answer, calls = asked(response(429, {}, **{"retry-after": "3600"}), None)
    assert calls == 1
    assert "429" in answer.error


def test_waits_are_random_grow_and_are_no_less_than_was_told():
    patience = Patience(first=1.0, longest=10.0)
    for retry, most in [(1, 1.0), (2, 2.0), (4, 8.0), (9, 10.0)]:
        waits = [patience.wait(retry, 3.0) for _ in range(200)]
        assert 3.0 <= min(waits) < max(waits) <= 3.0 + most
        assert max(waits) > 3.0 + most / 2
    assert seconds_of("17") == 17
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == seconds_of("soon") == seconds_of("") == 0
    assert seconds_of("Sat, 21 Oct 2195 07:28:00 GMT") > 1e9


class Silent(StubJudge):
    """Never answers."""

    async def handle(self, request):
        await self.stop.wait()


def test_silence_ends_in_an_error():
    with Silent() as url:
        answer = ServerJudge(url, "stub", timeout=0.1, retries=1, patience=QUICK).ask([ASKED])[0]
    assert "no answer within 0.1 s" in answer.error


NAN = {"content": [{"token": "a", "logprob": 0.0, "top_logprobs": [{"token": "a", "logprob": float("nan")}]}]}
BROKEN = [
    {},
    [],
    "0",
    {"choices": None},
    {"choices": ["0"]},
    {"choices": [{"message": "0"}]},
    completion("0", {"content": "0"}),
    completion("0", {"content": [{"token": "a"}]}),
    completion("0", {"content": [{"token": "a", "top_logprobs": [{"token": "b"}]}]}),
    completion("0", NAN),
]


@pytest.mark.parametrize("value", BROKEN, ids=str)
def test_a_damaged_reply_is_an_error_with_its_raw_text(value):
    answer, calls = asked(response(200, value), retries=1)
    assert calls == 2
    assert answer.error
    assert answer.text == json.dumps(value)
    assert answer.logprobs == ()


def test_a_reply_without_text_or_probabilities_is_an_error():
    assert "no text" in asked(response(200, completion(None)))[0].error
    for logprobs in (None, {"content": []}, {"content": [{"token": "a", "logprob": 0.0, "top_logprobs": []}]}):
        answer, calls = asked(response(200, completion("yes", logprobs)))
        assert "no log-probabilities" in answer.error
        assert (answer.text, calls) == ("yes", 1)


def test_a_prompt_that_does_not_end_in_the_continuation_is_an_error():
    own = [None, *({str(n): {"logprob": -1.0, "decoded_token": word}} for n, word in enumerate(["a", " red", " box"]))]
    server = Scripted(response(200, completion("") | {"prompt_logprobs": own}))
    with server as url:
        judge = ServerJudge(url, "stub", patience=QUICK)
        good, bad = judge.ask([replace(ASKED, continuation="red box"), replace(ASKED, continuation="blue box")])
    assert (good.continuation, good.error) == (-1.0, "")
    assert "not in the continuation" in bad.error
    assert bad.continuation is None


def test_a_breaker_opens_after_failures_in_a_row_and_closes_after_one_good_probe():
    breaker = Breaker(Patience(failures=3, cooldown=0.0, probes=2))
    for trouble in ("a", "b", "", "c", "d"):  # an answer between them starts the count again
        breaker.report(breaker.ask(), trouble)
    assert not breaker.is_open
    breaker.report(breaker.ask(), "e")
    assert breaker.is_open
    probe = breaker.ask()
    assert probe.go
    assert probe.probe
    assert not breaker.ask().go  # one at a time
    breaker.report(probe, "")
    assert not breaker.is_open


def test_an_open_breaker_waits_for_its_cooldown_and_turns_away_after_lost_probes():
    breaker = Breaker(Patience(failures=1, cooldown=60.0))
    breaker.report(breaker.ask(), "down")
    assert not breaker.ask().go
    assert 50 < breaker.ask().wait <= 60
    hasty = Breaker(Patience(failures=1, cooldown=0.0, probes=2))
    hasty.report(hasty.ask(), "down")
    for _ in range(2):
        hasty.report(hasty.ask(), "still down")
    probe, other = hasty.ask(), hasty.ask()
    assert probe.probe
    assert (other.go, other.wait) == (False, 0.0)
    assert hasty.trouble == "still down"


class Patient(StubJudge):
    """Down until it is told to be well."""

    well = False

    def answer(self, body):
        return super().answer(body) if self.well else BUSY


def test_a_server_that_is_down_is_left_alone_until_it_is_back():
    questions = [Question(f"question {n}") for n in range(300)]
    patience = replace(QUICK, failures=6, probes=3)
    server = Patient()
    with server as url:
        judge = ServerJudge(url, "stub", concurrency=8, retries=5, patience=patience)
        lost = judge.ask(questions)
        assert server.requests < len(questions)  # six for each question would go out without a breaker
        assert all("503" in a.error for a in lost)
        server.well = True
        found = next(f for f in (judge.ask(questions) for _ in range(1000)) if not any(a.error for a in f))
    assert found == [expected(q) for q in questions]


def test_a_server_that_is_not_there_is_an_error():
    with StubJudge() as url:
        pass
    answer = ServerJudge(url, "stub", retries=1, patience=QUICK).ask([ASKED])[0]
    assert "tries: 2" in answer.error


RUN = """
import sys
from visalign.rewards.judge import Question
from visalign.rewards.server_judge import ServerJudge
ServerJudge(sys.argv[1], "stub", cache=sys.argv[2]).ask([Question(f"{n}") for n in range(300)])
"""


class Killer(StubJudge):
    """Kills the process that asks once it has asked a number of questions."""

    victim = None

    def answer(self, body):
        if self.victim and self.requests == 150:
            os.kill(self.victim.pid, signal.SIGKILL)
        return super().answer(body)


def test_a_killed_run_leaves_whole_entries_and_the_next_asks_only_the_rest(tmp_path):
    killer = Killer()
    with killer as url:
        killer.victim = subprocess.Popen([sys.executable, "-c", RUN, url, str(tmp_path)])
        assert killer.victim.wait() == -signal.SIGKILL
        kept = [json.loads(p.read_text()) for p in tmp_path.rglob("*.json")]
        assert 0 < len(kept) <= 150
        killer.victim, killer.requests = None, 0
        answers = ServerJudge(url, "stub", cache=tmp_path).ask([Question(f"{n}") for n in range(300)])
    assert killer.requests == 300 - len(kept)
    assert [a.text for a in answers] == [told_by(f"{n}", 0)[0] for n in range(300)]
