"""The order of training items: a pure function of (seed, step), shared without loss among processes."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch

from finallyse.errors import UserError
from finallyse.training.batches import Batch, Batches, collate
from finallyse.training.distributed import Group
from finallyse.training.sampling import Order


class Counted:
    """Items that say which they are."""

    def __len__(self):
        return 7

    def __getitem__(self, key):
        epoch, index = key
        wav = torch.full((4,), float(10 * epoch + index))
        return {"wav": wav, "input_wav": wav, "start": index, "name": f"{epoch}-{index}"}


def test_every_epoch_takes_every_item_once():
    order = Order(length=7, batch_size=3, seed=5)
    stream = [key for step in range(14) for key in order.at(step)]
    for epoch in range(6):
        assert sorted(index for e, index in stream if e == epoch) == list(range(7))
    assert [index for e, index in stream if e == 0] != [index for e, index in stream if e == 1]
    assert [order.epoch(step) for step in (0, 2, 3, 4, 5, 7)] == [0, 0, 1, 1, 2, 3]


def test_a_step_does_not_depend_on_what_was_asked_before():
    order = Order(7, 3, 5)
    forward = [order.at(step) for step in range(10)]
    assert [Order(7, 3, 5).at(step) for step in range(10)] == forward
    assert [order.at(step) for step in reversed(range(10))] == forward[::-1]
    assert Order(7, 3, 6).at(0) != forward[0]


def test_a_dataset_smaller_than_a_batch_is_gone_through_more_than_once():
    keys = Order(2, 5, 0).at(0)
    assert [epoch for epoch, _ in keys] == [0, 0, 1, 1, 2]


def test_no_items_is_an_error():
    with pytest.raises(UserError, match="no items"):
        Order(0, 4, 0)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shares_make_up_the_global_batch(world):
    group = Group(torch.device("cpu"))
    items = list(range(10))
    shares = []
    for group.rank in range(world):
        group.world = world
        shares.append(group.share(items))
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_by_step_with_any_number_of_workers(workers):
    order = Order(7, 3, 5)
    batches = Batches(Counted(), order, Group(torch.device("cpu")), last=6, num_workers=workers)
    for step in (0, 1, 4, 5):
        batch = batches.at(step)
        assert batch.names == [f"{epoch}-{index}" for epoch, index in order.at(step)]
        assert batch["wav"].shape == (3, 1, 4) and batch["start"].tolist() == [index for _, index in order.at(step)]
        assert batch.share == 1.0
    batches.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_that_cannot_be_read_is_told_in_one_line(workers):
    class Unreadable(Counted):
        def __getitem__(self, key):
            raise UserError("a.wav: cannot be read")

    batches = Batches(Unreadable(), Order(7, 3, 5), Group(torch.device("cpu")), last=2, num_workers=workers)
    try:
        with pytest.raises(UserError, match=r"^a\.wav: cannot be read$"):
            batches.at(0)
    finally:
        batches.close()


def test_close_ends_the_loader_even_where_an_error_holds_on_to_it():
    class Broken(Counted):
        def __getitem__(self, key):
            raise ValueError("a defect, with a traceback that holds the loader's frames")

    before = set(multiprocessing.active_children())
    batches = Batches(Broken(), Order(7, 3, 5), Group(torch.device("cpu")), last=9, num_workers=2)
    with pytest.raises(ValueError, match="a defect") as kept:
        batches.at(0)
    batches.close()
    assert kept.tb and set(multiprocessing.active_children()) == before


def test_more_processes_than_items_is_an_error():
    group = Group(torch.device("cpu"))
    group.world = 4
    with pytest.raises(UserError, match=r"data\.batch_size=3"):
        Batches(Counted(), Order(7, 3, 0), group, 1, 0)


def test_microbatches_share_their_batch():
    batch = collate([Counted()[0, i] for i in range(7)])
    batch.share = 0.5
    microbatches = batch.split(3)
    assert [len(each) for each in microbatches] == [3, 3, 1]
    assert np.isclose(sum(each.share for each in microbatches), 0.5)
    assert torch.equal(torch.cat([each["wav"] for each in microbatches]), batch["wav"])
    (whole,) = batch.split(None)
    whole["extra"] = batch["wav"]
    assert "extra" not in batch  # what a step adds to its microbatches does not change the batch


def test_items_of_different_lengths_cannot_form_a_batch():
    with pytest.raises(UserError, match="set `segment`"):
        collate([{"wav": torch.zeros(4), "name": "a"}, {"wav": torch.zeros(5), "name": "b"}])


def test_a_missing_input_is_named():
    with pytest.raises(UserError, match="needs 'mel'"):
        Batch({"wav": torch.zeros(1, 1, 4)}, ["a"])["mel"]
