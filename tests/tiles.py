"""Chains in tiles of a few rows, for tests."""

from manualgrad import gates, small, tiling, walks


def in_tiles(monkeypatch, entries):
    """Tiles of so many entries for every chain that may go in tiles.

    Returns two lists, to be filled with the number of rows of each walk: forward's, also of one
    walk over all rows, and those of backward that are over a tile.
    """
    monkeypatch.setattr(small, "BYTES", -1)
    monkeypatch.setattr(tiling, "ENTRIES", entries)
    monkeypatch.setattr(tiling, "LEAST_ROWS", 1)
    monkeypatch.setattr(tiling, "CACHE", 0)
    monkeypatch.setattr(tiling, "MUCH", 0)
    monkeypatch.setattr(gates, "LITTLE", 0)  # chains that are long enough for tiles keep no more
    monkeypatch.setattr(gates, "MORE", 0)
    up, down = [], []

    def forward_pass(chain, x, *rest):
        up.append(len(x))
        return walks.forward_pass(chain, x, *rest)

    def backward_pass(ops, chain, tensors, s, a_kept, needs, sent, **rest):
        down.append(len(sent.a[chain.depth]))
        return walks.backward_pass(ops, chain, tensors, s, a_kept, needs, sent, **rest)

    monkeypatch.setattr(gates, "forward_pass", forward_pass)
    monkeypatch.setattr(tiling, "backward_pass", backward_pass)
    return up, down
