#!/usr/bin/env python3
"""Derives pointers.tsv: optional scalar fields in which zero differs from absent.

Usage: pointers.py GO_API_DIR [OUT]

In protobuf, Go writes every scalar that is not a pointer, zero or not, and drops the zeros again
in JSON (`omitempty`). A reader of protobuf must therefore know which scalars are pointers: there a
zero was meant. GO_API_DIR is a checkout of the Go types (`<group>/<version>/types.go`); only the
names of such fields are taken from it.
"""

import re
import sys
from pathlib import Path

SCALARS = {"string", "bool", "int", "int32", "int64", "float64"}
# Types outside GO_API_DIR that requests carry.
META = "io.k8s.apimachinery.pkg.apis.meta.v1."
EXTRA = [(META + "OwnerReference", "controller"), (META + "OwnerReference", "blockOwnerDeletion"),
         (META + "ObjectMeta", "deletionGracePeriodSeconds"),
         (META + "DeleteOptions", "gracePeriodSeconds"), (META + "DeleteOptions", "orphanDependents"),
         (META + "DeleteOptions", "propagationPolicy"), (META + "Preconditions", "uid"),
         (META + "Preconditions", "resourceVersion"), (META + "ListMeta", "remainingItemCount"),
         (META + "DeleteOptions", "ignoreStoreReadErrorWithClusterBreakingPotential")]
CUSTOM = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
EXTRA += [(CUSTOM + "JSONSchemaProps", field) for field in
          ("$ref", "maximum", "minimum", "multipleOf", "maxLength", "minLength", "maxItems",
           "minItems", "maxProperties", "minProperties", "x-kubernetes-preserve-unknown-fields",
           "x-kubernetes-list-type", "x-kubernetes-map-type")]
EXTRA += [(CUSTOM + "ValidationRule", "reason"), (CUSTOM + "ValidationRule", "optionalOldSelf"),
          (CUSTOM + "CustomResourceDefinitionVersion", "deprecationWarning"),
          (CUSTOM + "CustomResourceSubresourceScale", "labelSelectorPath"),
          (CUSTOM + "WebhookClientConfig", "url"), (CUSTOM + "ServiceReference", "path"),
          (CUSTOM + "ServiceReference", "port"),
          ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.ServiceReference", "port")]
FIELD = re.compile(r'^\s+\w+\s+\*([\w.]+)\s+`json:"([^,"]+)')
EMBED = re.compile(r'^\s+(\w+)\s+`json:",inline"')


def main():
    root = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "pointers.tsv"
    found = set(EXTRA)
    for path in sorted(root.glob("*/v*/types.go")):
        group, version = path.parts[-3], path.parts[-2]
        prefix = f"io.k8s.api.{group}.{version}."
        text = path.read_text()
        strings = set(re.findall(r"^type (\w+) (?:string|bool|int32|int64)$", text, re.M))
        strings |= set(re.findall(r"^\t(\w+) (?:string|int32)$", text, re.M))
        fields, embeds, current = {}, {}, None
        for line in text.splitlines():
            start = re.match(r"^type (\w+) struct", line)
            if start:
                current = start.group(1)
                fields[current], embeds[current] = [], []
            elif line.startswith("}"):
                current = None
            elif current:
                field = FIELD.match(line)
                if field and (field.group(1) in SCALARS or field.group(1) in strings
                              or field.group(1) in ("v1.PersistentVolumeMode", "types.UID")):
                    fields[current].append(field.group(2))
                embed = EMBED.match(line)
                if embed:
                    embeds[current].append(embed.group(1))
        def all_of(name):
            return fields.get(name, []) + [f for e in embeds.get(name, []) for f in all_of(e)]
        for name in fields:
            found |= {(prefix + name, field) for field in all_of(name)}
    lines = ["# type\tfield: optional scalars in which zero differs from absent"]
    lines += ["\t".join(row) for row in sorted(found)]
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
