"""Scoring media in batch: files, tables and archives in, one row a file and reward out.

`sources`, `tables` and `captions` say what is scored with which prompt, one at a time; `identifying` and `ledger` see
to it that each content is scored once, however many files hold it; `engine`, `processes` and `ray_engine` decode,
prepare and judge; `sinks` keep the journal that a killed run goes on from, and write the output; `table`, `gallery` and
`pairs` are what is made of the scores.
"""

from __future__ import annotations

from visalign.batch.run import Progress, score
from visalign.batch.table import ScoreTable

__all__ = ["Progress", "ScoreTable", "score"]
