"""Compares objects of KServe with the fields that its SDK knows: python kserve_fields.py FILE; what is not known is an error."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import kserve.models
import yaml

KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}


def unknown(data, kind, at):
    """The fields that a class of the SDK does not have; those of Kubernetes' own classes are not looked at."""
    inner = re.fullmatch(r"list\[(.*)\]|dict\(str, (.*)\)", kind)
    if inner:
        items = enumerate(data) if inner[1] else data.items()
        return [one for key, value in items for one in unknown(value, inner[1] or inner[2], f"{at}.{key}")]
    found = getattr(kserve.models, kind, None)
    if found is None or not hasattr(found, "attribute_map"):
        return []
    types = {found.attribute_map[name]: own for name, own in found.openapi_types.items()}
    wrong = [f"{at}.{key}" for key in data if key not in types]
    return wrong + [one for key in data if key in types for one in unknown(data[key], types[key], f"{at}.{key}")]


objects = list(yaml.safe_load_all(Path(sys.argv[1]).read_text(encoding="utf-8")))
wrong = [one for each in objects for one in unknown(each, KINDS[each["kind"]], each["kind"])]
print(len(objects), "objects", wrong)
sys.exit(bool(wrong))
