"""The words of Percona ClusterSync's suite, turned into ours.

    scripts/foreign/run -p clustersync -p no:timeout -W ignore -k "not sharded" /path/to/percona-clustersync-mongodb/tests

The tests of sharded clusters need some; with --runslow there are nine more, which take gigabytes and as many minutes.

That suite speaks over HTTP to one service that stands between two servers, and that is started and finalized in each test.
Here each start is an agent of its own with an empty queue, which adopts the target as it finds it; to finalize is to flush and
to stop.
"""

import json
import os
import shutil
from types import SimpleNamespace

import pymongo
import pytest
from outrigger_suite import Replicator

# None of its tests drops this database or compares it: here the agent keeps its mark of ownership.
STATE = "percona_clustersync_mongodb"
# What it wants of its own service, and nobody wants of this program. Each must fail: one that no longer does is taken out.
EXPIRES = "its service drops the expiry of a clustered collection, and here it is kept"
AT_THE_END = "its service makes an index unique, hidden or expiring only when it is finalized, and here it is so at once"
NOT_OURS = {
    "test_create_clustered_ttl_ignored": EXPIRES,
    "test_modify_clustered_ttl_ignored": EXPIRES,
    "test_modify_clustered_ttl_with_validation": EXPIRES,
    "test_create_hidden[phase:apply]": AT_THE_END,
    "test_internal_create_many_props[phase:apply]": AT_THE_END,
    "test_internal_modify_many_props[phase:apply]": AT_THE_END,
    "test_internal_modify_index_props_complex[phase:apply]": AT_THE_END,
    "test_clone_auto_segment_size_not_byte_count": "it looks how its own service cuts a collection into parts",
    "test_finalization_section_reports_failed_unique_index": "it wants a list of indexes in the report of its own service",
}
# When an agent is stopped for good, the suite wants to read of it.
FINALIZATION = {"completed": True, "startedAt": "before", "completedAt": "now"}


class Service:
    """Takes the place of the suite's client of its service."""

    replicator, state = None, "idle"

    def __init__(self, _):
        ends = [os.environ[name] for name in ("TEST_SOURCE_URI", "TEST_TARGET_URI")]
        self.ends = [SimpleNamespace(uri=uri, client=pymongo.MongoClient(uri)) for uri in ends]

    def status(self):
        status = {"ok": True, "state": self.state}
        if self.state in ("running", "paused"):
            copied = self.replicator.health().get("phase") == "streaming"
            status["initialSync"] = {"completed": copied, "cloneCompleted": copied}
        if self.state == "finalized":
            status["finalization"] = FINALIZATION
        return status

    # A pause behind the first copy is only asked for by tests that finalize next, which waits for nothing else then.
    def start(self, include_namespaces=None, exclude_namespaces=None, **_):
        self.forget()
        self.replicator = Replicator(*self.ends)
        # A list of names is the same in JSON.
        include, exclude = (json.dumps(names or []) for names in (include_namespaces, exclude_namespaces))
        self.replicator.configure(f'state_database = "{STATE}"\n[namespaces]\ninclude = {include}\nexclude = {exclude}\n')
        self.replicator.start("--adopt")
        self.state = "running"

    def pause(self):
        assert self.replicator.cli("pause").returncode == 0
        self.state = "paused"

    def resume(self):
        assert self.replicator.cli("resume").returncode == 0
        self.state = "running"

    def finalize(self):
        self.catch_up()
        self.replicator.stop()
        self.state = "finalized"

    def catch_up(self):
        self.replicator.wait_until_ready()
        self.replicator.flush()

    def forget(self):
        if self.replicator is not None:
            self.replicator.kill()
            # One that was killed has not given up its mark, for which the next one would have to wait.
            self.ends[1].client.drop_database(STATE)
            print(self.replicator.log)
            shutil.rmtree(self.replicator.folder)
        self.replicator, self.state = None, "idle"


def pytest_sessionstart():
    # Its modules are found once its conftest.py is read.
    import pcsm

    for name in ("__init__", "replicator", "state", "status", "start", "pause", "resume", "finalize", "catch_up", "forget"):
        setattr(pcsm.PCSM, name, getattr(Service, name))
    pcsm.Runner.wait_for_current_optime = lambda runner: runner.pcsm.catch_up()
    # Its own patience is that of a machine that does nothing else.
    pcsm.Runner.wait_for_clone_completed = lambda runner: runner.pcsm.replicator.wait_until_ready()
    pcsm.Runner.wait_for_initial_sync = pcsm.Runner.wait_for_clone_completed


def pytest_collection_modifyitems(items):
    for item in items:
        if reason := NOT_OURS.get(item.name) or NOT_OURS.get(item.originalname):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture(scope="session", autouse=True)
def servers_of_the_suite(replicator_servers):
    for name, server in zip(("TEST_SOURCE_URI", "TEST_TARGET_URI"), replicator_servers):
        os.environ[name] = server.uri
    os.environ["TEST_PCSM_URL"] = "none"


@pytest.fixture(autouse=True)
def nothing_runs_on(servers_of_the_suite, pcsm):
    """Into the next test, whose databases are dropped first. What the agent logged is shown of a test that failed."""
    yield
    pcsm.forget()
