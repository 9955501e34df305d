"""MQTT topic filters (MQTT 5 §4.7)."""


def matches(topic_filter: str, topic: str) -> bool:
    """Tell whether a topic falls under a filter; `$` topics only under filters that name them (§4.7.2)."""
    if topic.startswith("$") and topic_filter[:1] in {"+", "#"}:
        return False
    wanted, given = topic_filter.split("/"), topic.split("/")
    for position, part in enumerate(wanted):
        if part == "#":
            return True
        if position >= len(given) or part not in {"+", given[position]}:
            return False
    return len(wanted) == len(given)
