#!/usr/bin/env python3
"""Derives presence.tsv and internal.tsv from the Go types of a Kubernetes checkout.

Usage: go_forms.py CHECKOUT [OUT_DIR]

presence.tsv: fields of which OpenAPI says something else than Go's encoder does: it writes them
`always`, or leaves them `out` when they are zero.

internal.tsv: how upstream's messages show a structure. They show its internal form: names and
order of Go, and what is not set as null, zero or empty. Each row is a type and its fields, as
`Name` or `Name=json` with what stands for nothing: `~` null, `'` an empty text, `0`, `-` false,
`+` a structure of its own. `^json` is a field of the structure around it. Types that have no
internal form are written as in JSON, in Go's order: `json?`.

Only names are taken from the checkout.
"""

import re
import sys
from pathlib import Path

TYPE = re.compile(r"^(?:type\s+|\t)(\w+)\s+struct\s*\{\s*$")
ALIAS = re.compile(r"^(?:type\s+|\t)(\w+)\s+(?:=\s*)?([*\[\]\w.]+)\s*$")
FIELD = re.compile(r"^([\w, ]+?)\s+([*\[\]\w.]+)(?:\s+`(.*)`)?$")
EMBED = re.compile(r"^(\*?[\w.]+)(?:\s+`(.*)`)?$")
STRUCTS = {"metav1.Time", "metav1.MicroTime", "Time", "MicroTime", "resource.Quantity",
           "runtime.RawExtension", "intstr.IntOrString"}
NUMBERS = {"int", "int32", "int64", "float64"}
META = "io.k8s.apimachinery.pkg.apis.meta.v1."
CUSTOM = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
# Fields that the internal form has in a structure below.
MOVED = {("PodSecurityContext", name) for name in
         ("HostNetwork", "HostPID", "HostIPC", "ShareProcessNamespace", "HostUsers")}


class Package:
    """The types of one folder."""

    def __init__(self, folder):
        self.structs, self.aliases = {}, {}
        for path in sorted(folder.glob("*.go")) if folder.is_dir() else []:
            if path.name.endswith(("_test.go", ".pb.go")) or path.name.startswith("zz_"):
                continue
            text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
            self.read(iter(text.split("\n")))

    def read(self, lines):
        for line in lines:
            line = re.sub(r"//.*", "", line).rstrip()
            start, alias = TYPE.match(line), ALIAS.match(line)
            if alias and line.startswith("type"):
                self.aliases[alias.group(1)] = alias.group(2)
            if not start:
                continue
            fields = self.structs[start.group(1)] = []
            for line in lines:
                if re.match(r"^\t?\}", line):
                    break
                line = re.sub(r"//.*", "", line).strip()
                embed, field = EMBED.match(line), FIELD.match(line)
                if embed:
                    fields.append((None, embed.group(1), embed.group(2) or ""))
                elif field:
                    for name in field.group(1).split(","):
                        fields.append((name.strip(), field.group(2), field.group(3) or ""))

    def flat(self, name):
        """The fields of a structure and of those that it embeds."""
        for field, kind, tag in self.structs.get(name, []):
            json = re.search(r'json:"([^"]*)"', tag)
            json = json.group(1) if json else ""
            inline = json in ("", ",") or ",inline" in json
            if field is None and inline and "." not in kind:
                yield from self.flat(kind.lstrip("*"))
            elif field is not None or json.split(",")[0]:
                yield field or kind.split(".")[-1], kind, json


def schema(folder):
    types = {}
    for line in (folder / "types.tsv").read_text().splitlines():
        name, field, json, _, _, default, *_ = (line.split("\t") + [""] * 8)
        if not line.startswith("#"):
            types.setdefault(name, {})
            if field:
                types[name][field] = (json, default)
    return types


