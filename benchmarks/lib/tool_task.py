"""A task of calling tools, made here: eight functions, what people say to have them called, and the call that is right.

The same seed makes the same examples. Held-out requests hold values that no training request holds.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CITIES = (
    "Rome", "Oslo", "Lima", "Kyoto", "Cairo", "Quito", "Dublin", "Prague", "Nairobi", "Hanoi", "Vienna", "Bogota", "Tunis",
    "Riga", "Accra", "Porto",
)  # fmt: skip
NAMES = (
    "Ann", "Bela", "Chen", "Dora", "Emil", "Farah", "Goran", "Hana", "Igor", "Jana", "Kofi", "Lena", "Mira", "Nils", "Olga",
    "Pedro",
)  # fmt: skip
ITEMS = (
    "milk", "bread", "apples", "rice", "soap", "candles", "tea", "butter", "paper", "batteries", "honey", "lentils", "salt",
    "olives", "yeast", "matches",
)  # fmt: skip
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
UNITS = {"kilometres": "km", "miles": "mi", "kilograms": "kg", "pounds": "lb", "litres": "l", "gallons": "gal"}
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
CURRENCIES = {"euros": "EUR", "dollars": "USD", "yen": "JPY", "pounds sterling": "GBP"}


@dataclass(frozen=True)
class Request:
    """What somebody says, and the call that it asks for."""

    text: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Draw:
    """Values of one half: training, or held out."""

    random: random.Random
    held_out: bool

    def of(self, values: tuple[str, ...]) -> str:
        """A value of this half: every fourth is held out."""
        return self.random.choice([one for i, one in enumerate(values) if (i % 4 == 3) == self.held_out])

    def number(self, low: int, high: int) -> int:
        """Numbers that four divides are held out."""
        return self.random.choice([n for n in range(low, high + 1) if (n % 4 == 0) == self.held_out])

    def any(self, values: tuple[str, ...]) -> str:
        """A value of a set that is known to both halves."""
        return self.random.choice(values)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT, _WHOLE = {"type": "string"}, {"type": "integer"}
_PARAMETERS = {
    "set_alarm": ("Set an alarm.", _object(time={"type": "string", "description": "HH:MM, 24 hours"}, day={"enum": list(DAYS)})),
    "convert": ("Convert an amount to another unit.", _object(amount=_WHOLE, unit={"enum": list(UNITS.values())}, to={"enum": list(UNITS.values())})),
    "send_money": ("Send money to a person.", _object(to=_TEXT, amount=_WHOLE, currency={"enum": list(CURRENCIES.values())})),
    "get_weather": ("Tell the weather of a city.", _object(city=_TEXT, days={"type": "integer", "description": "days ahead, 0 for today"})),
    "book_table": ("Book a table.", _object(name=_TEXT, people=_WHOLE, time={"type": "string", "description": "HH:MM, 24 hours"})),
    "add_to_list": ("Add things to the shopping list.", _object(items={"type": "array", "items": _TEXT})),
    "plan_route": ("Plan a route.", _object(start=_TEXT, end=_TEXT, by={"enum": ["car", "train", "bicycle", "foot"]})),
    "set_light": ("Set a room's light.", _object(room={"enum": ["kitchen", "bedroom", "hall", "office"]}, percent=_WHOLE)),
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}
    for name, (description, parameters) in _PARAMETERS.items()
]


def _clock(draw: Draw) -> tuple[str, str]:
    """A time as it is said, and as it is written."""
    hour, half, evening = draw.number(1, 11), draw.random.random() < 0.5, draw.random.random() < 0.5
    said = f"{'half past ' if half else ''}{WORDS[hour - 1]}{'' if half else ' o’clock'} in the {'evening' if evening else 'morning'}"
    return said, f"{hour + 12 * evening:02}:{30 * half:02}"


def _set_alarm(draw: Draw) -> tuple[str, dict[str, Any]]:
    (said, time), day = _clock(draw), draw.any(DAYS)
    form = draw.any(("Wake me on {} at {}.", "I need to be up on {}, {}.", "Alarm for {}, {}, please."))
    return form.format(day.capitalize(), said), {"time": time, "day": day}


def _convert(draw: Draw) -> tuple[str, dict[str, Any]]:
    names = tuple(UNITS)
    first = draw.random.randrange(3)
    unit, to = draw.random.sample(names[2 * first : 2 * first + 2], 2)
    amount = draw.number(2, 400)
    form = draw.any(("How many {2} are {0} {1}?", "{0} {1} in {2}?", "Turn {0} {1} into {2}."))
    return form.format(amount, unit, to), {"amount": amount, "unit": UNITS[unit], "to": UNITS[to]}


def _send_money(draw: Draw) -> tuple[str, dict[str, Any]]:
    name, amount, currency = draw.of(NAMES), draw.number(5, 900), draw.any(tuple(CURRENCIES))
    form = draw.any(("Send {0} {1} {2}.", "I owe {0} {1} {2}, pay it.", "{0} should get {1} {2} from me."))
    return form.format(name, amount, currency), {"to": name, "amount": amount, "currency": CURRENCIES[currency]}


def _get_weather(draw: Draw) -> tuple[str, dict[str, Any]]:
    city, days = draw.of(CITIES), draw.random.randrange(7)
    when = {0: "today", 1: "tomorrow"}.get(days, f"in {WORDS[days - 1]} days")
    form = draw.any(("What will the weather be in {0} {1}?", "{0}, {1}: umbrella or not?", "Is it warm in {0} {1}?"))
    return form.format(city, when), {"city": city, "days": days}


def _book_table(draw: Draw) -> tuple[str, dict[str, Any]]:
    (said, time), name, people = _clock(draw), draw.of(NAMES), draw.random.randint(2, 9)
    form = draw.any(
        (
            "A table for {1} at {2}, under {0}.",
            "Book for {0}: {1} of us, {2}.",
            "{0} and friends, {1} in all, dine at {2}.",
        )
    )
    return form.format(name, WORDS[people - 1], said), {"name": name, "people": people, "time": time}


def _add_to_list(draw: Draw) -> tuple[str, dict[str, Any]]:
    items = list(dict.fromkeys(draw.of(ITEMS) for _ in range(draw.random.randint(1, 3))))
    said = " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
    form = draw.any(("We are out of {}.", "Put {} on the list.", "Don't let me forget {} at the shop."))
    return form.format(said), {"items": items}


def _plan_route(draw: Draw) -> tuple[str, dict[str, Any]]:
    start, end = draw.random.sample([one for i, one in enumerate(CITIES) if (i % 4 == 3) == draw.held_out], 2)
    by = draw.any(("car", "train", "bicycle", "foot"))
    way = {"car": "driving", "train": "by rail", "bicycle": "cycling", "foot": "walking"}[by]
    form = draw.any(("How do I get from {0} to {1}, {2}?", "{2} to {1}, starting in {0}.", "I leave {0} for {1}, {2}."))
    return form.format(start, end, way), {"start": start, "end": end, "by": by}


def _set_light(draw: Draw) -> tuple[str, dict[str, Any]]:
    room, percent = draw.any(("kitchen", "bedroom", "hall", "office")), draw.number(1, 99)
    said, percent = draw.random.choice(((f"to {percent} percent", percent), ("off", 0), ("all the way up", 100)))
    form = draw.any(("Light in the {0}: {1}.", "Turn the {0} light {1}.", "The {0} lamp {1}, please."))
    return form.format(room, said), {"room": room, "percent": percent}


_MAKERS: dict[str, Callable[[Draw], tuple[str, dict[str, Any]]]] = {
    "set_alarm": _set_alarm, "convert": _convert, "send_money": _send_money, "get_weather": _get_weather,
    "book_table": _book_table, "add_to_list": _add_to_list, "plan_route": _plan_route, "set_light": _set_light,
}  # fmt: skip


def requests(count: int, seed: int, *, held_out: bool) -> list[Request]:
    """Different ones, of all functions in turn."""
    draw, made = Draw(random.Random(f"{seed} {held_out}"), held_out), dict[str, Request]()
    names = list(_MAKERS)
    for turn in range(100 * count):
        if len(made) == count:
            return list(made.values())
        name = names[turn % len(names)]
        text, arguments = _MAKERS[name](draw)
        made.setdefault(text, Request(text, name, arguments))
    raise SystemExit(f"error: there are no {count} different requests")
