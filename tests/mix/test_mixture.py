"""The mixture in any loop: the same rows for any processes and workers, and after a resume."""

from collections import Counter

import pytest
import torch
from safetensors.torch import load, save
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset

from polytask.errors import RunError, UsageError
from polytask.mix import Curriculum, LossDriven, Mixture, SkillIt, Temperature, Unmixed

SIZES = {"news": 50, "poems": 7, "code": 23}


def mixture(method=None, **settings) -> Mixture:
    return Mixture(method or Temperature(2.0), SIZES, 8, seed=3, **settings)


def walked(made: Mixture, steps: int) -> list:
    """Return the batches of so many steps, over as many epochs as they take."""
    found: list = []
    while len(found) < steps:
        for batch in made:
            found.append(batch)
            if len(found) == steps:
                break
    return found


class Rows(Dataset):
    """Rows that say which they are."""

    def __len__(self) -> int:
        return sum(SIZES.values())

    def __getitem__(self, row):
        return row


class Own(Dataset):
    """One stream's rows, of (its name, number)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return SIZES[self.name]

    def __getitem__(self, row: int) -> tuple[str, int]:
        return self.name, row


class Flowing(IterableDataset):
    """What reads its own batches, in every worker its own steps."""

    def __init__(self, made: Mixture) -> None:
        self.made = made

    def __iter__(self):
        return iter(self.made.sampler())


def asis(batch):
    return batch


def test_it_yields_names_and_rows_and_an_epoch_at_a_time():
    made = mixture()
    assert len(made) == 10
    first = list(made)
    assert len(first) == 10
    assert all(len(batch) == 8 for batch in first)
    assert {name for batch in first for name, _ in batch} == set(SIZES)
    assert all(0 <= row < SIZES[name] for batch in first for name, row in batch)
    counts = Counter(row for batch in walked(mixture(), 30) for row in batch)
    of = {name: [n for (t, _), n in counts.items() if t == name] for name in SIZES}
    assert all(max(n) - min(n) <= 1 for n in of.values())  # no row twice before all others
    assert made.step == 10
    assert list(made) != first


def test_steps_end_the_run():
    made = mixture(steps=25)
    assert [len(list(made)) for _ in range(4)] == [10, 10, 5, 0]
    assert len(made) == 0


@pytest.mark.parametrize("world", [2, 3, 8])
def test_processes_take_their_parts_of_the_same_steps(world):
    whole = walked(mixture(), 15)
    parts = [walked(mixture(rank=rank, world=world), 15) for rank in range(world)]
    for step, batch in enumerate(whole):
        mine = [part[step] for part in parts]
        assert sorted(row for rows in mine for row in rows) == sorted(batch)
        assert [rows for rank, rows in enumerate(mine)] == [batch[r::world] for r in range(world)]
        assert min(map(len, mine)) >= 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_neither_rows_nor_their_order(workers):
    expected = walked(mixture(), 20)
    made = mixture()
    loader = DataLoader(Rows(), batch_sampler=made.sampler(), num_workers=workers, collate_fn=asis)
    assert len(loader) == 10
    found = [batch for _ in range(2) for batch in made.counted(loader)]
    assert found == expected
    assert made.step == 20
    flowing = mixture()
    stream = DataLoader(Flowing(flowing), batch_size=None, num_workers=workers, collate_fn=asis)
    found = [batch for _ in range(2) for batch in flowing.counted(stream)]
    assert found == expected


class Naive(Flowing):
    """What forgets that every worker has a copy of it."""

    def __iter__(self):
        return iter(self.made)


def test_workers_that_would_each_yield_every_step_are_refused():
    stream = DataLoader(Naive(mixture()), batch_size=None, num_workers=2, collate_fn=asis)
    with pytest.raises(UsageError, match=r"each of 2 workers .* iterate mixture\.sampler\(\)"):
        list(stream)


def test_flat_numbers_are_rows_of_the_streams_joined():
    made = mixture()
    joined = ConcatDataset([Own(name) for name in SIZES])
    loader = DataLoader(joined, batch_sampler=made.sampler(flat=True), collate_fn=asis)
    assert list(made.counted(loader)) == walked(mixture(), 10)


@pytest.mark.parametrize("at", [1, 4, 10, 13])
@pytest.mark.parametrize("method", [Temperature(2.0), Unmixed(SkillIt())], ids=["still", "looks"])
def test_it_resumes_at_the_exact_row(method, at):
    def looked(made: Mixture, first: int, last: int) -> list:
        found = []
        while made.step < last:
            for batch in made:
                found.append(batch)
                if made.schedule.mix.observes and made.step % 5 == 0:
                    made.observe({"news": 1.0 + made.step, "code": 0.5})
                if made.step == last:
                    break
        return found

    whole = looked(mixture(method), 0, 22)
    made = mixture(method)
    head = looked(made, 0, at)
    kept = load(save(made.state_dict()))  # tensors alone, as a checkpoint holds them
    again = mixture(method)
    again.load_state_dict(kept)
    assert head + looked(again, at, 22) == whole


def test_a_resume_counts_what_was_handed_out_and_not_what_was_drawn_ahead():
    whole = walked(mixture(), 14)
    made = mixture()
    loader = DataLoader(
        Rows(), batch_sampler=made.sampler(), num_workers=2, prefetch_factor=2, collate_fn=asis
    )
    counted = made.counted(loader)
    head = [next(counted) for _ in range(4)]
    again = mixture()
    again.load_state_dict(made.state_dict())
    del counted
    assert head + walked(again, 10) == whole
    # and the mixture itself goes on from there, in a pass of what is left of the epoch
    assert len(made) == 6
    assert list(made) == whole[4:10]


def test_a_look_moves_the_shares_and_names_are_checked():
    made = Mixture(LossDriven(floor=0.0), SIZES, 10, epoch=5)
    list(made)
    made.observe({"news": 0.0, "poems": 1.0, "code": 0.0})
    assert {name for batch in made for name, _ in batch} == {"poems"}
    with pytest.raises(UsageError, match=r"Unknown stream of the mixture 'poem'. Did you mean"):
        made.observe({"poem": 1.0})


def test_torchs_generator_is_neither_read_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = list(mixture(Unmixed(Temperature(), "drawn", 5)))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert list(mixture(Unmixed(Temperature(), "drawn", 5))) == first


def test_one_stream_of_one_row_is_a_mixture_too():
    made = Mixture(Temperature(), [1], 4)
    assert list(made) == [[("0", 0)]]
    assert list(made) == [[("0", 0)]]


def test_a_state_of_another_mixture_is_refused():
    state = mixture().state_dict()
    other = Mixture(Temperature(), {"news": 50, "poems": 7, "code": 24}, 8)
    with pytest.raises(RunError, match=r"another mixture: sizes_S differ\. Give the streams"):
        other.load_state_dict(state)
    with pytest.raises(RunError, match=r"memory\.losses_WS differ"):
        mixture(SkillIt()).load_state_dict(state)
    with pytest.raises(RunError, match="cursors_S, sizes_S differ"):
        Mixture(Temperature(), [3, 3]).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rank": 2, "world": 2}, "rank is 2 of 2; give 0 to 1"),
        ({"world": 9}, "batch_size is 8 over 9 processes; give each a row"),
        ({"epoch": 0}, "epoch is 0; give at least 1 step"),
        ({"method": Curriculum()}, r"Curriculum varies over the run .* steps=\.\.\."),
    ],
)
def test_wrong_arguments_are_refused(settings, text):
    with pytest.raises(UsageError, match=text):
        mixture(**settings)
