"""What a Flower client is told, and whose word counts."""

from __future__ import annotations

from typing import Any

import pytest

from gradguard import Defense, KeepTopK
from gradguard.dp import ClientDP
from gradguard.dpsgd import DPSGD
from gradguard.integrations.flower.settings import plain_client_dp, settings_for
from gradguard.integrations.update_settings import UpdateSettings
from tests.integrations.flower.exchange import context

TOP_K = Defense("top-k", transform=KeepTopK(0.1))
NONE = Defense("none", transform=[])
PRIVATE = Defense("dp", transform=[], dp=DPSGD(1.0, 1.0))


def settings(
    *, run: dict[str, Any] | None = None, own: dict[str, Any] | None = None, **given: Any
) -> UpdateSettings:
    return settings_for(context(run=run, own=own), given)


def test_a_run_says_what_the_code_leaves_open() -> None:
    run = {
        "gradguard-defense": TOP_K.to_json(),
        "gradguard-wire": True,
        "gradguard-buffers": "withhold",
        "learning-rate": 0.1,
    }
    assert settings(run=run) == UpdateSettings(TOP_K, wire=True, buffers="withhold")


def test_a_run_may_not_overrule_the_code() -> None:
    with pytest.raises(ValueError, match="only a node's own config may overrule"):
        settings(run={"gradguard-defense": NONE.to_json()}, defense=TOP_K)
    assert settings(run={"gradguard-defense": TOP_K.to_json()}, defense=TOP_K).defense == TOP_K


def test_a_node_overrules_code_and_run() -> None:
    own = {"gradguard-defense": TOP_K.to_json()}
    run = {"gradguard-defense": NONE.to_json()}
    assert settings(own=own, run=run).defense == TOP_K
    assert settings(own=own, defense=NONE).defense == TOP_K


@pytest.mark.parametrize(
    ("key", "value"), [("aggregated", True), ("buffers", "send"), ("simulation-seed", 1)]
)
def test_a_run_may_not_weaken_what_a_node_says(key: str, value: Any) -> None:
    own, run = {"gradguard-defense": TOP_K.to_json()}, {f"gradguard-{key}": value}
    with pytest.raises(ValueError, match=f"gradguard-{key}, and this node has settings"):
        settings(own=own, run=run)
    assert settings(own=own | run).defense == TOP_K
    assert settings(own=own, run={"gradguard-wire": True}).wire


def test_without_a_defence_nothing_is_defended_by_accident() -> None:
    with pytest.raises(ValueError, match="no defence is given"):
        settings(run={"gradguard-wire": True})


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"gradguard-wires": True}, "did you mean 'gradguard-wire'"),
        ({"gradguard-wire": "yes"}, "must be bool, got 'yes'"),
        ({"gradguard-max-epsilon": True}, "must be int or float"),
        ({"gradguard-defense": "top-k"}, "does not parse"),
        ({"gradguard-defense": '{"name": "x"}'}, "transform is missing"),
        ({"gradguard-buffers": "keep"}, "'withhold' or 'send'"),
        ({"gradguard-noise-multiplier": 1.0}, "needs gradguard-max-update-norm"),
        ({"gradguard-noise-multiplier": 0.0, "gradguard-max-update-norm": 1.0}, "noise_multiplier"),
        ({"gradguard-max-epsilon": 1.0}, "nothing here has an epsilon"),
        ({"gradguard-aggregated": True, "gradguard-wire": True}, "cannot be summed"),
    ],
)
@pytest.mark.parametrize("whose", ["run", "own"])
def test_bad_config_is_refused_and_named(config: dict[str, Any], why: str, whose: str) -> None:
    table = {"gradguard-defense": TOP_K.to_json()} | config
    with pytest.raises(ValueError, match=why):
        settings(**{whose: table})


def test_client_level_dp_comes_from_three_numbers() -> None:
    dp = ClientDP(1.5, 0.5, delta=1e-6)
    run = {f"gradguard-{key}": value for key, value in plain_client_dp(dp).items()}
    found = settings(run=run | {"gradguard-max-epsilon": 8}, defense=TOP_K)
    assert (found.client_dp, found.max_epsilon) == (dp, 8)


def test_two_units_of_privacy_are_refused() -> None:
    with pytest.raises(ValueError, match="different units"):
        UpdateSettings(PRIVATE, client_dp=ClientDP(1.0, 1.0))


def test_buffers_are_not_sent_beside_private_updates() -> None:
    with pytest.raises(ValueError, match="buffers are withheld"):
        UpdateSettings(TOP_K, client_dp=ClientDP(1.0, 1.0), buffers="send")
    with pytest.raises(ValueError, match="buffers are withheld"):
        UpdateSettings(PRIVATE, buffers="send")


def test_a_cohort_needs_the_assurance_that_messages_are_summed() -> None:
    cohort = Defense("sum of 16", transform=[], cohort=16)
    with pytest.raises(ValueError, match="the sum of the messages of 16 clients"):
        UpdateSettings(cohort)
    assert UpdateSettings(cohort, aggregated=True).aggregated


def test_a_transform_that_reads_raw_gradients_is_refused_after_noise() -> None:
    class Peeks(KeepTopK):
        reads = "raw_sum"

    with pytest.raises(ValueError, match="raw"):
        UpdateSettings(Defense("d", transform=Peeks(0.1)), client_dp=ClientDP(1.0, 1.0))
