"""The trainers that stint is compared with. The *_train.py and *_loss.py beside this file are started by path."""

from __future__ import annotations

from pathlib import Path

from bench.peers.checkout import CheckoutPeer
from bench.peers.cramming import Cramming
from bench.peers.llm_baselines import LlmBaselines
from bench.peers.nanogpt import NanoGPT
from bench.peers.peer import Peer

CHECKOUTS: tuple[type[CheckoutPeer], ...] = (NanoGPT, LlmBaselines)
PEERS: tuple[type[Peer], ...] = (*CHECKOUTS, Cramming)
KNOWN = f"a checkout of {' or '.join(kind.title for kind in CHECKOUTS)}, or {Cramming.given}"  # what --peer takes


def find_peer(given: str, corpus: str) -> Peer | None:
    """The peer that `--peer` names: the word cramming or a checkout. `corpus`: folder of stint's own runs."""
    if given == Cramming.given:
        return Cramming(corpus)
    path = Path(given).resolve()
    return next((kind(path) for kind in CHECKOUTS if kind.is_at(path)), None)
