"""Rows are dealt the same whatever the number of processes, and every sample has noise of its own."""

import pytest

from visalign.layout import permutation, plan_rows, select
from visalign.types import InputError, Prompts

PROMPTS = Prompts(("a", "b", "c", "a"))


def deal(rank=0, world=1, **changes):
    options = {"updates": 2, "micro_batch": 4, "whole_groups": False, "seed": 3, "iteration": 5} | changes
    return plan_rows(PROMPTS, 3, rank=rank, world=world, **options)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_made_once_and_updates_do_not_depend_on_the_number_of_processes(world):
    layouts = [deal(rank, world) for rank in range(world)]
    alone = deal()
    for number in range(2):
        rows = sorted(r for layout in layouts for micro in layout.updates[number] for r in micro)
        assert rows == sorted(r for micro in alone.updates[number] for r in micro)
        assert len(rows) == alone.update_rows[number]
    assert sorted(r for layout in layouts for r in layout.own_rows()) == list(range(12))


@pytest.mark.parametrize("world", [1, 2])
def test_whole_groups_stand_in_one_micro_batch(world):
    for rank in range(world):
        layout = deal(rank, world, whole_groups=True)
        for micro in layout.micro_batches():
            assert len(micro) == 3
            assert len({r // 3 for r in micro}) == 1


def test_seeds_name_the_sample_and_a_repeated_prompt_has_its_own():
    layout = deal()
    seeds = layout.seeds(range(12), 0, "initial")
    assert len(set(seeds)) == 12
    grouped = layout.seeds(range(12), 0, "initial", per_group=True)
    assert [len(set(grouped[g * 3 : g * 3 + 3])) for g in range(4)] == [1, 1, 1, 1]
    assert len(set(grouped)) == 4
    assert layout.seeds([7], 0, "initial") == [seeds[7]]


def test_epochs_have_no_repetition():
    chosen = [place for iteration in range(5) for place in select(10, 4, iteration, seed=1)]
    assert sorted(chosen[:10]) == list(range(10))
    assert sorted(chosen[10:]) == list(range(10))
    assert chosen[:10] != chosen[10:]


def test_permutations_depend_on_seed_and_stream_only():
    assert permutation(20, 0, "x") == permutation(20, 0, "x")
    assert permutation(20, 0, "x") != permutation(20, 1, "x")
    assert permutation(20, 0, "x") != permutation(20, 0, "y")


def test_what_cannot_be_dealt_is_refused():
    with pytest.raises(InputError, match=r"train\.updates"):
        deal(updates=13)
    with pytest.raises(InputError, match=r"train\.micro_batch"):
        deal(whole_groups=True, micro_batch=2)
