"""Methods of frameworks that ours are called in the place of."""

from __future__ import annotations

from typing import Any

from trifle_otel.integrations.patching import Patches


class Base:
    """What a framework's class looks like."""

    def work(self, job: str) -> str:
        """Work on a job."""
        return f"worked on {job}"

    @classmethod
    def make(cls) -> str:
        """Make one."""
        return cls.__name__


class Special(Base):
    """A class of the framework's that is made of it."""


class Heard:
    """Methods of ours that note what they hear, and let theirs do the work."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def __call__(self, theirs: Any, *args: Any, **kwargs: Any) -> Any:
        self.heard.append(args[1:] or args)
        return theirs(*args, **kwargs)


def test_ours_is_called_where_theirs_is_defined() -> None:
    """For the class and all that are made of it, with what theirs is called with."""
    patches, ours = Patches(), Heard()
    patches.put(Special, "work", ours)
    assert Base().work("one") == "worked on one"
    assert Special().work(job="two") == "worked on two"
    assert ours.heard[0] == ("one",)
    assert len(ours.heard) == 2
    assert Base.work.__doc__ == "Work on a job."
    patches.take_back()
    assert Base().work("three") == "worked on three"
    assert len(ours.heard) == 2
    assert "work" not in vars(Special)
    assert not hasattr(Base.work, "__wrapped__")


def test_class_methods_stay_class_methods() -> None:
    """They hear which class they are called on."""
    patches, ours = Patches(), Heard()
    patches.put(Base, "make", ours)
    assert Special.make() == "Special"
    assert ours.heard == [(Special,)]
    patches.take_back()
    assert Special.make() == "Special"
    assert len(ours.heard) == 1


def test_what_somebody_put_around_ours_stays(monkeypatch: Any) -> None:
    """Ours then does nothing, and put anew it is called once."""
    patches, ours = Patches(), Heard()
    patches.put(Base, "work", ours)
    around = Base.work
    monkeypatch.setattr(Base, "work", lambda self, job: f"({around(self, job)})")
    patches.take_back()
    assert Base().work("one") == "(worked on one)"
    assert ours.heard == []
    patches.put(Base, "work", ours)
    assert Base().work("two") == "(worked on two)"
    assert ours.heard == [("two",)]
    patches.take_back()
