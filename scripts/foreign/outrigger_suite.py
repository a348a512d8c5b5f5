"""The program as a pytest suite for replicators wants it: two servers, and a replicator between them.

    def test_a_rename_arrives(replicator):
        replicator.start()
        replicator.wait_until_ready()
        replicator.source.shop.a.rename("b")
        replicator.flush()
        assert replicator.compare() == []

`compare` asks the comparison of our own suites (examples/equal.rs): raw bytes of documents, options, indexes, views, and the
order of capped collections. Nobody has to wait before it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pymongo
import pytest

PATIENCE = 120


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def eventually(what, done, patience=PATIENCE):
    give_up = time.monotonic() + patience
    while not (answer := done()):
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what}: not within {patience} s")
        time.sleep(0.05)
    return answer


class Server:
    """A replica set of one."""

    def __init__(self):
        self.port, self.folder = free_port(), tempfile.mkdtemp(prefix="outrigger-suite-")
        self.uri = f"mongodb://127.0.0.1:{self.port}/?directConnection=true"
        self.process = subprocess.Popen(
            [os.environ["MONGOD"], "--replSet", "rs", "--bind_ip", "127.0.0.1", "--port", str(self.port), "--dbpath",
             self.folder, "--nounixsocket", "--oplogSize", "200", "--wiredTigerCacheSizeGB", "0.5"],
            stdout=subprocess.DEVNULL,
        )
        self.client = pymongo.MongoClient(self.uri)
        member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
        self.client.admin.command({"replSetInitiate": {"_id": "rs", "members": [member]}})
        eventually("a primary", lambda: self.client.admin.command("hello")["isWritablePrimary"])

    def empty(self):
        for name in self.client.list_database_names():
            if name not in ("admin", "config", "local"):
                self.client.drop_database(name)

    def end(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)


class Replicator:
    """The built program between a source and a target."""

    def __init__(self, source, target):
        self.source_uri, self.target_uri = source.uri, target.uri
        self.source, self.target = source.client, target.client
        self.folder = Path(tempfile.mkdtemp(prefix="outrigger-suite-"))
        self.port, self.process = free_port(), None
        self.configure("")

    def configure(self, more):
        """Further configuration, for the next start."""
        (self.folder / "config.toml").write_text(
            f'[admin]\nlisten = "127.0.0.1:{self.port}"\n[atlas]\nallow_insecure = true\n{more}'
        )

    @property
    def log(self):
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def _environment(self):
        return {**os.environ, "MONGODB_LOCAL_URI": self.source_uri, "MONGODB_ATLAS_URI": self.target_uri}

    def cli(self, *args):
        """Another command of the program, as a person runs it beside the agent."""
        return subprocess.run(
            [os.environ["OUTRIGGER_BIN"], *args], cwd=self.folder, env=self._environment(), capture_output=True, text=True
        )

    def start(self, *args):
        assert self.process is None, "it runs already"
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen(
                [os.environ["OUTRIGGER_BIN"], "run", *args], cwd=self.folder, env=self._environment(), stderr=log
            )

    def health(self):
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"the agent has ended with {self.process.returncode}:\n{self.log}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/sync/health", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return {}

    def wait_until_ready(self, patience=PATIENCE):
        """Until the first copy is done, and changes flow."""
        eventually("the phase `streaming`", lambda: self.health().get("phase") == "streaming", patience)

    def flush(self, patience=PATIENCE):
        """Until everything that was written before is in the target. Right behind a start, too."""
        eventually("the agent's API", self.health, patience)
        done = self.cli("flush", "--timeout", f"{patience}s")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.log}"

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            ended = self.process.wait(PATIENCE)
            self.process = None
            assert ended == 0, f"the agent ended with {ended}:\n{self.log}"

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def compare(self):
        """What differs between both sides, in words."""
        done = subprocess.run(
            [os.environ["OUTRIGGER_EQUAL"], self.source_uri, self.target_uri], capture_output=True, text=True
        )
        assert done.returncode in (0, 1), done.stderr
        return [text for text in re.split(r"\n(?! )", done.stdout.strip()) if text]


@pytest.fixture(scope="session")
def replicator_servers():
    servers = [Server(), Server()]
    yield servers
    for server in servers:
        server.end()


@pytest.fixture
def replicator(replicator_servers):
    """Stopped; both servers are empty."""
    for server in replicator_servers:
        server.empty()
    replicator = Replicator(*replicator_servers)
    yield replicator
    replicator.kill()
    shutil.rmtree(replicator.folder)
