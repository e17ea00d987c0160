"""What must a diamond cost in five countries, so that the shop earns its margin? One trace for each stone.

The equation is long and has many inputs: the purchase price in dollars, the parcel's weight, freight and
insurance, customs duty, the exchange rates, VAT, payment fees, the margin for each quality, and what the
competition asks. It is written as short methods that each work out one thing. Two decorators do the rest:

    @cached_property                          # worked out when first asked for, then kept ...
    @trifle.block("Freight")                  # ... so the trace shows it once, where it was first needed
    def freight(self) -> Decimal: ...

Nesting needs no care: whatever a method asks for appears one level deeper in the trace. Where a section of
the trace should begin is decided in `landed_prices`, which asks for the parts in the order to be read.

Prices and stones, exchange rates and VAT rates are real (see data/README.md); tariffs of couriers, banks and
the shop are made up. To run it: pip install "trifle-otel[demo]", then python price_calculation.py [how many]
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, Decimal
from functools import cache, cached_property
from pathlib import Path
from statistics import median
from typing import NamedTuple

from currency_converter import CurrencyConverter
from eu_vat_rates_data import get_all_rates

import trifle_otel as trifle

Prices = dict[str, Decimal]  # by country code, in the country's currency, VAT included

# The shop's rules
RATES_OF = date(2025, 6, 30)  # a fixed day, so that every run gives the same prices
CENT = Decimal("0.01")
GRAMS_PER_CARAT = Decimal("0.2")
BOX, RING = Decimal(180), Decimal("3.4")  # grams
LOOSE_FROM = Decimal(1)  # carat: smaller stones are sold set in a ring
SETTING_PRICE = Decimal(145)  # EUR: ring and goldsmith
CERTIFICATE, CERTIFICATE_PER_CARAT = Decimal(40), Decimal(18)  # EUR

LOOSE_DIAMONDS, GOLD_JEWELLERY = "7102 39 00", "7113 19 00"  # Combined Nomenclature
DUTY = {LOOSE_DIAMONDS: Decimal(0), GOLD_JEWELLERY: Decimal("0.025")}  # share of the customs value

FREIGHT = {1: Decimal("19.50"), 2: Decimal("24.80"), 3: Decimal("31.20")}  # EUR by zone
FREIGHT_PER_100_G = {1: Decimal("1.10"), 2: Decimal("1.60"), 3: Decimal("2.40")}
ARMOURED_FROM, ARMOURED = Decimal(5000), Decimal("48.00")  # EUR: dearer parcels go with the armoured courier
INSURANCE_RATE, INSURANCE_LEAST = Decimal("0.0045"), Decimal("6.50")
CLEARANCE = Decimal("27.50")

PERCENT_BY_CUT = {"Fair": 16, "Good": 18, "Very Good": 20, "Premium": 22, "Ideal": 24}
PERCENT_BY_COLOR = {"colourless": 3, "near colourless": 0, "tinted": -2}
PERCENT_BY_CLARITY = {"flawless": 5, "clean": 2, "included": 0}
SMALLEST_MARGIN = Decimal("0.10")
SHOP_MARKUP = Decimal("1.55")  # how much dearer than wholesale other shops sell
DEARER_THAN_OTHERS = Decimal("1.05")  # at most
DEPTH_TOLERANCE = 5.0  # percentage points
WEIGHT_TOLERANCE = 0.06
CARATS_PER_MM3 = 0.0061  # of a round brilliant: diameter² · height · this
TABLE_LEAST, TABLE_MOST = 53.0, 63.0  # % of the diameter
APPROVAL_FROM = 15000  # USD: a person looks at the price sheet first


@dataclass(frozen=True)
class Country:
    """A destination, with what couriers, banks and customers there are like."""

    code: str
    zone: int
    payment_share: Decimal  # of what the customer pays
    payment_fixed: Decimal  # EUR
    return_rate: Decimal
    charm_step: int  # prices are this far apart ...
    charm_below: int  # ... and end this far below a round one


COUNTRIES = (
    Country("DE", 1, Decimal("0.014"), Decimal("0.25"), Decimal("0.11"), charm_step=10, charm_below=1),
    Country("FR", 1, Decimal("0.016"), Decimal("0.25"), Decimal("0.07"), charm_step=10, charm_below=1),
    Country("SE", 2, Decimal("0.013"), Decimal("0.30"), Decimal("0.08"), charm_step=100, charm_below=5),
    Country("PL", 2, Decimal("0.011"), Decimal("0.20"), Decimal("0.05"), charm_step=50, charm_below=1),
    Country("HU", 3, Decimal("0.019"), Decimal("0.20"), Decimal("0.04"), charm_step=1000, charm_below=10),
)


@dataclass(frozen=True)
class Product:
    """A diamond as its certificate describes it."""

    id: int
    carat: Decimal
    cut: str
    color: str  # D (best) to J
    clarity: str  # IF (best), VVS1, VVS2, VS1, VS2, SI1, SI2, I1
    depth: float  # % of the diameter
    table: float  # % of the diameter
    price: Decimal  # USD
    length: float  # mm
    width: float  # mm
    height: float  # mm

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Product:
        """The product that one row of the CSV file describes."""
        return cls(
            id=int(row["id"]),
            carat=Decimal(row["carat"]),
            cut=row["cut"],
            color=row["color"],
            clarity=row["clarity"],
            depth=float(row["depth"]),
            table=float(row["table"]),
            price=Decimal(row["price"]),
            length=float(row["x"]),
            width=float(row["y"]),
            height=float(row["z"]),
        )

    @property
    def color_class(self) -> str:
        """The trade's name for this range of colours."""
        return "colourless" if self.color in "DEF" else "near colourless" if self.color in "GH" else "tinted"

    @property
    def clarity_class(self) -> str:
        """The shop's name for this range of clarities."""
        return "flawless" if self.clarity in ("IF", "VVS1") else "clean" if "VS" in self.clarity else "included"

    @property
    def peers(self) -> tuple[int, str, str]:
        """What stones must have in common to be compared: weight in half carats, colour, clarity."""
        return int(self.carat * 2), self.color_class, self.clarity_class


