"""Kinds by block, as a value that cannot be changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


class ByBlock(Mapping[str, str]):
    """A mapping of blocks to kinds that can be hashed, pickled and copied, and not changed.

    Later keys win where several name a block, so two of them are equal if they also have the same order.
    """

    __slots__ = ("_pairs",)
    _pairs: tuple[tuple[str, str], ...]

    def __init__(self, kinds: Mapping[str, str]) -> None:
        object.__setattr__(self, "_pairs", tuple(kinds.items()))

    def __getitem__(self, key: str) -> str:
        for block, kind in self._pairs:
            if block == key:
                return kind
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (block for block, _ in self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return self._pairs == tuple(other.items()) if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("kinds by block cannot be changed; make another recipe")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("kinds by block cannot be changed; make another recipe")

    def __reduce__(self) -> tuple[type[ByBlock], tuple[dict[str, str]]]:
        return ByBlock, (dict(self._pairs),)

    def __repr__(self) -> str:
        return repr(dict(self._pairs))