def versioned(root, name):
    """The folders of a type's versioned and internal form, and its short name."""
    short = name.rsplit(".", 1)[1]
    found = re.match(r"io\.k8s\.api\.(\w+)\.(\w+)\.\w+$", name)
    if found:
        group, version = found.groups()
        return (root / f"staging/src/k8s.io/api/{group}/{version}", root / f"pkg/apis/{group}", short)
    if name.startswith(META):
        return root / "staging/src/k8s.io/apimachinery/pkg/apis/meta/v1", None, short
    if name.startswith(CUSTOM):
        folder = root / "staging/src/k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
        return folder / "v1", folder, short
    if "apiregistration.v1." in name:
        folder = root / "staging/src/k8s.io/kube-aggregator/pkg/apis/apiregistration"
        return folder / "v1", folder, short
    return None, None, short


def nothing(package, core, kind):
    """What stands for a field of a Go type that is not set."""
    seen = set()
    while kind in package.aliases and kind not in seen:
        seen.add(kind)
        kind = package.aliases[kind]
    if kind.startswith(("*", "[", "map")) or kind.endswith("interface{}"):
        return "~"
    if kind in NUMBERS:
        return "0"
    if kind == "bool":
        return "-"
    if kind in package.structs or (kind.startswith(("api.", "core.")) and kind.split(".")[1] in core.structs):
        return "+"
    if kind == "intstr.IntOrString":
        return "0"
    if kind in ("metav1.LabelSelector", "metav1.ObjectMeta", "metav1.TypeMeta", "metav1.ListMeta"):
        return "+"
    if kind.endswith((".Time", ".MicroTime")):
        return "~"
    return "'"


def main():
    root = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
    types = schema(Path(__file__).parent)
    pointers = {tuple(line.split("\t")) for line in
                (Path(__file__).parent / "pointers.tsv").read_text().splitlines()}
    packages = {}

    def package(folder):
        if folder not in packages:
            packages[folder] = Package(folder)
        return packages[folder]

    presence, internal = [], []
    for name, fields in sorted(types.items()):
        of_version, of_group, short = versioned(root, name)
        if of_version is None:
            continue
        go = package(of_version)
        for _, kind, tag in go.flat(short):
            json = tag.split(",")[0]
            if json not in fields:
                continue
            shape, default = fields[json]
            structure = shape.rstrip("!").startswith("->") and default.startswith("{")
            always = "omitempty" not in tag and "omitzero" not in tag
            if kind in STRUCTS or kind in go.structs or structure:
                always = "omitzero" not in tag
            said = structure or (shape.endswith("!") and (name, json) not in pointers)
            if said != always:
                presence.append((name, json, "always" if always else "out"))
        # Messages speak of what is kept.
        inner = package(of_group) if of_group and re.search(r"\.v\d+\.", name) else None
        if inner and short in inner.structs:
            lower, row = {json.lower(): json for json in fields}, []
            for field, kind, _ in inner.flat(short):
                if field in ("TypeMeta", "ListMeta"):
                    continue
                json = "^" + field[0].lower() + field[1:] if (short, field) in MOVED else lower.get(field.lower())
                if (short, field) in MOVED and field.startswith("Host") and field[4:].isupper():
                    json = "^host" + field[4:]
                shown = field if json and json[0].islower() and json[0].upper() + json[1:] == field else f"{field}={json or ''}"
                row.append(shown + nothing(inner, package(root / "pkg/apis/core"), kind))
            internal.append((name, " ".join(row)))
        elif name.startswith(META):
            row = [tag.split(",")[0] + "?" for _, _, tag in go.flat(short) if tag.split(",")[0] in fields]
            internal.append((name, " ".join(row)))
    write(out / "presence.tsv", "type\tfield\twhat Go's encoder does, other than OpenAPI says",
          presence)
    write(out / "internal.tsv", "type\thow upstream's messages show it (see go_forms.py)", internal)


def write(path, head, rows):
    path.write_text("\n".join(["# " + head] + ["\t".join(row) for row in rows]) + "\n")


if __name__ == "__main__":
    main()
