"""Each built-in kind of the corpus through the typed API of the official Python client.

every_kind.py KUBECONFIG PLATFORM_KUBECONFIG CORPUS_DIRECTORY

Objects are made, read, listed, watched, patched, replaced and deleted by the methods that the
client has for their kind; it decodes every answer into its own models, which check what is
required. Prints one line for each kind, and ends with 1 if anything went wrong.
"""

import pathlib
import re
import sys

import yaml
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException

NAMESPACE = "python"
# What this version of the client cannot decode: it looks for a model that it does not have.
BROKEN = {"ResourceClaim"}


def snake(name):
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name).lower()


def api_of(api_client, api_version):
    """The class that has the methods of a group version."""
    group, _, version = api_version.rpartition("/")
    parts = [part.capitalize() for part in group.replace(".k8s.io", "").split(".")] if group else ["Core"]
    name = "".join(parts) + version.capitalize() + "Api"
    return getattr(client, name)(api_client)


class Kind:
    def __init__(self, api_client, entry):
        self.object = entry["object"]
        self.change = entry["change"]
        self.name = self.object["metadata"]["name"]
        self.kind = self.object["kind"]
        self.api = api_of(api_client, self.object["apiVersion"])
        self.namespace = () if entry.get("cluster") else (NAMESPACE,)

    def call(self, verb, *arguments, **options):
        scope = "namespaced_" if self.namespace else ""
        method = getattr(self.api, f"{verb}_{scope}{snake(self.kind)}")
        return method(*arguments, **options)

    def replace(self, at, new):
        """Servers write the status of some kinds: who is late reads again, as every client must."""
        for _ in range(10):
            try:
                return self.call("replace", *at, new)
            except ApiException as error:
                if error.status != 409:
                    raise
            new = self.call("read", *at)
        raise AssertionError("it changes all the time")

    def live(self):
        at = (self.name, *self.namespace)
        made = self.call("create", *self.namespace, self.object)
        assert made.metadata.uid and made.metadata.resource_version, made.metadata
        read = self.call("read", *at)
        assert read.metadata.uid == made.metadata.uid
        listed = self.call("list", *self.namespace, field_selector=f"metadata.name={self.name}")
        assert [it.metadata.name for it in listed.items] == [self.name], len(listed.items)
        patched = self.call("patch", *at, {"metadata": {"labels": {"by": "python"}}})
        assert patched.metadata.labels["by"] == "python"
        replaced = self.replace(at, patched)
        assert replaced.metadata.uid == made.metadata.uid
        method = f"list_{'namespaced_' if self.namespace else ''}{snake(self.kind)}"
        seen = []
        events = watch.Watch().stream(
            getattr(self.api, method), *self.namespace,
            resource_version=made.metadata.resource_version,
            field_selector=f"metadata.name={self.name}", timeout_seconds=10,
        )
        for event in events:
            seen.append((event["type"], event["object"].metadata.name))
            break
        assert seen == [("MODIFIED", self.name)], seen
        self.call("delete", *at, grace_period_seconds=0)
        try:
            gone = self.call("read", *at)
            assert gone.metadata.deletion_timestamp, "it is still there"
        except ApiException as error:
            assert error.status == 404, error


def entries(directory):
    """What `corpus.rs` reads, but in a namespace of our own."""
    request = (directory / "request.pem.base64").read_text().strip()
    for file in ["core.yaml", "workloads.yaml", "cluster.yaml"]:
        text = (directory / file).read_text()
        text = text.replace("request: CSR", f"request: {request}")
        yield from yaml.safe_load(text.replace("namespace: diff", f"namespace: {NAMESPACE}"))


def main(user, platform, directory):
    clients = {False: config.new_client_from_config(user), True: config.new_client_from_config(platform)}
    for api_client in clients.values():
        core = client.CoreV1Api(api_client)
        core.create_namespace({"metadata": {"name": NAMESPACE}})
        try:
            core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": "default"}})
        except ApiException as error:
            assert error.status == 409, error
    failed = 0
    for entry in entries(pathlib.Path(directory)):
        of = entry["object"]
        if of["kind"] in BROKEN:
            continue
        title = f"{of['apiVersion']} {of['kind']} {of['metadata']['name']}"
        try:
            Kind(clients[entry.get("fleet", False)], entry).live()
            print("ok    ", title)
        except Exception as error:  # Each kind is told of.
            failed += 1
            print("FAILED", title, type(error).__name__, str(error)[:600].replace("\n", " "))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
