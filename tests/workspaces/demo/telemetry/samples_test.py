import unittest

from telemetry import samples


class SamplesTest(unittest.TestCase):
    def test_a_wheel_repeats_itself(self):
        self.assertEqual(list(samples.day(2, 600)), list(samples.day(2, 600)))

    def test_wheels_differ(self):
        self.assertNotEqual(list(samples.day(1, 60)), list(samples.day(2, 60)))

    def test_no_wheel_runs_faster_than_rated(self):
        for wheel in range(1, 5):
            self.assertTrue(all(0 < rpm < samples.RATED_RPM for _, rpm in samples.day(wheel, 1440)))


if __name__ == "__main__":
    unittest.main()
