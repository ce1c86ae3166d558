"""A client of ImageAPI in Python, without other packages. It reads the operations from the server's OpenAPI document."""
import json
import sys
import urllib.parse
import urllib.request


class Client:
    def __init__(self, server):
        self.server = server
        spec = self.call("GET", "/openapi.json")
        base = spec["servers"][0]["url"]
        self.operations = {
            operation["operationId"]: (method.upper(), base + path)
            for path, methods in spec["paths"].items()
            for method, operation in methods.items()
        }

    def __getattr__(self, operation):
        method, path = self.operations[operation]
        return lambda body=None, **query: self.call(method, path, body, query)

    def call(self, method, path, body=None, query=None):
        url = self.server + path
        if query:
            url += "?" + urllib.parse.urlencode(query)
        request = urllib.request.Request(url, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as response:
            return json.load(response)


if __name__ == "__main__":
    api = Client(sys.argv[1])
    definition = json.load(open(sys.argv[2]))
    print(len(api.plan_container(definition)["steps"]), "steps")
    container = api.create_container(definition)
    print(api.exec_in_container({"args": ["echo", "hello"]}, id=container["id"])["stdout"], end="")
    api.set_container_state(id=container["id"], state="exited")
    print(api.wait_for_container(id=container["id"])["state"])
    api.delete_container(id=container["id"])
