"""Writes one wheel's day as CSV to standard output."""

import argparse
import sys

from telemetry import samples


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--wheel", type=int, required=True)
    arguments.add_argument("--minutes", type=int, required=True)
    options = arguments.parse_args()
    print("minute,rpm")
    for minute, rpm in samples.day(options.wheel, options.minutes):
        print(f"{minute},{rpm}")


if __name__ == "__main__":
    sys.exit(main())
