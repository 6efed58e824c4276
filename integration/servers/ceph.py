"""Ceph RADOS Gateway: a production S3 server, on a cluster of one monitor and one disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from integration.servers.s3_bucket import make_bucket
from integration.servers.server import MissingServerError, Place, Process, Server, free_port

_PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool", "monmaptool", "radosgw-admin")
_KEY, _SECRET = "testaccess", "testsecret"
_DISK_BYTES = 12 << 30  # sparse

_CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = v1:127.0.0.1:{mon_port}
ms_bind_msgr2 = false
public_addr = 127.0.0.1
public_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
pid_file = {folder}/run/$name.pid
log_file = {folder}/log/$name.log
crash_dir = {folder}/log
mon_data = {folder}/mon
osd_data = {folder}/osd
rgw_data = {folder}/rgw
keyring = {folder}/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_crush_update_on_start = false
osd_class_update_on_start = false
osd_heartbeat_grace = 120
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_block_size = {disk_bytes}
bluestore_fsck_on_mount = false
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_crit = 1
mon_max_pg_per_osd = 1000
[osd]
monmap = {folder}/monmap
[client]
monmap = {folder}/monmap
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_enable_ops_log = false
rgw_enable_usage_log = false
debug_rgw = 1
"""


class Ceph(Server):
    """`kill` kills the gateway, which clients talk to. The cluster behind it stays up."""

    name = "ceph"
    two_engines = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._mon_port = free_port()
        self._cluster: list[Process] = []
        self._gateway: list[Process] = []

    def start(self) -> None:
        """See `Server.start`."""
        missing = [program for program in _PROGRAMS if shutil.which(program) is None]
        if missing:
            raise MissingServerError(
                f"Ceph is not installed ({', '.join(missing)} missing). Run: make servers"
            )
        fresh = not self._cluster
        if fresh:
            self._start_cluster()
        gateway = Process(["radosgw", "-f", "-n", "client.rgw"], self.folder / "rgw.log", **self._environment)
        self._gateway.append(gateway)
        gateway.wait_until(self._responds)
        if fresh:
            user = ["--uid=test", "--display-name=test", f"--access-key={_KEY}", f"--secret-key={_SECRET}"]
            self._run("radosgw-admin", "user", "create", *user)
            make_bucket(self.place(""))

    def kill(self) -> None:
        """See `Server.kill`."""
        for gateway in self._gateway:
            gateway.kill()
        self._gateway.clear()

    def stop(self) -> None:
        """See `Server.stop`."""
        self.kill()
        for process in reversed(self._cluster):
            process.kill()
        self._cluster.clear()

    def place(self, name: str) -> Place:
        """See `Server.place`."""
        options = {"key": _KEY, "secret": _SECRET, "endpoint_url": f"http://127.0.0.1:{self.port}"}
        return Place(f"s3://bucket/{name}", options)

    def version(self) -> str:
        """See `Server.version`."""
        words = self._run("radosgw", "--version").split()
        return f"Ceph RADOS Gateway {words[2]}"

    def _start_cluster(self) -> None:
        for name in ("mon", "osd", "rgw", "log", "run"):
            (self.folder / name).mkdir()
        fsid = str(uuid.uuid4())
        (self.folder / "ceph.conf").write_text(
            _CONFIGURATION.format(
                fsid=fsid,
                folder=self.folder,
                port=self.port,
                mon_port=self._mon_port,
                disk_bytes=_DISK_BYTES,
            )
        )
        self._start_monitor(fsid)
        self._start_disk()

    def _start_monitor(self, fsid: str) -> None:
        keyring, monmap = str(self.folder / "keyring"), str(self.folder / "monmap")
        self._run(
            "ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"
        )
        self._run(
            "ceph-authtool",
            keyring,
            "--gen-key",
            "-n",
            "client.admin",
            "--cap",
            "mon",
            "allow *",
            "--cap",
            "osd",
            "allow *",
            "--cap",
            "mgr",
            "allow *",
        )
        address = f"[v1:127.0.0.1:{self._mon_port}]"
        self._run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        command = ["ceph-mon", "-f", "-i", "a", "--public-addr", f"127.0.0.1:{self._mon_port}"]
        monitor = Process(command, self.folder / "mon.log", **self._environment)
        self._cluster.append(monitor)
        monitor.wait_until(lambda: self._succeeds("ceph", "-s"))

    def _start_disk(self) -> None:
        number = self._query("ceph", "osd", "new", str(uuid.uuid4())).strip()
        self._query("ceph", "osd", "crush", "add", f"osd.{number}", "1.0", "host=h", "root=default")
        identity = json.loads(self._query("ceph", "osd", "dump", "-f", "json"))["osds"][0]["uuid"]
        self._run("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", identity)
        disk = Process(["ceph-osd", "-f", "-i", number], self.folder / "osd.log", **self._environment)
        self._cluster.append(disk)
        disk.wait_until(lambda: '"up":1' in self._query("ceph", "osd", "dump", "-f", "json"))

    @property
    def _environment(self) -> dict[str, str]:
        configuration = str(self.folder / "ceph.conf")
        return {"CEPH_CONF": configuration, "CEPH_ARGS": f"--conf {configuration}"}

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def _succeeds(self, *command: str) -> bool:
        try:
            self._run(*command)
        except (RuntimeError, subprocess.TimeoutExpired):
            return False
        return True

    def _query(self, *command: str) -> str:
        """Query the cluster, with retries: Ceph 16.2 says 'wrong fsid' until it has the monitor map."""
        for _ in range(5):
            try:
                return self._run(*command)
            except RuntimeError as error:
                last = error
                time.sleep(0.3)
        raise last

    def _responds(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=2):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
