"""What a score state says of its own policy, by attribute; one that does not is refused (`verification.certify`)."""

from __future__ import annotations

POLICY_TEXTS = {
    "policy_missing": "a case without truth or with a missing member is left out of numerator and denominator, and counted",
    "policy_ties": "a truth equal to members shares its weight evenly over the ranks it may have",
    "policy_operator": "events by the operator in their name, for members and truth alike, in the precision of the fields",
    "policy_weights": "means weighted by exact cell area; all sums first, then division, root and ratio",
}
POLICY_KEYS = tuple(POLICY_TEXTS)
