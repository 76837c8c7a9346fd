"""The published list."""

from freshet.core.recommendation import (
    AsOf,
    Item,
    Reason,
    Recommendation,
    SideInputs,
    Timings,
    decode_recommendation,
    encode_recommendation,
    recommendation_id,
)

AS_OF = AsOf(3, 41, 1_700_000_000_000)


def test_lists_survive_the_codec() -> None:
    """Decoding an encoded list gives the same list with all evidence."""
    items = [Item("a", 1.5, "model", 1.0, (Reason("b", "view", 7, 0.25),)), Item("c", 0.5, "cold")]
    recommendation = Recommendation(
        "id", "u", items, 2, AS_OF, SideInputs(1, 2, 3), Timings(1, 2, 3, 4, 5), degraded=False, personalised=True
    )
    assert decode_recommendation(encode_recommendation(recommendation)) == recommendation
    assert isinstance(decode_recommendation(b"{}"), str)


def test_the_id_is_made_of_the_facts() -> None:
    """The same facts give the same id, and any other fact gives another id."""
    list_id = recommendation_id("u", AS_OF, 2, degraded=False)
    assert list_id == "a6227edf6d2c43f96b7d08fe"
    others = {
        recommendation_id("v", AS_OF, 2, degraded=False),
        recommendation_id("u", AsOf(4, 41, AS_OF.ts), 2, degraded=False),
        recommendation_id("u", AsOf(3, 42, AS_OF.ts), 2, degraded=False),
        recommendation_id("u", AS_OF, 3, degraded=False),
        recommendation_id("u", AS_OF, 2, degraded=True),
    }
    assert len(others - {list_id}) == 5
