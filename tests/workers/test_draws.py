"""Counter-based draws: published answers, the same bits compiled and in tensors, and no number preferred."""

import numpy as np
import pytest
import torch

from workers.compiled import njit
from workers.draws import below, philox, three_others, unit

ONES = (0xFFFFFFFF,) * 4
KNOWN = [  # the Random123 distribution's kat_vectors, "philox4x32 10"
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (ONES, ONES[:2], (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

compiled_philox = njit(lambda c0, c1, c2, c3, k0, k1: philox(c0, c1, c2, c3, k0, k1))
compiled_others = njit(lambda w0, w1, w2, own, count: three_others(w0, w1, w2, own, count))


@pytest.mark.parametrize(("counter", "key", "known"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], known: tuple[int, ...]) -> None:
    assert compiled_philox(*counter, *key) == known
    words = philox(*(torch.tensor([word]) for word in (*counter, *key)))
    assert tuple(int(word) for word in words) == known
    mixed = philox(torch.tensor([counter[0]]), *counter[1:], *(torch.tensor([word]) for word in key))
    assert tuple(int(word) for word in mixed) == known  # words that all share may be numbers


@pytest.mark.parametrize("count", [4, 5, 50])
def test_three_others(count: int) -> None:
    rounds = 400
    own = torch.arange(count)
    words = philox(own, torch.arange(rounds)[:, None], 0, 0, torch.tensor(1), torch.tensor(2))
    chosen = torch.stack(three_others(*words[:3], own, count), dim=2)
    everyone = torch.cat([own.expand(rounds, count)[:, :, None], chosen], dim=2).sort(dim=2).values
    assert (everyone.diff(dim=2) > 0).all()
    assert everyone.min() == 0
    assert everyone.max() == count - 1
    for number in range(3):  # each role goes to each of the others alike
        seen = np.zeros((count, count))
        np.add.at(seen, (np.tile(own, rounds), chosen[:, :, number].flatten().numpy()), 1)
        off = seen[~np.eye(count, dtype=bool)]
        expected = rounds / (count - 1)
        assert (np.abs(off - expected) < 5 * np.sqrt(expected) + 3).all()
    for at in ((0, 0), (7, count - 1), (rounds - 1, 2)):
        one = compiled_others(*(int(word[at]) for word in words[:3]), at[1], count)
        assert list(one) == chosen[at].tolist()


def test_below_and_unit_reach_their_ends() -> None:
    words = torch.tensor([0, 1 << 31, 0xFFFFFFFF])
    assert below(words, 7).tolist() == [0, 3, 6]
    assert unit(words).tolist() == [0, 0.5, 1 - 2**-24]
    assert unit(words).dtype == torch.float32
