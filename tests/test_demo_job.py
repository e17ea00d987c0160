"""The demonstration job: its equation, its guards, its sample, and the trace that it leaves."""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trifle_otel as trifle
from trifle_otel.records import TraceRecord

if TYPE_CHECKING:
    from examples import price_calculation as job  # where it lies; below, as a wheel has it too
else:
    pytest.importorskip("currency_converter", reason="needs the extra `demo`")
    pytest.importorskip("eu_vat_rates_data", reason="needs the extra `demo`")
    job = importlib.import_module("trifle_otel.examples.price_calculation")

GERMANY = job.Vat("Germany", "EUR", Decimal("0.19"))
HUNGARY = job.Vat("Hungary", "HUF", Decimal("0.27"))

STONE = job.Product(
    id=0,
    carat=Decimal("1.00"),
    cut="Ideal",
    color="G",
    clarity="VS1",
    depth=61.0,
    table=57.0,
    price=Decimal(5860),  # at 1.1720 dollars a euro: 5,000 euro
    length=6.5,
    width=6.5,
    height=3.965,
)


def offer(stone: job.Product, country: str, vat: job.Vat) -> job.Offer:
    """The stone in one of the job's countries, other shops asking more than we ever would."""
    goods = job.Goods(stone)
    goods.__dict__["other_shops_price"] = Decimal(100_000)
    return job.Offer(goods, next(c for c in job.COUNTRIES if c.code == country), vat)


def first(limit: int) -> list[job.Outcome]:
    """What the job makes of the beginning of the sample."""
    return list(job.run(job.products(limit)))


def test_the_price_of_a_loose_stone_in_germany_is_what_a_pocket_calculator_says() -> None:
    """Every term of the equation, worked out by hand for a stone that is not taxed by customs and stays in euro."""
    germany = offer(STONE, "DE", GERMANY)

    assert germany.goods.cost == Decimal("5058.00")  # 5000 + no setting + certificate 40 + 18
    assert germany.freight == Decimal("69.48")  # 19.50, 1.98 for 180.2 g, and the armoured courier 48.00
    assert germany.insurance == Decimal("22.76")  # 0.45 % of 5058
    assert germany.duty == 0
    assert germany.landed_cost == Decimal("5177.74")  # 5058 + 69.48 + 22.76 + clearance 27.50
    assert germany.margin == Decimal("1346.21")  # 24 % for the cut, 0 for G, 2 % for VS1
    assert germany.returns_reserve == Decimal("10.15")  # 11 % of 92.24
    assert germany.net_price == Decimal("6645.06")  # (5177.74 + 1346.21 + 10.15 + 0.25) / (1 - 0.014 * 1.19)
    assert germany.gross_price == Decimal("7907.62")
    assert germany.price == 7909  # the next that ends in 9


def test_the_price_of_a_ring_in_hungary_is_what_a_pocket_calculator_says() -> None:
    """The other branches: a setting, duty on jewellery, the ordinary courier, another currency."""
    hungary = offer(dataclasses.replace(STONE, carat=Decimal("0.50"), price=Decimal(1172)), "HU", HUNGARY)

    assert hungary.goods.cost == Decimal("1194.00")  # 1000 + setting 145 + certificate 40 + 9
    assert hungary.freight == Decimal("35.60")  # 31.20, and 4.40 for 183.5 g
    assert hungary.insurance == Decimal("6.50")  # 5.37 is below the least
    assert hungary.duty == Decimal("30.90")  # 2.5 % of 1236.10
    assert hungary.landed_cost == Decimal("1294.50")
    assert hungary.net_price == Decimal("1673.33")  # (1294.50 * 1.26 + 4 % of 42.10 + 0.20) / (1 - 0.019 * 1.27)
    assert hungary.gross_price == Decimal("849626.61")  # times 1.27, times 399.80
    assert hungary.price == 849_990


