"""Orders by name: a state's name and version find the order that wrote them, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataporter import (
    BlockShuffledOrder,
    Order,
    ResumableDataLoader,
    SequentialOrder,
    ShuffledOrder,
    TorchOrder,
)
from dataporter.orders.by_name import order_for, order_named, order_of_state

ORDERS: st.SearchStrategy[Order] = st.one_of(
    st.sampled_from([ShuffledOrder(), SequentialOrder(), TorchOrder(), BlockShuffledOrder()]),
    st.builds(
        BlockShuffledOrder,
        st.one_of(st.integers(1, 100), st.integers(1, 2**70)),
        st.one_of(st.integers(1, 100), st.integers(1, 2**70)),
    ),
)


@given(order=ORDERS, other=st.integers(-5, 5))
def test_every_order_is_found_by_its_own_name_and_version_and_by_no_other_version(
    order: Order, other: int
) -> None:
    assert order_of_state(order.name, order.version) == order
    found = order_of_state(order.name, other)
    assert found == (order if other == order.version else None)


@pytest.mark.parametrize("argument", ["shuffled", "sequential", "torch", "blocks"])
def test_every_order_argument_is_found_by_the_state_it_writes(argument: str) -> None:
    state = ResumableDataLoader(range(10), 2, order=argument).state_dict()
    assert order_of_state(state["order"], state["order_version"]) == order_for(argument, None)


@given(name=st.text(max_size=30))
def test_a_name_that_no_order_writes_finds_none(name: str) -> None:
    order = order_named(name)
    assert order is None or order.name == name


@pytest.mark.parametrize(
    "name",
    [
        "blocks",  # an argument, not the name in a state
        "blocks(block=0, buffer=16)",
        "blocks(block=01, buffer=16)",
        "blocks(block=١, buffer=16)",
        "blocks(block=1,buffer=16)",
        "blocks(block=-1, buffer=16)",
        f"blocks(block={'9' * 5000}, buffer=16)",
        "Shuffled",
        "sampler torch.utils.data.RandomSampler",
        "",
    ],
)
def test_a_name_that_only_resembles_one_finds_none(name: str) -> None:
    assert order_named(name) is None
    assert order_of_state(name, 1) is None
