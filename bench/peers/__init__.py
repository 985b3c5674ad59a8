"""The trainers that stint is compared with. The *_train.py and *_loss.py in this folder are started by their paths."""

from __future__ import annotations

from pathlib import Path

from bench.peers.checkout import CheckoutPeer
from bench.peers.cramming import Cramming
from bench.peers.llm_baselines import LlmBaselines
from bench.peers.nanogpt import NanoGPT
from bench.peers.peer import Peer

CHECKOUTS: tuple[type[CheckoutPeer], ...] = (NanoGPT, LlmBaselines)
PEERS: tuple[type[Peer], ...] = (*CHECKOUTS, Cramming)
KNOWN = f"a checkout of {' or '.join(kind.title for kind in CHECKOUTS)}, or {Cramming.given}"  # the values of --peer


def find_peer(given: str, corpus: str) -> Peer | None:
    """The peer for a value of `--peer`, the word cramming or a checkout; None for anything else. `corpus`: for stint's runs."""
    if given == Cramming.given:
        return Cramming(corpus)
    path = Path(given).resolve()
    return next((kind(path) for kind in CHECKOUTS if kind.is_at(path)), None)
