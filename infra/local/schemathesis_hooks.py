"""Keeps schemathesis from cutting off the branch that it sits on: the key with which it asks."""

import os

import schemathesis

OWN_KEY = os.environ["SCHEMATHESIS_OWN_KEY"]
NOBODYS_KEY = "0" * 16


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.path_parameters and case.path_parameters.get("key_id") == OWN_KEY:
        case.path_parameters["key_id"] = NOBODYS_KEY
