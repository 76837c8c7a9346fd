"""Open Bandit Pipeline's estimates of logged lists; run by the peers' own environment.

    .parts/peers-env/bin/python tests/quality/obp_peer.py < LISTS.json > ESTIMATES.json

The lists are `{"items", "targets", "propensities", "rewards": [lists][slots], "predicted":
[lists][slots][items]}`, full and with items numbered from 0. Every slot is also a round of its own, its place the
position, for the estimators that know no lists. It needs obp and nothing of Freshet.
"""

import json
import sys

import numpy as np
from obp.ope import (
    DoublyRobust,
    InverseProbabilityWeighting,
    SelfNormalizedInverseProbabilityWeighting,
    SelfNormalizedSlateIndependentIPS,
    SlateIndependentIPS,
)


def main() -> None:
    """Read lists, write each estimator's value of the target policy, in rewards a list."""
    logged = json.load(sys.stdin)
    items, targets = np.array(logged["items"]), np.array(logged["targets"])
    predicted = np.array(logged["predicted"])  # [lists, slots, items]
    lists, slots = items.shape
    rounds, known = items.size, predicted.shape[2]
    shown = {
        "reward": np.array(logged["rewards"]).ravel(),
        "action": items.ravel(),
        "position": np.tile(np.arange(slots), lists),
        "pscore": np.array(logged["propensities"]).ravel(),
    }
    policy = np.zeros((rounds, known, slots))  # certain to show the target's item, whatever the place it is asked for
    policy[np.arange(rounds), targets.ravel()] = 1.0
    model = np.repeat(predicted.reshape(rounds, known)[:, :, None], slots, axis=2)
    slates = {
        "slate_id": np.repeat(np.arange(lists), slots),
        "reward": shown["reward"],
        "position": shown["position"],
        "pscore_item_position": shown["pscore"],
        "evaluation_policy_pscore_item_position": (items == targets).ravel().astype(float),
    }
    a_slot = {
        "InverseProbabilityWeighting": InverseProbabilityWeighting().estimate_policy_value(**shown, action_dist=policy),
        "SelfNormalizedIPW": SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(
            **shown, action_dist=policy
        ),
        "DoublyRobust": DoublyRobust().estimate_policy_value(
            **shown, action_dist=policy, estimated_rewards_by_reg_model=model
        ),
    }
    found = {name: value * slots for name, value in a_slot.items()}
    found["SlateIndependentIPS"] = SlateIndependentIPS(len_list=slots).estimate_policy_value(**slates)
    found["SelfNormalizedSlateIndependentIPS"] = SelfNormalizedSlateIndependentIPS(
        len_list=slots
    ).estimate_policy_value(**slates)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