@cache
def catalogue() -> tuple[Product, ...]:
    """The whole sample: 2,000 stones in mixed order."""
    path = Path(__file__).parent / "data" / "diamonds.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return tuple(Product.from_row(row) for row in csv.DictReader(file))


def products(limit: int | None = None) -> list[Product]:
    """The first `limit` stones of the sample, or all of them."""
    return list(catalogue()[:limit])


@cache
def wholesale_prices() -> dict[tuple[int, str, str], Decimal]:
    """USD a carat, the median over each group of like stones."""
    groups = defaultdict(list)
    for product in catalogue():
        groups[product.peers].append(product.price / product.carat)
    return {peers: median(prices).quantize(CENT) for peers, prices in groups.items()}


@cache
def exchange_rates() -> dict[str, Decimal]:
    """Units of each EU currency, and of dollars, for one euro: the European Central Bank's rates of one day."""
    bank = CurrencyConverter(decimal=True)
    currencies = {vat.currency for vat in vat_rates().values()} | {"USD"}
    return {currency: Decimal(bank.convert(1, "EUR", currency, date=RATES_OF)) for currency in currencies}


class Vat(NamedTuple):
    """What selling to a country takes: its name, currency and standard rate (0.19 for 19 %)."""

    country: str
    currency: str
    rate: Decimal


@cache
def vat_rates() -> dict[str, Vat]:
    """VAT in the European Union, by country code."""
    return {
        code: Vat(rate["country"], rate["currency"], Decimal(str(rate["standard"])) / 100)
        for code, rate in get_all_rates().items()
        if rate["eu_member"]
    }


