"""A judge behind a server says what the same model says here; and what goes over the wire."""

import asyncio
import json
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image

from tests.rewards.fault_proxy import StubJudge, response, told_by
from tests.rewards.tiny_vlm import VlmServer, build, completion, same
from visalign.rewards.judge import Answer, Question, open_judge
from visalign.rewards.judge_cache import AnswerCache, key_of
from visalign.rewards.local_judge import local_judge
from visalign.rewards.server_judge import ServerJudge
from visalign.types import InputError

GENERATOR = torch.Generator().manual_seed(0)
RED, BLUE = ((torch.rand(3, 20 + 4 * i, 24, generator=GENERATOR) * 255).round() / 255 for i in range(2))
ASKED = Question("is this a red circle", (RED,), max_tokens=4)
PLAIN = replace(ASKED, top_logprobs=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("vlm"))


class Recorder(StubJudge):
    """A stub that keeps the bodies and headers of its requests."""

    def __init__(self):
        super().__init__()
        self.bodies, self.headers = [], []

    async def handle(self, request):
        self.headers.append(request.headers)
        self.bodies.append(json.loads(request.body))
        return self.answer(self.bodies[-1])


def test_a_server_and_a_local_judge_give_the_same_answers(folder):
    questions = [
        ASKED,
        replace(ASKED, system="be strict", images=(RED, BLUE), top_logprobs=5),
        replace(ASKED, temperature=2.0, seed=7),
        Question("how many star", max_tokens=2, top_logprobs=0),
        replace(ASKED, text="describe the image", continuation="a red circle and two blue star"),
        replace(ASKED, schema={"type": "object"}),
    ]
    with VlmServer(folder) as url:
        answers = open_judge(str(folder), url).ask(questions)
    for one, other in zip(answers, local_judge(str(folder)).ask(questions), strict=True):
        assert same(one, other)


def test_answers_come_in_the_order_of_the_questions():
    questions = [Question(f"question {n}", seed=n % 3) for n in range(200)]
    with StubJudge() as url:
        answers = ServerJudge(url, "stub").ask(questions)
    for question, answer in zip(questions, answers, strict=True):
        text, top = told_by(question.text, question.seed)
        assert answer == Answer(text, ("Yes",), (top,))


def test_the_wire_carries_images_first_and_openais_schema():
    schema = {"type": "string", "enum": ["a", None]}
    recorder = Recorder()
    with recorder as url:
        ServerJudge(url, "stub").ask([replace(ASKED, system="rubric", schema=schema, seed=3, temperature=0.5)])
    body = recorder.bodies[0]
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    assert [part["type"] for part in body["messages"][1]["content"]] == ["image_url", "text"]
    assert body["messages"][1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"] == schema
    wanted = {"model": "stub", "seed": 3, "temperature": 0.5, "max_tokens": 4, "logprobs": True, "top_logprobs": 20}
    assert {name: body[name] for name in wanted} == wanted


@pytest.mark.parametrize(("key", "sent"), [(None, "Bearer none"), ("secret", "Bearer secret")])
def test_the_hub_token_stays_here(monkeypatch, key, sent):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    monkeypatch.delenv("VISALIGN_JUDGE_KEY", raising=False)
    if key:
        monkeypatch.setenv("VISALIGN_JUDGE_KEY", key)
    recorder = Recorder()
    with recorder as url:
        ServerJudge(url, "stub").ask([ASKED])
    assert recorder.headers[0]["authorization"] == sent
    assert "hf_private" not in str(recorder.headers)


def test_a_judge_can_be_asked_inside_a_running_loop():
    async def notebook(url):
        return ServerJudge(url, "stub").ask([PLAIN])

    with StubJudge() as url:
        assert asyncio.run(notebook(url))[0].text == told_by(PLAIN.text, 0)[0]


class Full(StubJudge):
    """Answers only when as many calls are out as it was told to wait for."""

    def __init__(self, wanted):
        super().__init__()
        self.wanted, self.enough = wanted, None

    async def handle(self, request):
        self.enough = self.enough or asyncio.Event()
        if self.in_flight >= self.wanted:
            self.enough.set()
        await self.enough.wait()
        return await super().handle(request)


@pytest.mark.parametrize("concurrency", [1, 5])
def test_concurrency_is_reached_and_not_exceeded(concurrency):
    server = Full(concurrency)
    with server as url:
        answers = ServerJudge(url, "stub", concurrency).ask([Question(f"{n}") for n in range(40)])
    assert not any(a.error for a in answers)
    assert server.most_in_flight == concurrency


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://host/v1", "http:///v1", "http://host:8000", "http://h/v1/"]
)
def test_what_is_no_base_url_is_refused(url):
    with pytest.raises(InputError, match="end in /v1"):
        ServerJudge(url, "m")


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"concurrency": 101}, {"timeout": 0.0}, {"retries": -1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="write a concurrency"):
        ServerJudge("http://host/v1", "m", **wrong)