def test_the_exchange_rates_are_those_of_the_day() -> None:
    """The European Central Bank's reference rates of 30 June 2025, as it published them."""
    rates = job.exchange_rates()

    assert [rates[name] for name in ("EUR", "USD", "SEK", "PLN", "HUF")] == [
        Decimal(text) for text in ("1", "1.1720", "11.1465", "4.2423", "399.80")
    ]


def test_vat_is_a_share() -> None:
    """What the package gives in percent is turned into a share, for each country that the shop sends to."""
    shares = {country.code: job.vat_rates()[country.code].rate for country in job.COUNTRIES}

    assert all(Decimal("0.15") <= share <= Decimal("0.30") for share in shares.values())  # the EU's least is 15 %


def test_a_price_far_above_other_shops_is_lowered_and_sold_only_where_it_still_pays() -> None:
    """The guard lowers to 5 % above the others; the country is left out once less than 10 % margin is left."""
    dear, too_dear = offer(STONE, "DE", GERMANY), offer(STONE, "DE", GERMANY)
    dear.goods.__dict__["other_shops_price"] = Decimal(6000)
    too_dear.goods.__dict__["other_shops_price"] = Decimal(5000)

    assert dear.guarded_price == Decimal("7497.00")  # 6000 * 1.05 * 1.19
    assert dear.price == 7499
    assert too_dear.price is None


def test_a_stone_without_peers_in_the_sample_is_compared_with_itself() -> None:
    """Others are taken to ask the usual markup on what it costs."""
    lonely = job.Goods(dataclasses.replace(STONE, carat=Decimal(9), price=Decimal(58_600)))

    assert lonely.other_shops_price == Decimal("77500.00")  # 50,000 EUR * 1.55


def test_a_stone_whose_measures_contradict_its_certificate_gets_no_price() -> None:
    """The job ends at the guard, without an exception."""
    assert job.calculate(dataclasses.replace(STONE, depth=70.0)) == {}


def test_a_stone_without_width_raises_and_the_run_goes_on() -> None:
    """The depth of a flat stone cannot be computed: `calculate` raises, `run` says so and takes the next one."""
    flat = dataclasses.replace(STONE, length=0.0, width=0.0)

    with pytest.raises(ZeroDivisionError):
        job.calculate(flat)
    broken, whole = job.run([flat, STONE])
    assert isinstance(broken.error, ZeroDivisionError)
    assert whole.error is None
    assert set(whole.prices) == {"DE", "FR", "SE", "PL", "HU"}


def test_the_sample_is_small_and_complete() -> None:
    """2,000 different stones from the cheapest to the dearest, in a file of less than 60 kB."""
    stones = job.products()
    packed = Path(job.__file__).parent / "data" / "diamonds.csv.gz"

    assert len({stone.id for stone in stones}) == len(stones) == 2000
    assert min(stone.price for stone in stones) < 400
    assert max(stone.price for stone in stones) > 18_000
    assert packed.stat().st_size < 60_000


def test_every_outcome_occurs_among_the_first_hundred() -> None:
    """So that a short demonstration shows prices, a failed guard and an exception."""
    outcomes = first(100)

    assert any(outcome.error for outcome in outcomes)
    assert any(not outcome.prices and not outcome.error for outcome in outcomes)
    assert sum(len(outcome.prices) == len(job.COUNTRIES) for outcome in outcomes) > 70


def test_every_price_is_a_charm_price() -> None:
    """Whatever comes out ends as the country's customers are used to, and is more than the stone has cost."""
    for product, prices, _ in first(100):
        assert all(prices[code] % 10 == 9 for code in ("DE", "FR") if code in prices)
        assert all((prices[code] + below) % step == 0 for code, step, below in CHARM if code in prices)
        assert all(price > product.price / 2 for price in prices.values())


CHARM = [("SE", 100, 5), ("PL", 50, 1), ("HU", 1000, 10)]