@dataclass
class Goods:
    """The stone as an article of the shop: what is the same wherever it is sold. Money in euro, weights in grams."""

    product: Product

    @cached_property
    @trifle.block("Checking the stone", head=True)
    def acceptable(self) -> bool:
        if not (self.weight_agrees and self.proportions_usual):
            trifle.warn()
        return self.depth_agrees

    @cached_property
    @trifle.block("Weight expected from the measures (carat)")
    def expected_carat(self) -> float:
        diameter = (self.product.length + self.product.width) / 2
        trifle.trace(f"{diameter:.2f} mm wide, {self.product.height} mm high")
        return round(diameter**2 * self.product.height * CARATS_PER_MM3, 3)

    @cached_property
    @trifle.block("Guard: the weight agrees with the measures")
    def weight_agrees(self) -> bool:
        off = abs(self.expected_carat / float(self.product.carat) - 1)
        agrees = off <= WEIGHT_TOLERANCE
        trifle.trace(f"{off:.1%} off, allowed {WEIGHT_TOLERANCE:.1%}", state="success" if agrees else "warning")
        return agrees

    @cached_property
    @trifle.block("Guard: usual proportions")
    def proportions_usual(self) -> bool:
        usual = TABLE_LEAST <= self.product.table <= TABLE_MOST
        trifle.trace(f"The table is {self.product.table:g} % wide", state="success" if usual else "warning")
        return usual

    @cached_property
    @trifle.block("Depth from the measures (%)")
    def measured_depth(self) -> float:
        return round(200 * self.product.height / (self.product.length + self.product.width), 1)

    @cached_property
    @trifle.block("Guard: the depth agrees with the certificate")
    def depth_agrees(self) -> bool:
        trifle.trace(f"The certificate says {self.product.depth} %")
        return abs(self.measured_depth - self.product.depth) <= DEPTH_TOLERANCE

    @cached_property
    @trifle.block("Cost of the goods", head=True)
    def cost(self) -> Decimal:
        return self.purchase_price + self.setting_price + self.certificate_price

    @cached_property
    @trifle.block("Purchase price")
    def purchase_price(self) -> Decimal:
        dollars = exchange_rates()["USD"]
        trifle.trace(f"{self.product.price} USD at {dollars} USD for 1 EUR")
        return (self.product.price / dollars).quantize(CENT)

    @cached_property
    @trifle.block("Sold loose?")
    def loose(self) -> bool:
        trifle.trace(f"{self.product.carat} ct, loose from {LOOSE_FROM} ct")
        return self.product.carat >= LOOSE_FROM

    @cached_property
    @trifle.block("Setting")
    def setting_price(self) -> Decimal:
        return Decimal(0) if self.loose else SETTING_PRICE

    @cached_property
    @trifle.block("Certificate")
    def certificate_price(self) -> Decimal:
        return CERTIFICATE + CERTIFICATE_PER_CARAT * self.product.carat

    @cached_property
    @trifle.block("Weight of the parcel (g)")
    def parcel_weight(self) -> Decimal:
        return BOX + self.product.carat * GRAMS_PER_CARAT + (0 if self.loose else RING)

    @cached_property
    @trifle.block("CN code")
    def cn_code(self) -> str:
        code = LOOSE_DIAMONDS if self.loose else GOLD_JEWELLERY
        trifle.trace(f"{DUTY[code]:.1%} customs duty")
        return code

    @cached_property
    @trifle.block("Margin to aim at", head=True)
    def margin_rate(self) -> Decimal:
        return Decimal(self.percent_for_cut + self.percent_for_color + self.percent_for_clarity) / 100

    @cached_property
    @trifle.block("Margin for the cut (%)")
    def percent_for_cut(self) -> int:
        trifle.trace(self.product.cut)
        return PERCENT_BY_CUT[self.product.cut]

    @cached_property
    @trifle.block("Margin for the colour (%)")
    def percent_for_color(self) -> int:
        trifle.trace(f"{self.product.color} is {self.product.color_class}")
        return PERCENT_BY_COLOR[self.product.color_class]

    @cached_property
    @trifle.block("Margin for the clarity (%)")
    def percent_for_clarity(self) -> int:
        trifle.trace(f"{self.product.clarity} is {self.product.clarity_class}")
        return PERCENT_BY_CLARITY[self.product.clarity_class]

    @cached_property
    @trifle.block("What other shops ask for it", head=True)
    def other_shops_price(self) -> Decimal:
        alone = self.product.price / self.product.carat  # a stone without peers sets its own price
        dollars = wholesale_prices().get(self.product.peers, alone) * self.product.carat
        trifle.trace(f"{dollars:.2f} USD is usual for such a stone")
        return (dollars / exchange_rates()["USD"] * SHOP_MARKUP + self.setting_price).quantize(CENT)


