"""Holds SBOMs against the schema of CycloneDX 1.5, as its authors ship it. `check.py FILE…` prints what is wrong, and ends with 1 if
anything is."""

import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def main():
    validator = JsonStrictValidator(SchemaVersion.V1_5)
    valid = True
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            error = validator.validate_str(file.read())
        if error is not None:
            valid = False
            print(f"{path}: {error}")
    if valid:
        print(f"{len(sys.argv) - 1} SBOMs are valid")
    sys.exit(0 if valid else 1)


main()
