"""Checks a json file against a schema: `validate.py SCHEMA FILE`."""

import json
import sys

import fastjsonschema

with open(sys.argv[1]) as schema, open(sys.argv[2]) as file:
    check = fastjsonschema.compile(json.load(schema))
    try:
        check(json.load(file))
    except fastjsonschema.JsonSchemaException as error:
        print(f"{error.message}; value: {str(error.value)[:500]}")
        sys.exit(1)