@dataclass
class Offer:
    """The goods in one country. Money in euro, except where the customer sees it."""

    goods: Goods
    country: Country
    vat: Vat

    @property
    def price(self) -> Decimal | None:
        """What the customer pays, in the country's currency; None where selling would not pay."""
        trifle.trace(f"{self.landed_cost} EUR landed, {self.net_price} EUR before VAT, {self.gross_price} with it")
        return self.charm_price if self.worth_selling else None

    @cached_property
    @trifle.block("Landed cost")
    def landed_cost(self) -> Decimal:
        return self.customs_value + self.duty + CLEARANCE

    @cached_property
    @trifle.block("Customs value")
    def customs_value(self) -> Decimal:
        return self.goods.cost + self.transport

    @cached_property
    @trifle.block("Transport")
    def transport(self) -> Decimal:
        return self.freight + self.insurance

    @cached_property
    @trifle.block("Freight")
    def freight(self) -> Decimal:
        zone, weight = self.country.zone, self.goods.parcel_weight
        armoured = self.goods.cost >= ARMOURED_FROM
        trifle.trace(f"{weight} g to zone {zone}{' by armoured courier' if armoured else ''}")
        return FREIGHT[zone] + (weight / 100 * FREIGHT_PER_100_G[zone]).quantize(CENT) + armoured * ARMOURED

    @cached_property
    @trifle.block("Insurance")
    def insurance(self) -> Decimal:
        return max((self.goods.cost * INSURANCE_RATE).quantize(CENT), INSURANCE_LEAST)

    @cached_property
    @trifle.block("Customs duty")
    def duty(self) -> Decimal:
        return (self.customs_value * DUTY[self.goods.cn_code]).quantize(CENT)

    @cached_property
    @trifle.block("Price before VAT")
    def net_price(self) -> Decimal:
        needed = self.landed_cost + self.margin + self.returns_reserve + self.country.payment_fixed
        return (needed / (1 - self.payment_share)).quantize(CENT)

    @cached_property
    @trifle.block("Margin")
    def margin(self) -> Decimal:
        return (self.landed_cost * self.goods.margin_rate).quantize(CENT)

    @cached_property
    @trifle.block("Reserve for returns")
    def returns_reserve(self) -> Decimal:
        trifle.trace(f"{self.country.return_rate:.0%} come back")
        return (self.transport * self.country.return_rate).quantize(CENT)

    @cached_property
    @trifle.block("Price with VAT")
    def gross_price(self) -> Decimal:
        trifle.trace(f"{self.vat.rate:.1%} VAT, 1 EUR is {self.exchange_rate} {self.vat.currency}")
        return self.in_currency(self.net_price)

    @cached_property
    @trifle.block("Guard: not much dearer than other shops")
    def guarded_price(self) -> Decimal:
        highest = self.in_currency(self.goods.other_shops_price * DEARER_THAN_OTHERS)
        if self.gross_price <= highest:
            return self.gross_price
        trifle.trace(f"Lowered, as others ask {highest}", state="warning")
        return highest

    @cached_property
    @trifle.block("Charm price")
    def charm_price(self) -> Decimal:
        step, below = self.country.charm_step, self.country.charm_below
        return ((self.guarded_price + below) / step).to_integral_value(ROUND_CEILING) * step - below

    @cached_property
    @trifle.block("Margin that is left")
    def margin_left(self) -> Decimal:
        net = self.charm_price / self.exchange_rate / (1 + self.vat.rate)
        earned = net * (1 - self.payment_share) - self.country.payment_fixed - self.returns_reserve
        return (earned / self.landed_cost - 1).quantize(Decimal("0.001"))

    @cached_property
    @trifle.block("Guard: worth selling")
    def worth_selling(self) -> bool:
        if self.margin_left < SMALLEST_MARGIN:
            trifle.warn()
        return self.margin_left >= SMALLEST_MARGIN

    @cached_property
    def payment_share(self) -> Decimal:
        """The bank's part of the price before VAT: it takes its share of the VAT, too."""
        return self.country.payment_share * (1 + self.vat.rate)

    @cached_property
    def exchange_rate(self) -> Decimal:
        """Units of the country's currency for one euro."""
        return exchange_rates()[self.vat.currency]

    def in_currency(self, net: Decimal) -> Decimal:
        """A price before VAT, as the customer sees it."""
        return (net * (1 + self.vat.rate) * self.exchange_rate).quantize(CENT)


