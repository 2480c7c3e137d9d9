#!/usr/bin/env python3
"""Derives the type tables of this folder from the facts of one Kubernetes release.

Usage: generate.py FACTS_DIR [OUT_DIR]

FACTS_DIR holds `types.tsv` (one row a field of each OpenAPI type), `proto-only.tsv` (field numbers
of messages that have no OpenAPI type), `resources.tsv` and `default-rbac.tsv`. OUT_DIR defaults to
this folder. What is added on the way:

* Messages that Go embeds are flat in JSON but nested in protobuf. Which field number such a
  message has is in EMBEDDED; a flattened field's number becomes a path such as `2/5`.
* The field numbers of types whose OpenAPI name differs from their protobuf package.
* Types that clients send but OpenAPI does not name as such (lists are synthesised at run time).

Output columns of types.tsv:
  type  field  json  list  patch  default  proto  prototype
A type's first row has an empty field and the json column `type`; its `list` is the map semantics (`atomic` or empty)
and its `patch` the group/version/kind it is served as.
"""

import re
import sys
from pathlib import Path

# (type, embedded message, its field number)
EMBEDDED = [
    ("api.core.v1.Volume", "api.core.v1.VolumeSource", 2),
    ("api.core.v1.Probe", "api.core.v1.ProbeHandler", 1),
    ("api.core.v1.PersistentVolumeSpec", "api.core.v1.PersistentVolumeSource", 2),
    ("api.core.v1.EphemeralContainer", "api.core.v1.EphemeralContainerCommon", 1),
    ("api.networking.v1.IngressRule", "api.networking.v1.IngressRuleValue", 2),
] + [
    ("api.core.v1." + name, "api.core.v1.LocalObjectReference", 1)
    for name in ("ConfigMapEnvSource", "ConfigMapKeySelector", "ConfigMapProjection",
                 "ConfigMapVolumeSource", "SecretEnvSource", "SecretKeySelector",
                 "SecretProjection")
] + [
    (f"api.resource.{version}.{name}", f"api.resource.{version}.DeviceConfiguration", number)
    for version in ("v1", "v1beta1", "v1beta2")
    for name, number in (("DeviceAllocationConfiguration", 3), ("DeviceClaimConfiguration", 2),
                         ("DeviceClassConfiguration", 1))
] + [
    (f"api.admissionregistration.{version}.NamedRuleWithOperations",
     f"api.admissionregistration.{version}.RuleWithOperations", 2)
    for version in ("v1", "v1alpha1", "v1beta1")
] + [
    ("api.admissionregistration.v1.RuleWithOperations", "api.admissionregistration.v1.Rule", 2),
]


def rows(path):
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            yield line.split("\t")


def message(type_name):
    """The protobuf message of an OpenAPI type, without the common prefix."""
    return type_name.removeprefix("io.k8s.").replace("-", "_")


def proto_name(field):
    """`$ref` is `ref` and `x-kubernetes-list-type` is `xKubernetesListType` in protobuf."""
    first, *rest = field.removeprefix("$").split("-")
    return first + "".join(word.capitalize() for word in rest)


def main():
    facts = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent

    numbers = {}  # message -> field -> (number or path, type)
    table = []
    for row in rows(facts / "types.tsv"):
        row += [""] * (8 - len(row))
        table.append(row)
        if row[6]:
            numbers.setdefault(message(row[0]), {})[row[1]] = (row[6], row[7])
    for name, field, number, kind in rows(facts / "proto-only.tsv"):
        name = name.removeprefix("k8s.io.")
        numbers.setdefault(name, {}).setdefault(field, (number, kind))

    # The alpha and beta rules embed v1's.
    rule = numbers["api.admissionregistration.v1.Rule"]
    rules = numbers["api.admissionregistration.v1.RuleWithOperations"]
    for version in ("v1alpha1", "v1beta1"):
        numbers[f"api.admissionregistration.{version}.RuleWithOperations"] = rules
        numbers[f"api.admissionregistration.{version}.Rule"] = rule
    # Innermost first, so that an embedded message that embeds another is complete.
    for outer, inner, number in reversed(EMBEDDED):
        have = numbers.setdefault(outer, {})
        for field, (path, kind) in numbers[inner].items():
            have.setdefault(field, (f"{number}/{path}", kind))

    missing = []
    lines = ["# type\tfield\tjson (! = required)\tlist or map semantics:keys\t"
             "patch strategy/merge key, or group/version/kind\tdefault\tproto number\tproto type"]
    for row in table:
        is_type_row = not row[1]
        if not is_type_row and not row[6] and row[1] not in ("apiVersion", "kind"):
            row[6], row[7] = numbers.get(message(row[0]), {}).get(proto_name(row[1]), ("", ""))
            if not row[6]:
                missing.append(f"{row[0]} {row[1]}")
        lines.append("\t".join(row).rstrip("\t"))
    # Fields of list and time types are handled by name; JSON schema internals have no numbers.
    expected = re.compile(r"version\.Info|APIGroupList|pkg\.apis\.meta\.v1\.(APIVersions|APIGroup)")
    for name in missing:
        if not expected.search(name):
            print("no field number:", name, file=sys.stderr)
    (out / "types.tsv").write_text("\n".join(lines) + "\n")
    for name in ("resources.tsv", "default-rbac.tsv"):
        (out / name).write_text((facts / name).read_text())


if __name__ == "__main__":
    main()
