"""Java and the jars of Apache Kafka, fetched by Maven once per user into a cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

KAFKA_VERSION = "4.1.1"
LOG4J_VERSION = "2.25.1"
JAVA_MINIMUM = 17

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>org.nextem</groupId><artifactId>kafka-jars</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
  <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
  <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>{LOG4J_VERSION}</version></dependency>
  <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-core</artifactId><version>{LOG4J_VERSION}</version></dependency>
  </dependencies> </project>
"""


class BrokerUnavailable(Exception):
    """A broker cannot be started here. The message is one line and says what to do."""


def ensure_jars() -> Path:
    """The folder of Kafka's jars, fetched by Maven the first time. Raises :class:`BrokerUnavailable`."""
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nextem" / f"kafka-{KAFKA_VERSION}"
    )
    lib = cache / "lib"
    if lib.is_dir():
        return lib
    maven = shutil.which("mvn")
    if maven is None:
        raise _unavailable("mvn was not found")
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "fetch.lock"):
        if not lib.is_dir():
            _fetch(maven, cache, lib)
    return lib


def _fetch(maven: str, cache: Path, lib: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as folder:
        work = Path(folder)
        (work / "pom.xml").write_text(_POM)
        command = [maven, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={work / 'lib'}"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            tail = " ".join((done.stdout + done.stderr).split())[-300:]
            raise BrokerUnavailable(f"Maven could not fetch Kafka {KAFKA_VERSION}: {tail}; {_ADVICE}")
        # The rename comes last, so that a folder of this name is always a whole one.
        (work / "lib").rename(lib)


_ADVICE = "or pass the address of a running Kafka: --log kafka://host:port"


def _unavailable(why: str) -> BrokerUnavailable:
    return BrokerUnavailable(f"a local Kafka needs Java >= {JAVA_MINIMUM} and Maven ({why}); {_ADVICE}")


def require_java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is None:
        raise _unavailable("java was not found")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < JAVA_MINIMUM:
        raise _unavailable(f"{java} is {told.splitlines()[0] if told else 'of unknown version'}")
    return java


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