def test_a_config_sets_the_options_of_a_server(tmp_path):
    judge = open_judge("judge", {"url": "http://localhost:1/v1", "concurrency": 3, "timeout": 2.5, "cache": tmp_path})
    assert isinstance(judge, ServerJudge)
    assert (judge.concurrency, judge.timeout, judge.retries) == (3, 2.5, 5)
    assert judge.cache is not None


@pytest.mark.parametrize("options", [{}, {"concurrency": 3}, {"url": "http://localhost:1/v1", "workers": 3}])
def test_unknown_options_of_a_server_are_refused(options):
    with pytest.raises(InputError, match="concurrency, timeout, retries, cache"):
        open_judge("judge", options)


def test_kept_answers_are_not_asked_for_again(tmp_path):
    questions = [replace(ASKED, text=f"{n}", seed=n) for n in range(20)]
    stub = StubJudge()
    with stub as url:
        first = ServerJudge(url, "stub", cache=tmp_path).ask(questions)
        again = ServerJudge("http://elsewhere/v1", "stub", cache=tmp_path).ask(questions)
    assert stub.requests == 20
    assert again == first


OTHER = {
    "text": "b",
    "images": (BLUE,),
    "system": "b",
    "max_tokens": 2,
    "temperature": 0.5,
    "top_logprobs": 5,
    "seed": 1,
    "schema": {"type": "object"},
    "continuation": "b",
}


def test_the_key_names_everything_that_is_asked():
    assert set(OTHER) == {f.name for f in fields(Question)}
    pictures = [Image.new("RGB", (4, 2), "red")]
    keys = {key_of("m", ASKED, pictures), key_of("other", ASKED, pictures)}
    keys |= {
        key_of("m", replace(ASKED, **{name: value}), pictures) for name, value in OTHER.items() if name != "images"
    }
    for others in ([], pictures * 2, [Image.new("RGB", (2, 4), "red")], [Image.new("RGB", (4, 2), (254, 0, 0))]):
        keys.add(key_of("m", ASKED, others))
    assert len(keys) == 2 + len(OTHER) - 1 + 4


def test_a_failed_answer_is_not_kept_and_a_torn_entry_counts_as_missing(tmp_path):
    cache, answer = AnswerCache(tmp_path), Answer("a", ("b",), ({"b": -0.1, "c": -float("inf")},))
    cache.put("00failed", Answer("text", error="why"))
    assert list(tmp_path.rglob("*")) == []
    cache.put("00whole", answer)
    assert cache.get("00whole") == answer
    entry = tmp_path / "00" / "00whole.json"
    for torn in (entry.read_text()[:-5], "", "[]", "{}"):
        entry.write_text(torn)
        assert cache.get("00whole") is None
    cache.put("00whole", answer)
    assert cache.get("00whole") == answer


class Learner(StubJudge):
    """Gives JSON of the wanted form to the third seed that it sees, and words before."""

    def __init__(self):
        super().__init__()
        self.seeds = []

    def answer(self, body):
        self.seeds.append(body["seed"])
        return response(200, completion('{"score": 4}' if len(self.seeds) == 3 else "a four, I think"))


SCHEMA = {"type": "object", "required": ["score"], "properties": {"score": {"type": "integer", "maximum": 5}}}


@pytest.mark.parametrize(("temperature", "asked"), [(0.7, 3), (0.0, 1)])
def test_a_wrong_form_is_sampled_anew_only_where_that_can_help(temperature, asked):
    learner = Learner()
    with learner as url:
        question = replace(PLAIN, schema=SCHEMA, temperature=temperature)
        answer = ServerJudge(url, "stub", retries=0).ask([question])[0]
    assert len(set(learner.seeds)) == len(learner.seeds) == asked
    assert (answer.text, answer.error) == ('{"score": 4}', "") if asked == 3 else "no JSON" in answer.error
    assert answer.text
