"""The policy without a host: `python3 -m unittest discover tests`. What it does on one is in `scenarios`."""

import sys
import unittest
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent.parent))
import policy

NOW = 1_000_000


def decided(seconds, force=False, is_current=False, state="RUNNING"):
    """The rule for a container that was started so many seconds ago."""
    container = SimpleNamespace(started=NOW - seconds, state=SimpleNamespace(name=state))
    request = SimpleNamespace(recreate=True, force=force)
    _, rule, _ = policy.decide(container, policy.IMAGE, is_current, request, NOW)
    return rule


class Decisions(unittest.TestCase):
    def test_a_container_that_has_settled_gets_its_image(self):
        self.assertEqual(decided(policy.SETTLED_AFTER), "image-moved")

    def test_one_that_was_just_started_stays_unless_somebody_insists(self):
        self.assertEqual(decided(60), "just-started")
        self.assertEqual(decided(60, force=True), "image-moved")

    def test_one_that_is_up_to_date_or_stands_still_stays(self):
        self.assertEqual(decided(policy.SETTLED_AFTER, is_current=True), "up-to-date")
        self.assertEqual(decided(policy.SETTLED_AFTER, state="EXITED"), "not-running")

    def test_only_containers_with_the_label_follow(self):
        self.assertTrue(policy.follows(SimpleNamespace(labels=[(policy.LABEL, "")]), "app"))
        self.assertFalse(policy.follows(SimpleNamespace(labels=[]), "app"))


if __name__ == "__main__":
    unittest.main()