def calculate(product: Product, countries: Sequence[Country] = COUNTRIES) -> Prices:
    """The consumer prices of one stone: one trace. Raises ArithmeticError where its data make no sense."""
    key = f"prices/landed/{product.cut.lower().replace(' ', '-')}"
    with trifle.tracer(key, meta=[product.id, [country.code for country in countries]]):
        return landed_prices(product, countries)


def landed_prices(product: Product, countries: Sequence[Country]) -> Prices:
    """The job's sections, in the order in which they are read."""
    trifle.trace(f"Product {product.id} -> landed prices", head=True)
    trifle.tag(f"product:{product.id}", f"clarity:{product.clarity}")
    goods = Goods(product)
    if not goods.acceptable:
        trifle.trace("Not for sale until somebody has looked at the stone", state="error")
        trifle.fail()
        return {}
    trifle.trace(f"Costs {goods.cost} EUR, weighs {goods.parcel_weight} g, goes through customs as {goods.cn_code}")
    trifle.trace(f"Margin {goods.margin_rate:.0%}, others ask {goods.other_shops_price} EUR before VAT")
    prices = {country.code: price_in(country, goods) for country in countries}
    return publish(product, {code: price for code, price in prices.items() if price is not None})


def price_in(country: Country, goods: Goods) -> Decimal | None:
    """One country's section."""
    vat = vat_rates()[country.code]
    with trifle.block(f"Price in {vat.country} ({vat.currency})", head=True) as step:
        return step.result(Offer(goods, country, vat).price)


@trifle.block("Publishing the prices", head=True)
def publish(product: Product, prices: Prices) -> Prices:
    """Hands the prices to the shop; those of precious stones to a person first, as a sheet."""
    trifle.tag(*(f"country:{country}" for country in prices))
    if product.price >= APPROVAL_FROM:
        trifle.artifact("price-sheet.csv", price_sheet(prices))
    return prices


def price_sheet(prices: Prices) -> str:
    """The prices as CSV."""
    rows = (f"{country},{price},{vat_rates()[country].currency}\n" for country, price in prices.items())
    return "country,price,currency\n" + "".join(rows)


class Outcome(NamedTuple):
    """What became of one stone."""

    product: Product
    prices: Prices
    error: Exception | None


def run(stones: Iterable[Product], countries: Sequence[Country] = COUNTRIES) -> Iterator[Outcome]:
    """Calculates one stone after the other; one that raises does not stop the rest."""
    for product in stones:
        try:
            yield Outcome(product, calculate(product, countries), None)
        except ArithmeticError as error:
            yield Outcome(product, {}, error)


def summary(outcomes: Iterable[Outcome]) -> str:
    """How many stones got prices, in one line."""
    counts = Counter("raised" if o.error else "priced" if o.prices else "without a price" for o in outcomes)
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


def main() -> None:
    """Prices the first 300 stones, or as many as the command line says, and tells where to look."""
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    trifle.configure(archive="./traces")
    print(summary(run(products(limit))))
    trifle.flush(timeout=5)
    print("Look at them:  trifle-otel ls,  trifle-otel search --state error,  trifle-otel show REFERENCE")


if __name__ == "__main__":
    main()
