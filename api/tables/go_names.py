#!/usr/bin/env python3
"""Derives go_names.tsv by asking a Kubernetes API server, which nobody else uses.

Usage: go_names.py URL TOKEN [OUT_DIR]

Each field of each kind is sent with a value of a type that it cannot have, in a dry run. What the
server says of it names the structures that Go embeds on the way to the field, and the field's
type in Go, if that has a name of its own.
"""

import json
import re
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
TOLD = re.compile(r"Go struct field \w+\.(\S+) of type (\S+)$")
PLAIN = re.compile(r"^(\[\]|map\[string\])*(string|bool|int|int32|int64|float64|uint8)$")


def types():
    """Fields by type, and types by kind."""
    fields, kinds = {}, {}
    for line in (HERE / "types.tsv").read_text().splitlines():
        if line.startswith("#") or not line:
            continue
        columns = line.split("\t") + [""] * 5
        if not columns[1]:
            fields[columns[0]] = {}
            for kind in filter(None, columns[4].split(",")):
                kinds.setdefault(kind, columns[0])
        else:
            fields[columns[0]][columns[1]] = columns[2].rstrip("!")
    return fields, kinds


def plain(shape):
    """What Go calls a shape that has no name."""
    if shape.startswith("["):
        return "[]" + plain(shape[1:-1])
    if shape.startswith("{"):
        return "map[string]" + plain(shape[1:-1])
    return "string" if shape.endswith(".Quantity") else ".".join(shape.rsplit(".", 2)[1:])


class Server:
    def __init__(self, url, token):
        self.url, self.token = url, token
        self.context = ssl._create_unverified_context()

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json",
                   "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, context=self.context) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read()
            return json.loads(text) if text.startswith(b"{") else {}

    def resources(self):
        """Paths of collections in which objects can be made, by kind."""
        groups = self.ask("/apis")["groups"]
        places = ["api/v1"] + [f"apis/{it['groupVersion']}" for group in groups
                               for it in group["versions"]]
        for place in places:
            for it in self.ask(f"/{place}").get("resources", []):
                if "create" in it["verbs"] and "/" not in it["name"]:
                    group, _, version = place.partition("/")[2].rpartition("/")
                    inner = "/namespaces/default" if it["namespaced"] else ""
                    yield f"{group}/{version}/{it['kind']}", f"/{place}{inner}/{it['name']}"


def main():
    server = Server(sys.argv[1], sys.argv[2])
    fields, kinds = types()
    found, seen = {}, set()

    def ask(kind, path, place, shape, value, key):
        for step in reversed(place):
            value = [value] if step == "[]" else {"k" if step == "{}" else step: value}
        group, version, name = kind.split("/")
        head = {"apiVersion": f"{group}/{version}".strip("/"), "kind": name}
        message = server.ask(f"{path}?dryRun=All", {**head, **value}).get("message", "")
        told = TOLD.search(message)
        if not told:
            return
        steps, wanted = told.group(1).split("."), told.group(2)
        embedded = []
        for step in reversed(steps[:-1]):
            if not step[:1].isupper():
                break
            embedded.insert(0, step)
        named = "" if wanted == plain(shape) or PLAIN.match(wanted) else wanted
        prefix = {"[]": "[]", "{}": "map[string]"}.get(place[-1], "")
        before = found.get(key, ("", ""))
        found[key] = (".".join(embedded), before[1] or (prefix + named if named else ""))

    def walk(kind, path, of, place):
        if of in seen:
            return
        seen.add(of)
        for field, shape in fields[of].items():
            if not place and field in ("apiVersion", "kind"):
                continue
            key, here = (of, field), place + [field]
            while True:
                if shape.startswith("->"):
                    inner = shape[2:]
                    if inner in fields and not inner.endswith((".Time", ".MicroTime")):
                        ask(kind, path, here, shape, "x", key)
                        walk(kind, path, inner, here)
                    break
                if shape[0] not in "[{":
                    ask(kind, path, here, shape, True if shape == "string" else "x", key)
                    break
                ask(kind, path, here, shape, "x", key)
                here = here + [shape[0] + {"[": "]", "{": "}"}[shape[0]]]
                shape = shape[1:-1]

    for kind, path in server.resources():
        if kind in kinds:
            walk(kind, path, kinds[kind], [])
    out = Path(sys.argv[3]) if len(sys.argv) > 3 else HERE
    rows = [f"{of}\t{field}\t{embedded}\t{named}\n"
            for (of, field), (embedded, named) in sorted(found.items()) if embedded or named]
    head = ("# type\tfield\tthe structures that Go embeds on the way to it\t"
            "its type in Go, where that has a name of its own\n"
            "# As Kubernetes' API server names them when a field is sent with a value of another "
            "type; see go_names.py.\n")
    (out / "go_names.tsv").write_text(head + "".join(rows))


if __name__ == "__main__":
    main()
