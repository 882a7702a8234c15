"""What the noise on a client's updates guarantees about all of its data, such as their labels.

The unit of client-level privacy is the client, so that the reference is an update of zero: what
holds of one record under DP-SGD holds here of everything that a client's records say together.
"""

from __future__ import annotations

from gradguard.dp import ClientDP
from gradguard.evaluation.certificates.record import per_record_bound


def client_bound(dp: ClientDP, prior: float, rounds: int) -> float:
    """The highest probability with which anyone who sees a client's updates names a fact about it.

    Also an upper bound on the expectation of any score in [0, 1], such as the share of the
    client's labels that are named.

    Args:
        dp: What the client adds to every update.
        prior: How often the best guess without the updates is right, or its expected score, in
            (0, 1]: of a histogram of labels, the probability of the likeliest one.
        rounds: In how many the client takes part.

    Guarantees:

    - it holds against the server too, whatever it knows of the other clients and of the model,
      provided that ``prior`` allows for that knowledge;
    - it holds for whole histograms of labels: no assumption on how a client's labels depend on
      each other.

    Not covered: what leaves beside the updates, people who hold several clients.

    Jamie Hayes, Saeed Mahloujifar and Borja Balle, "Bounding Training Data Reconstruction in
    DP-SGD", 2023, arXiv:2302.07225.

    >>> dp = ClientDP(4.0, 1.0)
    >>> round(client_bound(dp, 0.1, rounds=1), 4), round(client_bound(dp, 0.1, rounds=20), 4)
    (0.1511, 0.4351)
    """
    return per_record_bound(prior, dp.noise_multiplier, rounds)
