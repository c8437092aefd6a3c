"""`shapes/vlm` behind `transformers serve`, a real server: what it can do, and what it says it cannot."""

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from visalign.rewards.judge import Question
from visalign.rewards.judge_patience import Patience
from visalign.rewards.local_judge import local_judge
from visalign.rewards.server_judge import ServerJudge
from visalign.shapes import judge_path
from visalign.shapes.render import render
from visalign.shapes.scenes import Object, Scene

SCENES = [Scene((Object(shape="circle", color=color, x=0.5, y=0.5, radius=0.25),)) for color in ("red", "blue")]
RED, BLUE = render(SCENES, 64, 0)
TEXT = 'Does this figure show "a red circle"? Please answer Yes or No.'
ASKED = Question(TEXT, (RED,), max_tokens=4)
PLAIN = replace(ASKED, top_logprobs=0)
QUICK = Patience(first=0.001, cooldown=0.001)


@pytest.fixture(scope="module")
def served():
    """A judge behind the server; the server is killed at the end, or when it hangs."""
    command = [str(Path(sys.executable).parent / "transformers"), "serve", "--host", "127.0.0.1", "--port", "0"]
    options = ["--device", "cpu"]
    with subprocess.Popen(command + options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        limit = threading.Timer(600, process.kill)
        limit.start()
        lines = iter(process.stderr.readline, "")
        found = next((m for m in (re.search(r"running on (http://\S+:\d+)", line) for line in lines) if m), None)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        assert found, "the server ended before it listened"
        yield ServerJudge(f"{found[1]}/v1", str(judge_path("vlm")), timeout=300.0, patience=QUICK)
        limit.cancel()
        process.kill()


def test_transformers_serve_says_what_the_local_judge_says(served):
    questions = [
        PLAIN,
        replace(PLAIN, images=(BLUE,), system="be strict"),
        replace(
            PLAIN, images=(BLUE, RED), text="Which picture shows a red circle better? Answer with its number, 1 or 2."
        ),
        replace(PLAIN, text="How many circles are in the picture? Answer with a number."),
    ]
    answers = served.ask(questions)
    for one, other in zip(answers, local_judge(served.model).ask(questions), strict=True):
        assert one.error == ""
        assert one.text == other.text
    assert [answer.text for answer in answers] == ["Yes", "No", "2", "1"]


def test_what_transformers_serve_cannot_do_is_an_error_that_says_so(served):
    graded, echo, unknown = served.ask(
        [ASKED, replace(ASKED, continuation="a red circle"), replace(PLAIN, text="what <image>")]
    )
    assert "no log-probabilities" in graded.error
    assert graded.text
    assert "422" in echo.error
    assert "prompt_logprobs" in echo.error
    assert "tries: 6" in unknown.error