def test_the_summary_counts_outcomes() -> None:
    """One line, the most frequent first."""
    priced = job.Outcome(STONE, {"DE": Decimal(9)}, None)

    assert job.summary([job.Outcome(STONE, {}, ZeroDivisionError()), priced, priced]) == "2 priced, 1 raised"


# What it leaves in the archive


Archived = Callable[..., tuple[trifle.Archive, list[TraceRecord]]]


@pytest.fixture
def archived() -> Iterator[Archived]:
    """Runs the job on the stones it is given; the archive, and the records in their order."""

    def run(*stones: job.Product) -> tuple[trifle.Archive, list[TraceRecord]]:
        archive = trifle.configure(archive="./traces")
        list(job.run(stones))
        assert trifle.flush(timeout=10)
        return archive, archive.search(segment="prices/landed").records[::-1]

    yield run
    trifle.shutdown()


def test_a_trace_has_some_three_hundred_entries_five_levels_deep(archived: Archived) -> None:
    """The size that the benchmarks stand on: 300 to 330 entries, lines inside five nested blocks."""
    archive, (record,) = archived(STONE)

    assert record.key == "prices/landed/ideal"
    assert record.state == "success"
    assert 300 <= record.length <= 330
    assert max(entry.level for entry in archive.entries(record)) == 5


def test_each_method_is_traced_once(archived: Archived) -> None:
    """A kept value is returned in silence: one block for each thing worked out, in the trace or in a country."""
    archive, (record,) = archived(STONE)
    opened = Counter(entry.message for entry in archive.entries(record) if entry.message.endswith(" ↴"))

    assert opened["Purchase price ↴"] == opened["Cost of the goods ↴"] == 1
    assert opened["Freight ↴"] == opened["Landed cost ↴"] == len(job.COUNTRIES)
    assert set(opened.values()) == {1, len(job.COUNTRIES)}


def test_sections_are_heads_in_reading_order(archived: Archived) -> None:
    """What a reader sees of a folded trace."""
    archive, (record,) = archived(STONE)
    heads = [entry.message.removesuffix(" ↴") for entry in archive.entries(record) if entry.type == "head"]

    assert heads[:5] == [
        "Product 0 -> landed prices",
        "Checking the stone",
        "Cost of the goods",
        "Margin to aim at",
        "What other shops ask for it",
    ]
    assert [head.split(" (")[1] for head in heads[5:-1]] == ["EUR)", "EUR)", "SEK)", "PLN)", "HUF)"]
    assert heads[-1] == "Publishing the prices"


def test_states_tell_the_outcomes_apart(archived: Archived) -> None:
    """Success, a warning, a failed guard and an exception, each as the trace's state."""
    wide = dataclasses.replace(STONE, table=70.0)
    wrong, flat = dataclasses.replace(STONE, depth=70.0), dataclasses.replace(STONE, length=0.0, width=0.0)
    archive, records = archived(STONE, wide, wrong, flat)

    assert [record.state for record in records] == ["success", "warning", "error", "error"]
    assert "Exception: float division by zero" in [entry.message for entry in archive.entries(records[3])]


def test_a_trace_is_found_by_product_and_country(archived: Archived) -> None:
    """The tags that people search by."""
    _, (record,) = archived(STONE)

    assert {"product:0", "clarity:VS1", "country:DE", "country:HU"} <= set(record.tags)
    assert record.meta == [0, ["DE", "FR", "SE", "PL", "HU"]]


def test_only_precious_stones_carry_a_price_sheet(archived: Archived) -> None:
    """An artifact with every trace would double the files."""
    archive, (usual, precious) = archived(STONE, dataclasses.replace(STONE, price=Decimal(15_000), carat=Decimal(3)))

    assert "media" not in {entry.type for entry in archive.entries(usual)}
    assert archive.artifact(precious, "price-sheet.csv").startswith(b"country,price,currency\n")
