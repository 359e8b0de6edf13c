"""How settings are declared: fields by name, the kind in the head of a class, and defaults that change alone."""

import dataclasses

import pytest

import lmtrain.config as config
from lmtrain.config.declaring import FRACTION, Resume, Settings, fixed, free, kept, noted


class Base(Settings):
    """Settings of some kind."""

    kind: str = fixed("")
    size: int = kept(3, "A size.", least=1)
    sizes: list[int] = kept([1], "Sizes.")
    share: float = noted(0.5, "A share.", **FRACTION)


class Special(Base, kind="special"):
    size: int = 5
    sizes: list[int] = [2, 3]  # noqa: RUF012
    note: str = free("", "Says nothing.")


def test_a_plain_value_changes_the_default_of_what_is_inherited_and_nothing_else() -> None:
    own, inherited = ({spec.name: spec for spec in dataclasses.fields(cls)} for cls in (Special, Base))
    assert (Special().size, Base().size) == (5, 3)
    assert own["size"].metadata == inherited["size"].metadata
    assert own["size"].metadata["least"] == 1


def test_lists_are_not_shared_between_settings() -> None:
    first, second = Special(), Special()
    first.sizes.append(4)
    assert (first.sizes, second.sizes, Base().sizes) == ([2, 3, 4], [2, 3], [1])


def test_the_kind_is_what_the_head_of_the_class_says_and_nothing_else() -> None:
    (spec,) = [spec for spec in dataclasses.fields(Special) if spec.name == "kind"]
    assert (Special().kind, spec.metadata["only"], Base().kind) == ("special", "special", "")


def test_three_words_say_what_a_resumed_run_may_do() -> None:
    rules = {spec.name: spec.metadata["resume"] for spec in dataclasses.fields(Special)}
    assert rules == {
        "kind": Resume.refused, "size": Resume.refused, "sizes": Resume.refused, "share": Resume.warned, "note": Resume.allowed,
    }  # fmt: skip


def test_settings_are_given_by_name() -> None:
    with pytest.raises(TypeError):
        Special("special")  # type: ignore[misc]


def test_every_kind_of_a_group_has_a_name_of_its_own_and_every_setting_a_meaning() -> None:
    for group in config.GROUPS.values():
        classes = config.KINDS.get(group, (group,))
        kinds = [getattr(cls, "kind", "") for cls in classes]
        assert len({*kinds}) == len(classes), group
        for cls in classes:
            assert all(spec.metadata["meaning"].endswith(".") for spec in dataclasses.fields(cls)), cls
