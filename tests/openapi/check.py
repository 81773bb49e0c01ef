"""Holds a description of an HTTP interface against the rules of OpenAPI, and real answers against the description.

`check.py DOCUMENT ANSWERS`: two files of JSON. An answer has method, path (the template), status, type and body; its body is JSON, or a
list of the events that a stream told. Prints what is wrong, and ends with 1 if anything is.
"""

import json
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012


def within_all_of(node, found):
    """Schemas that are a part of another: what they do not name, the other may."""
    if isinstance(node, dict):
        for part in node.get("allOf", []):
            if "$ref" in part:
                found.add(part["$ref"])
        for value in node.values():
            within_all_of(value, found)
    elif isinstance(node, list):
        for value in node:
            within_all_of(value, found)
    return found


def strict(document):
    """A copy in which an object has no field but those that are described, so that one that was forgotten is found."""
    parts = within_all_of(document, set())
    # What a part is made of is a part too.
    more = True
    schemas = document["components"]["schemas"]
    while more:
        inside = set()
        for reference in parts:
            within_all_of(schemas[reference.rsplit("/", 1)[1]], inside)
        more = not inside <= parts
        parts |= inside
    copy = json.loads(json.dumps(document))
    for name, schema in copy["components"]["schemas"].items():
        described = schema.get("properties") or "allOf" in schema
        if described and f"#/components/schemas/{name}" not in parts:
            schema["unevaluatedProperties"] = False
    return copy


def pointer(*parts):
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def main():
    document, answers = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:3])
    problems = [f"the document: {error.message} at {list(error.absolute_path)}" for error in OpenAPIV31SpecValidator(document).iter_errors()]
    document = strict(document)
    registry = Registry().with_resource("urn:document", Resource.from_contents(document, default_specification=DRAFT202012))
    for answer in answers:
        it = f"{answer['method']} {answer['path']} {answer['status']} {answer['type']}"
        place = ["paths", answer["path"], answer["method"].lower(), "responses", str(answer["status"])]
        node = document
        for part in place:
            node = node.get(part, {})
        if not node:
            problems.append(f"{it}: no such answer is described")
            continue
        content = node.get("content", {})
        base = answer["type"].split(";")[0]
        kinds = [kind for kind in content if kind.split(";")[0] == base]
        if not kinds:
            if content or answer["body"] is not None:
                problems.append(f"{it}: described are {list(content)}")
            continue
        if "schema" not in content[kinds[0]]:
            continue
        schema = {"$ref": "urn:document#" + pointer(*place, "content", kinds[0], "schema")}
        if base == "text/event-stream":
            # Each body is the `data` of a message, which the message describes.
            message = content[kinds[0]]["schema"]["$ref"].rsplit("/", 1)[1]
            place = ["components", "schemas", message, "properties", "data", "contentSchema"]
            schema = {"$ref": "urn:document#" + pointer(*place)}
        validator = Draft202012Validator(schema, registry=registry)
        bodies = answer["body"] if base == "text/event-stream" else [answer["body"]]
        for body in bodies:
            for error in validator.iter_errors(body):
                problems.append(f"{it}: {error.message[:2000]} at {list(error.absolute_path)}")
    print("\n".join(problems) or f"{len(answers)} answers are as described")
    sys.exit(1 if problems else 0)


main()
